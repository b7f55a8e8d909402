"""What DynamiCrafter reads of other trainers: ``python -m trainers.families.dynamicrafter.compat [FILE or -]``, or the
name of a script and its own arguments: ``... compat trainer.py --base configs/a.yaml --train lightning.lora.rank=32``.
No torch.
"""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Sequence
from typing import Any

from trainers.families.dynamicrafter import compat_commands, compat_config
from trainers.families.dynamicrafter.compat_commands import INFER, TOOLS, TRAIN
from trainers.foreign import Foreign, blocks, main
from trainers.settings import ConfigError, parse_yaml
from trainers.shell import Command, read_commands

#: Names that others have for their scripts as well -> an option by which ours is told.
_TOLD_BY = {TRAIN: ("--base", "-b"), INFER: ("--ckpt_path",), "merge_models.py": ("--left",)}
SCRIPTS = (TRAIN, INFER, *TOOLS)
#: A variable that upstream's run.sh leaves to its machines.
_GPUS = "HOST_GPU_NUM"


def read_foreign(text: str) -> Foreign | None:
    """The trainer's YAML, its command, that of inference.py, or those of the fork's tools for LoRA files; None for
    anything else. A command and the YAML that it names are one config. ConfigError when it is one of these, but cannot
    be meant."""
    configs: list[dict[str, Any]] = []
    clips: list[dict[str, Any]] = []
    commands: list[Command] = []
    for block in blocks(text):
        data = _yaml(block)
        if data is not None and compat_config.knows(data):
            configs.append(data)
        elif data is not None and compat_config.knows_clips(data):
            clips.append(data)
        else:
            commands += read_commands(_set(block), SCRIPTS, _TOLD_BY)
    if clips and not configs and not commands and len(clips) == 1:
        return compat_config.translate_clips(clips[0])
    return _together(configs, commands)


def _set(text: str) -> str:
    """The text with the number of GPUs set, where it is left to the machine."""
    unset = f"${_GPUS}" in text and not re.search(rf"^\s*(export\s+)?{_GPUS}=", text, re.MULTILINE)
    return f"{_GPUS}=1\n{text}" if unset else text


def _yaml(block: str) -> dict[str, Any] | None:
    try:
        data = parse_yaml(block.expandtabs(2))
    except ConfigError:
        return None
    return {str(name): value for name, value in data.items()}


def _together(configs: Sequence[dict[str, Any]], commands: Sequence[Command]) -> Foreign | None:
    training = [command for command in commands if command.script == TRAIN]
    drawing = [command for command in commands if command.script == INFER]
    tools = [command for command in commands if command.script in TOOLS]
    runs = max(len(configs), len(training)) + len(drawing)
    if runs > 1:
        raise ConfigError([("", f"there are {runs} configs or commands in this text; give one of them")])
    if drawing:
        found = compat_commands.draw(drawing[0])
    elif training:
        found = compat_commands.train(training[0], configs[0] if configs else None)
    elif configs:
        found = compat_config.translate(configs[0])
    elif tools:
        raise compat_commands.explained(tools)
    else:
        return None
    return compat_commands.with_tools(found, tools)


def from_arguments(script: str, arguments: Sequence[str]) -> Foreign:
    """The arguments of one of the scripts in our words."""
    found = _together([], [Command(script, tuple(arguments))])
    assert found is not None
    return found


if __name__ == "__main__":
    doors = {script: functools.partial(from_arguments, script) for script in SCRIPTS}
    sys.exit(main("dynamicrafter", read_foreign, doors))
