"""What CogVideoX reads of other trainers: ``python -m trainers.families.cogvideox.compat [FILE or -]``, or the name of
a script and its own arguments: ``... compat train_cogvideox_lora.py --instance_data_root ...``. No torch.
"""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Sequence

from trainers.families.cogvideox import compat_diffusers, compat_factory, compat_trainer
from trainers.foreign import Foreign, main, the_only
from trainers.settings import ConfigError
from trainers.shell import Command, read_command

_SCRIPTS = (*compat_diffusers.DIALECTS, *compat_factory.DIALECTS)
_CURRENT = re.compile(rf"--({'|'.join(compat_trainer.OWN_FLAGS)})\b")
#: What a document has where a person is to write a value.
_PLACEHOLDER = re.compile(r"--(\w+)[ =]+[\"']?(<[A-Za-z][\w -]*>)")


def read_foreign(text: str) -> Foreign | None:
    """A command of one of CogVideoX's trainers in our words; None for anything else. ConfigError when it is one, but
    cannot be meant."""
    of_diffusers = re.search(r"examples[/\\]cogvideo\b", text) is not None
    return the_only(text, functools.partial(_read, of_diffusers=of_diffusers))


def _read(text: str, of_diffusers: bool) -> Foreign | None:
    current = (compat_trainer.SCRIPT,) if _CURRENT.search(text) else ()
    scripts = [script for script in (*_SCRIPTS, *current) if script.removesuffix(".py") in text]
    empty = _PLACEHOLDER.findall(text) if scripts else []
    if empty:
        raise ConfigError(
            [(f"--{flag}", f"is still {what}, as the document has it; write a value") for flag, what in empty]
        )
    command = read_command(text, scripts)
    return None if command is None else _translated(command, of_diffusers)


def _translated(command: Command, of_diffusers: bool = False) -> Foreign:
    if command.script == compat_trainer.SCRIPT:
        return compat_trainer.translate(command)
    if command.script in compat_factory.DIALECTS:
        return compat_factory.translate(command)
    return compat_diffusers.translate(command, diffusers=of_diffusers)


def from_arguments(script: str, arguments: Sequence[str]) -> Foreign:
    """The arguments of one of the scripts in our words."""
    return _translated(Command(script, tuple(arguments)))


if __name__ == "__main__":
    doors = {script: functools.partial(from_arguments, script) for script in (*_SCRIPTS, compat_trainer.SCRIPT)}
    sys.exit(main("cogvideox", read_foreign, doors))
