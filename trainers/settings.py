"""What a class of settings is: fields with their meaning, YAML in and out, checks with a sentence for each problem.

`Section` and `setting` make the classes; the form, ``--help`` and the docs walk over them with `fields`. No torch here.
"""

from __future__ import annotations

import difflib
import functools
import io
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

C = TypeVar("C", bound="Section")


class FieldError(ValueError):
    """For validators of several fields: names the field at which the problem can be mended."""

    def __init__(self, where: str, what: str) -> None:
        self.where = where
        super().__init__(what)


class ConfigError(Exception):
    """A config that cannot be used: one sentence per problem, each naming its field. Doors exit with code 2."""

    def __init__(self, problems: Sequence[tuple[str, str]]) -> None:
        self.problems = list(problems)
        super().__init__("\n".join(f"{where}: {what}" if where else what for where, what in self.problems))


def setting(
    default: Any,
    description: str,
    *,
    basic: bool = False,
    show_if: Mapping[str, Sequence[Any]] | None = None,
    lines: bool = False,
    **bounds: Any,
) -> Any:
    """A pydantic field with what the form needs to know.

    basic: among the few fields that everybody sees. show_if: {"dotted.field": [values]}; the setting has an effect
    only when the other field has one of the values. lines: a text of several lines. Bounds: ge, gt, le, lt.
    """
    hints: dict[str, Any] = {"basic": basic, "lines": lines}
    if show_if:
        hints["show_if"] = {key: list(values) for key, values in show_if.items()}
    if default is ...:
        return Field(description=description, json_schema_extra=hints, **bounds)
    return Field(default=default, description=description, json_schema_extra=hints, **bounds)


class Section(BaseModel):
    """Base of every config class: an unknown key is an error, defaults are checked like given values."""

    model_config = ConfigDict(extra="forbid", validate_default=True, protected_namespaces=(), allow_inf_nan=False)


# --- YAML in, YAML out -----------------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads 1e-4 as text; people write learning rates that way. Duplicate keys are errors."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, (str, int, float)) and key in seen:
                raise ConfigError([(str(key), f"stands twice (line {key_node.start_mark.line + 1})")])
            if isinstance(key, (str, int, float)):
                seen.add(key)
        return super().construct_mapping(node, deep)

    def construct_yaml_str(self, node: Any) -> str:
        """JSON escapes an emoji as two halves ("\\ud83d\\ude00"); they are joined, and a lone half is replaced."""
        return str(self.construct_scalar(node)).encode("utf-16", "surrogatepass").decode("utf-16", "replace")


_Loader.add_constructor("tag:yaml.org,2002:str", _Loader.construct_yaml_str)


class _Dumper(yaml.SafeDumper):
    """Quotes the texts that `_Loader` would read as numbers."""


for _end in (_Loader, _Dumper):
    _end.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"),
        list("-+0123456789"),
    )


_MOST_VALUES = 1_000_000  # a few lines of aliases of aliases stand for more than any memory holds


def _written_out(value: Any, known: dict[int, int]) -> int:
    """How many values stand in one when every alias is written out. known: those of containers that were counted."""
    if not isinstance(value, (dict, list)):
        return 1
    if id(value) not in known:
        within = [*value, *value.values()] if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_written_out(item, known) for item in within)
    return known[id(value)]


def parse_yaml(text: str, source: str = "the text") -> dict[str, Any]:
    """A YAML mapping as a dict; ConfigError with the line where it is no YAML."""
    try:
        data = yaml.load(text, Loader=_Loader)
        if _written_out(data, {}) > _MOST_VALUES:
            raise ValueError(f"with its aliases written out it holds more than {_MOST_VALUES:,} values")
    except RecursionError as error:
        raise ConfigError([("", f"{source} is not valid YAML: it is nested without end")]) from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: what looks like a date or a number and is none
        mark = getattr(error, "problem_mark", None)
        line = f" (line {mark.line + 1})" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        if "double-quoted" in (getattr(error, "context", None) or "") and "escape" in problem:
            problem += "; put a Windows path in single quotes, or write it with forward slashes"
        raise ConfigError([("", f"{source} is not valid YAML{line}: {problem}")]) from error
    if not isinstance(data, dict):
        raise ConfigError([("", f"{source} does not hold settings: expected lines such as 'max_train_steps: 1000'")])
    return data


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; ConfigError if it is missing or not text."""
    return parse_yaml(read_text(path), str(path))


def read_text(path: Path) -> str:
    """The text of a config file; ConfigError if it is missing or not text."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError([("", f"config file {path} does not exist")]) from error
    except IsADirectoryError as error:
        raise ConfigError([("", f"config file {path} cannot be read: it is a folder")]) from error
    except UnicodeDecodeError as error:
        raise ConfigError([("", f"config file {path} cannot be read: it is no text in UTF-8")]) from error
    except OSError as error:
        raise ConfigError([("", f"config file {path} cannot be read: {error.strerror or error}")]) from error


def to_yaml(config: BaseModel) -> str:
    """The whole config as YAML, in the order of the schema."""
    return dump_yaml(config.model_dump(mode="json"))


def dump_yaml(data: Mapping[str, Any]) -> str:
    """Plain values as YAML that `parse_yaml` reads as the same values, in their order."""
    stream = io.StringIO()
    yaml.dump(
        dict(data),
        stream,
        Dumper=_Dumper,
        sort_keys=False,
        allow_unicode=True,
        default_flow_style=False,
        width=110,
    )
    return stream.getvalue()


