"""Shell text: the one command in it that runs a trainer, and the options of that command. No torch.

Nothing is run. What the scripts of trainers have is read: continued lines, comments, quotes, variables, lists, loops
of one turn, ``eval``; and a command as documents print it, with comments between its lines.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from trainers.settings import ConfigError


@dataclass(frozen=True)
class Command:
    """One command of a shell text. script: the name of what runs, without its folder. launcher: the words before it."""

    script: str
    arguments: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    launcher: tuple[str, ...] = ()

    def launched_with(self, *names: str) -> str | None:
        """The value of the launcher's option that has one of the names (``num_processes``), or None."""
        words = [part for word in self.launcher for part in word.split("=", 1)]
        for name, value in pairwise(words):
            if name.startswith("--") and name.lstrip("-").replace("-", "_") in names:
                return value
        return None

    @property
    def processes(self) -> int:
        """How many processes torchrun or accelerate launch start on the machine."""
        given = self.launched_with("nproc_per_node", "num_processes")
        return max(1, int(given)) if given is not None and given.isdigit() else 1


def read_command(text: str, scripts: Sequence[str]) -> Command | None:
    """The command of a shell text that runs one of `scripts` (file names), or whose first word is one of them.

    Knows comments, continued lines (of bash, PowerShell and cmd), assignments, quotes, launchers and ``-m module``.
    None when there is no such command; ConfigError when there are several, or a variable has no value.
    """
    found = _found(text, scripts)
    if len(found) > 1:
        names = ", ".join(command.script for command in found)
        raise ConfigError([("", f"there are {len(found)} commands in this text ({names}); give one of them")])
    _check_variables(found)
    return found[0] if found else None


def read_commands(
    text: str, scripts: Sequence[str], told_by: Mapping[str, Sequence[str]] | None = None
) -> list[Command]:
    """All commands of a shell text that run one of `scripts`, in order; see `read_command`.

    told_by: for scripts whose name others use as well, options of which theirs has one. ConfigError when a variable of
    one of them has no value.
    """
    told_by = told_by or {}
    meant = [script for script in scripts if any(option in text for option in told_by.get(script, [""]))]
    found = [command for command in _found(text, meant) if _has_one(command, told_by.get(command.script))]
    _check_variables(found)
    return found


def _found(text: str, scripts: Sequence[str]) -> list[Command]:
    if not any(_named(script, text) for script in scripts):
        return []
    return [command for words in _commands(_joined(text), {}) if (command := _as_command(words, scripts))]


def _has_one(command: Command, options: Sequence[str] | None) -> bool:
    return options is None or any(word.partition("=")[0] in options for word in command.arguments)


def _check_variables(commands: Sequence[Command]) -> None:
    """ConfigError for a word of theirs in which a variable has no value, or several."""
    for word in (word for command in commands for word in command.arguments):
        _, unset, rest = word.partition(_UNSET)
        if unset:
            name, loop, turns = rest.partition(_UNSET)[0].partition("=")
            if loop:
                values = ", ".join(turns.split(_TURN))
                raise ConfigError([("", f"the text runs the command for each {name} of {values}; leave one of them")])
            raise ConfigError([("", f"the command uses ${name}, which the text does not set; write its value instead")])


_FILES = (".py", ".bash")  # what a script's name ends in; a tool of a name without one must be followed by an option


def _named(script: str, text: str) -> bool:
    if script.endswith(_FILES):
        return script.removesuffix(".py") in text
    return re.search(rf"(?<![\w./-]){re.escape(script)}[\s\\^`]+--", text) is not None


# A document may say of each line of a command what it means, below it. In a shell the command would end there.
_EXPLAINED = re.compile(r'\\[ \t]*\r?\n(?:[ \t\r]*(?:#[^\n]*)?\n)+(?=[ \t]*(?:--\w|["$]|[^\s#]+\.py\b))')


def _joined(text: str) -> str:
    return _EXPLAINED.sub("\\\\\n", text)


def _as_command(words: tuple[dict[str, str], list[str]], scripts: Sequence[str]) -> Command | None:
    environment, line = words
    for place, word in enumerate(line):
        name = re.split(r"[\\/]", word)[-1]
        if place and line[place - 1] == "-m":
            name = word.rpartition(".")[2] + ".py"
        rest = line[place + 1 :]
        option = any(word.startswith(("--", _UNSET)) or _SHORT.fullmatch(word) for word in rest)
        spoken_of = bool(rest) and not option and not _is_launched(line, place)  # in a sentence
        if name in scripts and not spoken_of and (name.endswith(_FILES) or (rest and rest[0].startswith("--"))):
            return Command(name, tuple(rest), environment, tuple(line[:place]))
    return None


_SHORT = re.compile(r"-[A-Za-z]{1,2}")
_INTERPRETERS = ("python", "python3", "bash", "sh")


def _is_launched(line: Sequence[str], place: int) -> bool:
    """Whether an interpreter is told to run the word at `place` with a file or two: in prose more words follow."""
    return place > 0 and re.split(r"[\\/]", line[place - 1])[-1] in _INTERPRETERS and len(line) - place <= 3


# --- words -----------------------------------------------------------------------------------------------------------

