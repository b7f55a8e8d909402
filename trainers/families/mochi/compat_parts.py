"""What Genmo's YAML and the commands around it have in common: interpolation, arguments of its scripts, and what its
preparation does to clips. No torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from trainers.foreign import Key, read_keys
from trainers.settings import ConfigError

#: What Genmo's preparation makes of every clip, as it is called here.
PREPARATION = {
    "fps": 30.0,
    "fps_rounding": "earlier",
    "frame_selection": "first",
    "fit": "cut",
}
HEIGHT, WIDTH = 480, 848


# --- interpolation ---------------------------------------------------------------------------------------------------

_REFERENCE = re.compile(r"\$\{([^${}]*)\}")


def interpolated(data: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with ``${key.of.another}`` written out, as OmegaConf does it; a leading dot names a neighbour.

    ConfigError for a reference to nothing, or to itself, and for what OmegaConf calls a resolver (``${oc.env:HOME}``).
    """

    def written(value: Any, path: tuple[str, ...], within: tuple[tuple[str, ...], ...]) -> Any:
        if isinstance(value, Mapping):
            return {str(name): written(item, (*path, str(name)), within) for name, item in value.items()}
        if isinstance(value, list):
            return [written(item, (*path, str(number)), within) for number, item in enumerate(value)]
        if value == "???":
            raise ConfigError([(".".join(path), "must be set")])
        if not isinstance(value, str):
            return value
        whole = _REFERENCE.fullmatch(value)
        if whole:
            return referred(whole.group(1), path, within)
        return _REFERENCE.sub(lambda found: plain(found.group(1), path, within), value)

    def referred(name: str, path: tuple[str, ...], within: tuple[tuple[str, ...], ...]) -> Any:
        where = ".".join(path)
        if ":" in name:
            raise ConfigError([(where, f"refers to ${{{name}}}, which is not followed here; write its value instead")])
        bare = name.strip().lstrip(".")
        dots = len(name.strip()) - len(bare)
        parts = (*path[: len(path) - dots if dots else 0], *bare.replace("[", ".").replace("]", "").split("."))
        if parts in within or len(within) > 20:
            raise ConfigError([(where, f"refers to ${{{name}}}, which refers back to it")])
        here: Any = data
        for part in parts:
            inside = here.get(part) if isinstance(here, Mapping) else None
            if isinstance(here, list) and part.isdigit() and int(part) < len(here):
                inside = here[int(part)]
            if inside is None:
                raise ConfigError([(where, f"refers to ${{{name}}}, which is not set in this file")])
            here = inside
        return written(here, parts, (*within, parts))

    def plain(name: str, path: tuple[str, ...], within: tuple[tuple[str, ...], ...]) -> str:
        value = referred(name, path, within)
        if isinstance(value, (Mapping, list)):
            raise ConfigError([(".".join(path), f"refers to ${{{name}}} in a text, but that is no single value")])
        return str(value)

    resolved: dict[str, Any] = written(data, (), ())
    return resolved


# --- arguments -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Script:
    """The arguments of a script, as its parser takes them: every option but a flag is followed by one value.

    tool: as messages call it. keys: by their long names. short: one letter or two -> the long name. places: what stands
    without an option, in its order.
    """

    tool: str
    keys: Mapping[str, Key]
    short: Mapping[str, str] = field(default_factory=dict)
    places: tuple[str, ...] = ()


@dataclass(frozen=True)
class Arguments:
    """The values of a script's arguments by their long names, upstream's default where one was left out; and what was
    given."""

    values: Mapping[str, Any]
    given: frozenset[str]

    def __getitem__(self, name: str) -> Any:
        return self.values[name]


def read_arguments(words: Sequence[str], script: Script) -> Arguments:
    """The arguments of a script. ConfigError for unknown ones, for what is missing, and for values of another kind."""
    given: dict[str, Any] = {}
    placed: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        option, equals, value = word.partition("=")
        if not re.match(r"-{1,2}[A-Za-z]", word):
            placed.append(word)
            continue
        name = script.short.get(option.lstrip("-"), option.lstrip("-").replace("-", "_"))
        flag = script.keys[name].kind is bool if name in script.keys else not rest or rest[0].startswith("-")
        if equals or flag:
            given[name] = value if equals else True
        elif rest:
            given[name] = rest.pop(0)
        else:
            raise ConfigError([(option, f"is the last word of {script.tool}'s command; a value must follow it")])
    if len(placed) > len(script.places):
        beyond = placed[len(script.places)]
        raise ConfigError([("", f"{beyond!r} stands where {script.tool} expects an option such as --name value")])
    missing = script.places[len(placed) :]
    if missing:
        raise ConfigError([("", f"{script.tool} must be followed by {' and '.join(missing)}")])
    values = read_keys(given, script.keys, script.tool, "--")
    return Arguments({**dict(zip(script.places, placed, strict=True)), **values}, frozenset(given))


def check_frames(where: str, frames: int) -> None:
    """ConfigError under the name of upstream's own key, unless so many frames can be trained or drawn."""
    if frames < 1 or frames % 6 != 1:
        down = max(1, (frames - 1) // 6 * 6 + 1)
        raise ConfigError([(where, f"is {frames}, but Mochi takes 6k + 1 frames: set {down} or {down + 6}")])


def size(script: str, option: str, text: str, parts: str) -> list[int]:
    """The whole numbers of a text such as 37x480x848. parts: their names, such as frames x height x width."""
    count = parts.count(" x ") + 1
    if not re.fullmatch(r"\s*\d+(\s*x\s*\d+)*\s*", text) or text.count("x") != count - 1:
        raise ConfigError([(option, f"of {script} is {text!r}; write {parts}")])
    return [int(number) for number in text.split("x")]