def apply_overrides(data: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """`data` with ``key.path=value`` settings put in; values are read as YAML."""
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not key.strip():
            raise ConfigError([("", f"--set {override!r} should look like key.path=value")])
        *parents, last = key.strip().split(".")
        here = data
        for parent in parents:
            here = here.setdefault(parent, {})
            if not isinstance(here, dict):
                raise ConfigError([(key.strip(), f"{parent} is a value, not a section")])
        try:
            here[last] = yaml.load(value, Loader=_Loader)
        except (yaml.YAMLError, ValueError) as error:
            raise ConfigError([(key.strip(), f"value {value!r} is not valid YAML")]) from error
    return data


def validate(cls: type[C], data: Mapping[str, Any]) -> C:
    """`data` as a checked config of class `cls`; ConfigError lists every problem with its field."""
    try:
        return cls.model_validate(dict(data))
    except ValidationError as error:
        raise ConfigError(problems(cls, error)) from error


def problems(cls: type[Section], error: ValidationError) -> list[tuple[str, str]]:
    """(dotted field, sentence) for each problem of a pydantic error, in the words of a person."""
    known = [path for path, _ in fields(cls)]
    known += sorted({path.split(".")[0] for path in known if "." in path})
    found = []
    for item in error.errors(include_url=False):
        where = ".".join(str(part) for part in item["loc"])
        cause = item.get("ctx", {}).get("error")
        if isinstance(cause, FieldError):
            where = cause.where
        found.append((where, _sentence(item, where, known)))
    return found


def _sentence(item: Any, where: str, known: list[str]) -> str:
    kind, given = item["type"], item.get("input")
    if kind == "extra_forbidden":
        near = difflib.get_close_matches(where, known, n=1, cutoff=0.6)
        last = [path for path in known if path.rsplit(".", 1)[-1] == where.rsplit(".", 1)[-1]]
        hint = (near or last)[:1]
        return "is not a setting" + (f"; did you mean {hint[0]}?" if hint else "; see --help for all of them")
    if kind == "missing":
        return "must be set"
    if kind == "value_error":
        return str(item["ctx"]["error"])
    if kind == "literal_error":
        return f"is {given!r}; choose {item['ctx']['expected']}"
    message = item["msg"][0].lower() + item["msg"][1:]
    message = message.removeprefix("input ").replace("should", "must", 1)
    return f"is {given!r}, but {message}" if not isinstance(given, (dict, list)) else message


# --- the schema, seen from outside -----------------------------------------------------------------------------------


def fields(cls: type[Section], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """(dotted path, field) of every setting, depth first, in the order of the schema."""
    for name, info in cls.model_fields.items():
        inner = section_class(info)
        if inner:
            yield from fields(inner, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", info


def section_class(info: FieldInfo) -> type[Section] | None:
    """The section class that a field holds, or None for a plain value."""
    annotation = info.annotation
    return annotation if isinstance(annotation, type) and issubclass(annotation, Section) else None


def hints(info: FieldInfo) -> dict[str, Any]:
    """What `setting` noted for the form: basic, lines, show_if."""
    extra = info.json_schema_extra
    return dict(extra) if isinstance(extra, dict) else {}


def unwrap_optional(annotation: Any) -> tuple[Any, bool]:
    """(type without None, whether None is allowed)."""
    if get_origin(annotation) in (Union, UnionType):
        inner = [arg for arg in get_args(annotation) if arg is not NoneType]
        if len(inner) == 1 and len(inner) < len(get_args(annotation)):
            return inner[0], True
    return annotation, False


def choices(info: FieldInfo) -> list[Any]:
    """The allowed values of a Literal field, else an empty list."""
    annotation, _ = unwrap_optional(info.annotation)
    return list(get_args(annotation)) if get_origin(annotation) is Literal else []


def value_at(config: BaseModel, path: str) -> Any:
    """The value of a dotted field."""
    here: Any = config
    for part in path.split("."):
        here = getattr(here, part)
    return here


def has_effect(cls: type[Section], path: str, values: Mapping[str, Any]) -> bool:
    """Whether a field matters, given the values (by dotted path) of the fields that it depends on."""
    info = _by_path(cls)[path]
    return all(values.get(other) in wanted for other, wanted in hints(info).get("show_if", {}).items())


@functools.cache
def _by_path(cls: type[Section]) -> Mapping[str, FieldInfo]:
    return dict(fields(cls))


def describe(cls: type[Section]) -> str:
    """Every setting with its type, default and meaning, for ``--help``."""
    out = []
    for path, info in fields(cls):
        kind = " | ".join(map(str, choices(info))) or _type_name(info.annotation)
        default = "required" if info.is_required() else f"default {_short(info.get_default(call_default_factory=True))}"
        out.append(f"  {path}  ({kind}; {default})")
        out.append(textwrap.fill(info.description or "", 112, initial_indent="      ", subsequent_indent="      "))
    return "\n".join(out)


def _type_name(annotation: Any) -> str:
    inner, optional = unwrap_optional(annotation)
    origin, args = get_origin(inner), get_args(inner)
    name = f"list of {_type_name(args[0])}" if origin is list else getattr(inner, "__name__", str(inner))
    return f"{name} or empty" if optional else name


def _short(value: Any) -> str:
    return "empty" if value is None or value == "" or value == [] else str(value)
