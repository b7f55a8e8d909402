"""Configs and command lines of other trainers: how they are read, and what a family's ``compat.py`` makes of them.

What is the same for every family stands here: Markdown fences, upstream's keys with their types and defaults, and the
door ``python -m trainers.families.X.compat``. Shell text is read in `trainers.shell`. No torch.
"""

from __future__ import annotations

import difflib
import importlib
import io
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from trainers.settings import ConfigError, dump_yaml, read_text

Kind = Literal["train", "sample"]


@dataclass(frozen=True)
class Foreign:
    """An upstream config or command in our words.

    kind: whether it trains or samples. settings: nested, as in our YAML, `family` included. notes: what is said of
    keys that mean something else here, or nothing, the weightiest first. run_dir: where upstream would write, or None.
    numbered: upstream makes a new folder below run_dir for every run. missing: dotted fields that upstream leaves to
    the moment and that must be given before anything can run, each with the sentence that says so.
    """

    kind: Kind
    settings: dict[str, Any]
    notes: list[str] = field(default_factory=list)
    run_dir: str | None = None
    numbered: bool = False
    missing: dict[str, str] = field(default_factory=dict)

    def lacking(self, settings: Mapping[str, Any]) -> list[tuple[str, str]]:
        """The problems of `settings` (these, with changes) in which something of `missing` is still not given."""
        return [(where, what) for where, what in self.missing.items() if not _at(settings, where)]


def _at(settings: Any, path: str) -> Any:
    for part in path.split("."):
        settings = settings.get(part) if isinstance(settings, Mapping) else None
    return settings


# --- text ------------------------------------------------------------------------------------------------------------

_FENCE = re.compile(r"^[ \t]*(```|~~~)[^\n]*\n(.*?)(?:^[ \t]*\1[ \t]*$|\Z)", re.MULTILINE | re.DOTALL)


def blocks(text: str) -> list[str]:
    """What stands between Markdown fences, each by itself; the whole text where there are none."""
    text = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\u00a0", " ")  # as web pages space code
    return [match.group(2) for match in _FENCE.finditer(text)] or [text]


def the_only(text: str, read: Callable[[str], Foreign | None]) -> Foreign | None:
    """What `read` makes of the one block of a text that it knows; None when it knows none, ConfigError for several."""
    found: list[Foreign] = []
    failed: list[ConfigError] = []
    for block in blocks(text):
        try:
            foreign = read(block)
        except ConfigError as error:  # it may be a line that explains one option
            failed.append(error)
        else:
            found += [] if foreign is None else [foreign]
    if len(found) > 1 or (found and failed):
        count = len(found) + len(failed)
        raise ConfigError([("", f"there are {count} configs or commands in this text; give one of them")])
    if failed:
        raise failed[0]
    return found[0] if found else None


def slashes(path: str) -> str:
    """A path as every system reads it: Windows takes slashes as well."""
    return path.strip().replace("\\", "/")


# --- keys ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Key:
    """A key of an upstream config. kind: str, int, float, bool, list (of texts), dict, or object for whatever is given;
    default: what upstream takes when it is left out, ... when it must be set."""

    kind: type
    default: Any = None


def read_keys(given: Mapping[str, Any], keys: Mapping[str, Key], tool: str, where: str = "") -> dict[str, Any]:
    """Every key with its value, upstream's default where it was left out or is null.

    ConfigError lists all that is unknown (with the nearest known name), missing, or of another kind.
    """
    problems = []
    for name in given:
        if name not in keys:
            near = difflib.get_close_matches(str(name), keys, n=1, cutoff=0.6)
            hint = f"; did you mean {near[0]}?" if near else ""
            problems.append((f"{where}{name}", f"is unknown to {tool}{hint}"))
    values = {}
    for name, key in keys.items():
        value = given.get(name)
        try:
            values[name] = key.default if value is None else _of_kind(value, key.kind)
        except ValueError as error:
            problems.append((f"{where}{name}", f"is {value!r}, but must be {error}"))
        else:
            if values[name] is ...:
                problems.append((f"{where}{name}", "must be set"))
    if problems:
        raise ConfigError(problems)
    return values