# A line that ends so goes on in the next, which a text that was cut out may lack.
_BLANK = re.compile(r"(?:[ \t\r]|[\\^`][ \t]*(?:\r?\n|\Z)|(?<=\s)\\(?=[ \t]))+")
_END = re.compile(r"\n|;|&&?|\|\|?")
_REDIRECT = re.compile(r"\d*(?:>>?|<)&?[ \t]*[^\s;&|]*")
_SINGLE = re.compile(r"'([^']*)'")
_DOUBLE = re.compile(r'"((?:[^"\\]|\\.)*)"', re.DOTALL)
_PLAIN = re.compile(r"(?:[^\s'\"\\;&|<>^`]|[\\^`](?!\s)|(?<=\S)\\[ \t](?=\S))+")
_LIST = re.compile(r"([A-Za-z_]\w*)(\+?)=\(")
_LISTED = re.compile(r"(?:[^\s'\"\\()]|\\(?!\s))+")  # a plain word between its brackets
# ${NAME}, ${NAME:-what else}, ${NAME[@]}, $NAME; or what another command answers, which is not run
_VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)(?::?-([^}]*)|\[[@*]\])?\}|\([^)]*\)?)")
_ASSIGNED = re.compile(r"([A-Za-z_]\w*)=(.*)", re.DOTALL)
_KEYWORDS = ("do", "then", "else")

_UNSET = "\0"  # stands around the name of a variable that has no value, or several in turn
_TURN = "\2"  # stands between these
_BETWEEN = "\1"  # stands between the words that a variable holds


def _commands(text: str, variables: dict[str, str]) -> Iterator[tuple[dict[str, str], list[str]]]:
    """(environment, words) of each command of a shell text, in order. variables: those that are set, and will be."""
    words: list[str] = []
    word: str | None = None
    place = 0
    while place <= len(text):
        blank, end = _BLANK.match(text, place), _END.match(text, place)
        if word is not None and (blank or end or place == len(text)):
            words += _split(word) if _without_assignments([*words, word])[1] else [word.replace(_BETWEEN, " ")]
            word = None
        if end or place == len(text):
            yield from _carried_out(words, variables)
            words, place = [], end.end() if end else len(text) + 1
        elif blank:
            place = blank.end()
        elif word is None and text[place] == "#":
            place = _past_comment(text, place)
        elif word is None and (redirect := _REDIRECT.match(text, place)):
            place = redirect.end()
        elif word is None and (listed := _LIST.match(text, place)):
            name, more = listed.groups()
            values, place = _list(text, listed.end(), variables)
            before = [variables[name]] if more and name in variables else []
            variables[name] = _BETWEEN.join([*before, *values]) or _BETWEEN
        else:
            piece, place = _piece(text, place, variables)
            word = (word or "") + piece


def _carried_out(words: Sequence[str], variables: dict[str, str]) -> Iterator[tuple[dict[str, str], list[str]]]:
    """The command that these words are; a loop and assignments change `variables`, ``eval`` reads its words again."""
    environment, rest = _without_assignments(words)
    while rest and rest[0] in _KEYWORDS:
        rest = rest[1:]
    if not rest:
        variables |= environment
    elif rest[0] == "for" and len(rest) > 3 and rest[2] == "in":
        turns = [re.sub(r"[^\w.+/-]", "_", turn) for turn in rest[3:]]
        several = f"{_UNSET}{rest[1]}={_TURN.join(turns)}{_UNSET}"
        variables[rest[1]] = rest[3] if len(rest) == 4 else several
    elif rest[0] == "eval":
        yield from _commands(" ".join(rest[1:]), variables)
    else:
        yield {**variables, **environment}, rest


def _split(word: str) -> list[str]:
    """The words that a word is when lists are written out in it; an empty list is none."""
    return [part for part in word.split(_BETWEEN) if part] if _BETWEEN in word else [word]


def _past_comment(text: str, place: int) -> int:
    return min(len(text), place + len(text[place:].split("\n", 1)[0]))


def _list(text: str, place: int, variables: Mapping[str, str]) -> tuple[list[str], int]:
    """The words between brackets, from behind the first one on, and where the text goes on."""
    words: list[str] = []
    word: str | None = None
    while place < len(text) and (text[place] != ")" or word is not None):
        blank = re.compile(r"(?:\s|\\[ \t]*\r?\n)+").match(text, place)
        if word is not None and (blank or text[place] == ")"):
            words += _split(word)
            word = None
        elif blank:
            place = blank.end()
        elif word is None and text[place] == "#":
            place = _past_comment(text, place)
        else:
            piece, place = _piece(text, place, variables, _LISTED)
            word = (word or "") + piece
    return words, place + 1


def _piece(
    text: str, place: int, variables: Mapping[str, str], plain_word: re.Pattern[str] = _PLAIN
) -> tuple[str, int]:
    """The part of a word that begins here, and where it ends."""

    def value(match: re.Match[str]) -> str:
        name = match.group(1) or match.group(2) or "(...)"
        otherwise = f"{_UNSET}{name}{_UNSET}" if match.group(3) is None else match.group(3)
        return variables.get(name, otherwise)

    if single := _SINGLE.match(text, place):
        return single.group(1), single.end()
    if double := _DOUBLE.match(text, place):
        inner = re.sub(r'\\(?:(["\\$`])|\r?\n)', lambda found: found.group(1) or "", double.group(1))
        return _VARIABLE.sub(value, inner), double.end()
    if plain := plain_word.match(text, place):
        spread = _VARIABLE.sub(lambda found: re.sub(r"[ \t\r\n]+", _BETWEEN, value(found)), _unescaped(plain.group()))
        return spread, plain.end()
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


# --- options ---------------------------------------------------------------------------------------------------------


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
