"""Configs and command lines of other trainers: how they are read, and what a family's ``compat.py`` makes of them.

What is the same for every family stands here: Markdown fences, shell text, options, upstream's keys with their types
and defaults, and the door ``python -m trainers.families.X.compat``. No torch.
"""

from __future__ import annotations

import difflib
import importlib
import io
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
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


# --- shell text ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Command:
    """One command of a shell text. script: the name of what runs, without its folder. launcher: the words before it."""

    script: str
    arguments: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    launcher: tuple[str, ...] = ()

    @property
    def processes(self) -> int:
        """How many processes torchrun or accelerate launch start on the machine."""
        words = [word.replace("=", " ").split() for word in self.launcher]
        flat = [part for parts in words for part in parts]
        for name, value in pairwise(flat):
            known = name.lstrip("-").replace("-", "_") in ("nproc_per_node", "num_processes")
            if name.startswith("--") and known and value.isdigit():
                return max(1, int(value))
        return 1


def read_command(text: str, scripts: Sequence[str]) -> Command | None:
    """The command of a shell text that runs one of `scripts` (file names), or whose first word is one of them.

    Knows comments, continued lines (of bash, PowerShell and cmd), assignments, quotes, launchers and ``-m module``.
    None when there is no such command; ConfigError when there are several, or a variable has no value.
    """
    if not any(_named(script, text) for script in scripts):
        return None
    found = [command for words in _commands(text) if (command := _as_command(words, scripts))]
    if not found:
        return None
    if len(found) > 1:
        names = ", ".join(command.script for command in found)
        raise ConfigError([("", f"there are {len(found)} commands in this text ({names}); give one of them")])
    for word in found[0].arguments:
        _, unset, name = word.partition(_UNSET)
        if unset:
            name = name.partition(_UNSET)[0]
            raise ConfigError([("", f"the command uses ${name}, which the text does not set; write its value instead")])
    return found[0]


def _named(script: str, text: str) -> bool:
    if script.endswith(".py"):
        return script.removesuffix(".py") in text
    return re.search(rf"(?<![\w./-]){re.escape(script)}[\s\\^`]+--", text) is not None


def _as_command(words: tuple[dict[str, str], list[str]], scripts: Sequence[str]) -> Command | None:
    environment, line = words
    for place, word in enumerate(line):
        name = re.split(r"[\\/]", word)[-1]
        if place and line[place - 1] == "-m":
            name = word.rpartition(".")[2] + ".py"
        rest = line[place + 1 :]
        if name in scripts and (name.endswith(".py") or (rest and rest[0].startswith("--"))):
            return Command(name, tuple(rest), environment, tuple(line[:place]))
    return None


# A line that ends so goes on in the next, which a text that was cut out may lack.
_BLANK = re.compile(r"(?:[ \t\r]|[\\^`][ \t]*(?:\r?\n|\Z)|(?<=\s)\\(?=[ \t]))+")
_END = re.compile(r"\n|;|&&?|\|\|?")
_REDIRECT = re.compile(r"\d*(?:>>?|<)&?[ \t]*[^\s;&|]*")
_SINGLE = re.compile(r"'([^']*)'")
_DOUBLE = re.compile(r'"((?:[^"\\]|\\.)*)"', re.DOTALL)
_PLAIN = re.compile(r"(?:[^\s'\"\\;&|<>^`]|[\\^`](?!\s)|(?<=\S)\\[ \t](?=\S))+")
_VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)\}|\([^)]*\)?)")  # or what another command answers, which is not run
_UNSET = "\0"  # stands around the name of a variable that has no value
_ASSIGNED = re.compile(r"([A-Za-z_]\w*)=(.*)", re.DOTALL)


def _commands(text: str) -> Iterator[tuple[dict[str, str], list[str]]]:
    """(environment, words) of each command of a shell text, in order."""
    variables: dict[str, str] = {}
    words: list[str] = []
    word: str | None = None
    place = 0
    while place <= len(text):
        blank, end = _BLANK.match(text, place), _END.match(text, place)
        if word is not None and (blank or end or place == len(text)):
            words.append(word)
            word = None
        if end or place == len(text):
            environment, rest = _without_assignments(words)
            if rest:
                yield {**variables, **environment}, rest
            else:
                variables |= environment
            words, place = [], end.end() if end else len(text) + 1
        elif blank:
            place = blank.end()
        elif word is None and text[place] == "#":
            place = min(len(text), place + len(text[place:].split("\n", 1)[0]))
        elif word is None and (redirect := _REDIRECT.match(text, place)):
            place = redirect.end()
        else:
            piece, place = _piece(text, place, variables)
            word = (word or "") + piece


def _piece(text: str, place: int, variables: Mapping[str, str]) -> tuple[str, int]:
    """The part of a word that begins here, and where it ends."""

    def value(match: re.Match[str]) -> str:
        name = match.group(1) or match.group(2) or "(...)"
        return variables.get(name, f"{_UNSET}{name}{_UNSET}")

    if single := _SINGLE.match(text, place):
        return single.group(1), single.end()
    if double := _DOUBLE.match(text, place):
        return _VARIABLE.sub(value, re.sub(r'\\(["\\$`])', r"\1", double.group(1))), double.end()
    if plain := _PLAIN.match(text, place):
        return _VARIABLE.sub(value, _unescaped(plain.group())), plain.end()
    if text[place] in "'\"":
        line = text.count("\n", 0, place) + 1
        raise ConfigError([("", f"the quote in line {line} of the command is not closed")])
    return text[place], place + 1


def _unescaped(word: str) -> str:
    """A word without its escapes. A backslash between two letters is none: it is a folder's, as Windows writes it."""
    word = re.sub(r"(?<=[\w:.\-])\\(?=\w)|^\.?\.?\\(?=\w)", lambda found: found.group().replace("\\", "/"), word)
    return re.sub(r"\\(.)", r"\1", word)


def _without_assignments(words: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """(NAME=value at the beginning, the words after them)."""
    environment: dict[str, str] = {}
    rest = list(words)
    while rest:
        assigned = _ASSIGNED.fullmatch(rest[0])
        if assigned:
            environment[assigned.group(1)] = assigned.group(2)
        elif rest[0] not in ("$", "env", "export"):  # a prompt, or what stands before an assignment
            break
        del rest[0]
    return environment, rest


def options(arguments: Sequence[str]) -> dict[str, Any]:
    """Options by name, without dashes: ``--key value``, ``--key=value``; True for a flag, a list for several values.

    Of an option that is repeated the last one counts, as argparse has it.
    """
    found: dict[str, list[str]] = {}
    values: list[str] | None = None
    for word in arguments:
        if word.startswith("--") and len(word) > 2:
            name, equals, value = word[2:].partition("=")
            values = found[name.replace("-", "_")] = [value] if equals else []
        elif values is None:
            raise ConfigError([("", f"{word!r} stands where an option such as --name value is expected")])
        else:
            values.append(word)
    return {name: given[0] if len(given) == 1 else list(given) or True for name, given in found.items()}


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