def _of_kind(value: Any, kind: type) -> Any:
    """`value` as upstream would read it; ValueError says what it must be."""
    if kind is bool:
        known = {"true": True, "1": True, "yes": True, "t": True, "y": True, "on": True}
        known |= {"false": False, "0": False, "no": False, "f": False, "n": False, "off": False}
        if str(value).lower() not in known:
            raise ValueError("true or false")
        return known[str(value).lower()]
    if kind in (int, float):
        try:
            number = float("" if isinstance(value, bool) else value)
        except (TypeError, ValueError):
            raise ValueError("a number") from None
        if kind is float:
            return number
        if number != number or number in (float("inf"), float("-inf")) or number != int(number):
            raise ValueError("a whole number")
        return int(number)
    if kind is str:
        if isinstance(value, (bool, list, Mapping)):
            raise ValueError("a text")
        return str(value)
    if kind is list:
        return texts(value)
    if kind is dict:
        if not isinstance(value, Mapping):
            raise ValueError("a section of keys and values")
        return dict(value)
    return value


def texts(value: Any) -> list[str]:
    """One text, or a list of them, as a list; ValueError for anything else."""
    found = list(value) if isinstance(value, (list, tuple)) else [value]
    if any(isinstance(item, (list, Mapping)) or item is None for item in found):
        raise ValueError("a text or a list of texts")
    return [str(item).strip() for item in found]


def lines_of(file: str) -> list[str] | None:
    """The lines of a text file that are not empty, or None when it is not on this machine."""
    try:
        text = Path(file).expanduser().read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError):
        return None
    return [line.strip() for line in text.splitlines() if line.strip()]


def without_effect(idle: Mapping[str, str]) -> str:
    """The note on keys or flags that have nothing to do here: {its name: why}."""
    why: dict[str, list[str]] = {}
    for name, reason in idle.items():
        why.setdefault(reason, []).append(name)
    return "Without effect here: " + "; ".join(f"{', '.join(names)} ({reason})" for reason, names in why.items()) + "."


# --- the door of a family --------------------------------------------------------------------------------------------

EXIT_UNREADABLE = 2


def main(
    name: str,
    read: Callable[[str], Foreign | None],
    dialects: Mapping[str, Callable[[Sequence[str]], Foreign]],
    arguments: Sequence[str] | None = None,
) -> int:
    """``python -m trainers.families.NAME.compat [FILE | - | DIALECT ARGUMENTS...]``: our YAML on the standard output.

    dialects: name -> what reads its command-line arguments. Notes stand above the YAML as comments. Gives the exit
    code: 0, or 2 with one sentence when there is nothing that can be read.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    if words and words[0] in ("-h", "--help"):
        sys.stdout.write(_usage(name, dialects))
        return 0
    try:
        sys.stdout.write(as_yaml(_asked_for(words, name, read, dialects)))
    except ConfigError as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_UNREADABLE
    return 0


def _asked_for(
    words: Sequence[str],
    name: str,
    read: Callable[[str], Foreign | None],
    dialects: Mapping[str, Callable[[Sequence[str]], Foreign]],
) -> Foreign:
    first = words[0] if words else "-"
    if first in dialects:
        return dialects[first](words[1:])
    if len(words) > 1:
        known = ", ".join(dialects)
        raise ConfigError([("", f"{first!r} is not a command line that can be read here; known: {known}; see --help")])
    source = "the text" if first == "-" else first
    found = read(sys.stdin.read() if first == "-" else read_text(Path(first)))
    if found is None:
        reads = importlib.import_module("trainers.families").get_family(name).reads
        raise ConfigError([("", f"{source} is none of what can be read here: {reads}")])
    return found


def _usage(name: str, dialects: Mapping[str, Any]) -> str:
    family = importlib.import_module("trainers.families").get_family(
        name
    )  # the table knows this room, not it the table
    door = f"python -m trainers.families.{name}.compat"
    lines = [f"usage: {door} [FILE or -]", *(f"       {door} {dialect} --key value ..." for dialect in dialects)]
    about = f"Prints a config or command of another trainer as a config of Dailies. It can read: {family.reads}."
    return "\n".join([*lines, "", about, ""])


def as_yaml(foreign: Foreign) -> str:
    """The settings as YAML under their notes. ConfigError when they could not run, other than for what is missing."""
    families = importlib.import_module("trainers.families")
    lacking = foreign.lacking(foreign.settings)
    if not lacking:
        parse = families.parse_config if foreign.kind == "train" else families.parse_sample_config
        parse(foreign.settings)
    door = f"python -m trainers.{foreign.kind} --config FILE"
    if foreign.run_dir is not None:
        door += f" --run-dir {foreign.run_dir}" + ("/NAME" if foreign.numbered else "")
    said = [f"to run: {door}", *(f"{where} {what}" for where, what in lacking), *foreign.notes]
    comments = "".join(f"# {' '.join(line.split())}\n" for line in said)
    return comments + dump_yaml(foreign.settings)
