"""The keys of Genmo's YAML that hold Python: read as far as a schedule can be, and never run. No torch.

Upstream evaluates them. Here a text is parsed, and what it may hold is: a number, a list of numbers, ``[x] * n``, sums
of lists, and ``linear_quadratic_schedule(steps, threshold_noise, linear_steps)``.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from trainers.families.mochi.schedule import linear_quadratic
from trainers.settings import ConfigError

_LONGEST = 10_000  # characters of a text
_MOST = 1001  # numbers of a list: the noise before each of 1000 denoising steps, and after the last
_LARGEST = 1e9
_SCHEDULE = "linear_quadratic_schedule"
_ARGUMENTS = ("num_steps", "threshold_noise", "linear_steps")


@dataclass(frozen=True)
class LinearQuadratic:
    """``linear_quadratic_schedule(num_steps, threshold_noise, linear_steps)``; None: half of the steps."""

    num_steps: int
    threshold_noise: float
    linear_steps: int | None = None


def schedule_of(levels: list[float]) -> LinearQuadratic | None:
    """The schedule whose noise levels, that after the last step included, are written out in a list; None: of none."""
    steps = len(levels) - 1
    for linear in range(1, steps):
        threshold = linear * (1 - levels[1])
        if 0 < threshold < 1 and levels[-1] == 0:
            expected = linear_quadratic(steps, threshold, linear)
            if all(math.isclose(own, other, abs_tol=1e-6) for own, other in zip(levels, expected, strict=False)):
                return LinearQuadratic(steps, round(threshold, 9), None if linear == steps // 2 else linear)
    return None


class _Refused(Exception):
    """What a text must not hold, or what is wrong with its numbers; an empty text for the former."""


def read_code(key: str, text: Any) -> float | list[float] | LinearQuadratic:
    """The value of a key whose name ends in _python_code; ConfigError names the key for all that is no schedule."""
    if isinstance(text, list) or (isinstance(text, (int, float)) and not isinstance(text, bool)):
        text = repr(text)  # not written as Python: YAML has lists and numbers as well
    try:
        if not isinstance(text, str) or len(text) > _LONGEST:
            raise _Refused
        return _value(ast.parse(text.strip(), mode="eval").body)
    except _Refused as refused:
        if str(refused):
            raise ConfigError([(key, str(refused))]) from None
    except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError):
        pass
    shown = repr(text) if len(repr(text)) <= 80 else f"{repr(text)[:76]}..."
    raise ConfigError(
        [
            (
                key,
                f"is {shown}, which is none of what is read here: write {_SCHEDULE}(STEPS, THRESHOLD), [NUMBER] * "
                "STEPS, a list of numbers or a sum of such lists; code is never run",
            )
        ]
    )


def _value(node: ast.expr) -> float | list[float] | LinearQuadratic:
    if isinstance(node, ast.Call):
        return _schedule(node)
    if isinstance(node, (ast.List, ast.Tuple)):
        return _short([_number(item) for item in node.elts])
    if isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Add, ast.Mult)):
        left, right = _value(node.left), _value(node.right)
        if isinstance(node.op, ast.Add) and isinstance(left, list) and isinstance(right, list):
            return _short(left + right)
        if isinstance(node.op, ast.Mult) and isinstance(left, list) != isinstance(right, list):
            listed, times = (left, right) if isinstance(left, list) else (right, left)
            if isinstance(listed, list) and isinstance(times, int):
                if len(listed) * max(times, 0) > _MOST:
                    raise _Refused(f"makes a list of {len(listed) * times} numbers; {_MOST - 1} steps are the most")
                return listed * times
    return _number(node)


def _short(numbers: list[float]) -> list[float]:
    if len(numbers) > _MOST:
        raise _Refused(f"has {len(numbers)} numbers; {_MOST - 1} steps are the most")
    return numbers


def _number(node: ast.expr) -> float:
    """A number, or numbers that are added, subtracted, multiplied or divided."""
    number: float
    if isinstance(node, ast.Constant) and isinstance(node.value, (int, float)) and not isinstance(node.value, bool):
        number = node.value
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
        number = -_number(node.operand) if isinstance(node.op, ast.USub) else _number(node.operand)
    elif isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
        left, right = _number(node.left), _number(node.right)
        if isinstance(node.op, (ast.Div, ast.FloorDiv)) and right == 0:
            raise _Refused("divides by zero")
        number = _ARITHMETIC[type(node.op)](left, right)
    else:
        raise _Refused
    if not math.isfinite(number) or abs(number) > _LARGEST:
        raise _Refused("holds a number that is too large")
    return number


_ARITHMETIC: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: lambda left, right: left + right,
    ast.Sub: lambda left, right: left - right,
    ast.Mult: lambda left, right: left * right,
    ast.Div: lambda left, right: left / right,
    ast.FloorDiv: lambda left, right: left // right,
}


def _schedule(call: ast.Call) -> LinearQuadratic:
    if not isinstance(call.func, ast.Name) or call.func.id != _SCHEDULE or len(call.args) > len(_ARGUMENTS):
        raise _Refused
    if any(isinstance(argument, ast.Starred) for argument in call.args):
        raise _Refused
    given: dict[str, ast.expr] = dict(zip(_ARGUMENTS, call.args, strict=False))
    for keyword in call.keywords:
        if keyword.arg not in _ARGUMENTS or keyword.arg in given:
            raise _Refused
        given[keyword.arg] = keyword.value
    left_out = [name for name in _ARGUMENTS[:2] if name not in given]
    if left_out:
        raise _Refused(f"does not say {left_out[0]}; write {_SCHEDULE}(STEPS, THRESHOLD)")
    half = given.get("linear_steps")
    linear = None if half is None or (isinstance(half, ast.Constant) and half.value is None) else _number(half)
    steps, threshold = _number(given["num_steps"]), _number(given["threshold_noise"])
    if not isinstance(steps, int) or not 2 <= steps < _MOST:
        raise _Refused(f"has {steps:g} steps; write a whole number from 2 to {_MOST - 1}")
    if not 0 < threshold < 1:
        raise _Refused(f"has a threshold of {threshold:g}; write one between 0 and 1, such as 0.025")
    if linear is not None and (not isinstance(linear, int) or not 1 <= linear < steps):
        raise _Refused(f"has {linear:g} linear steps of {steps}; write a whole number from 1 to {steps - 1}")
    return LinearQuadratic(steps, float(threshold), None if linear == steps // 2 else linear)
