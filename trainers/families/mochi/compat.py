"""What Mochi reads of other trainers: ``python -m trainers.families.mochi.compat [FILE or -]``, or the name of a script
and its own arguments: ``... compat preprocess.bash -v videos/ -o videos_prepared/ -w weights/ -n 37``. No torch.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from trainers.families.mochi import compat_commands, compat_factory, compat_genmo
from trainers.families.mochi.compat_commands import CLI, PREPARING, TRAIN, TRAINING
from trainers.foreign import Foreign, blocks, main
from trainers.settings import ConfigError, parse_yaml
from trainers.shell import Command, read_commands

#: Names that others have for their scripts as well -> an option by which ours is told.
_TOLD_BY = {CLI: ("--model_dir", "--model-dir"), TRAIN: ("--config-path", "--config_path")}
SCRIPTS = (*PREPARING, *TRAINING, CLI, compat_factory.SCRIPT)


def read_foreign(text: str) -> Foreign | None:
    """Genmo's YAML, its commands, or cogvideox-factory's mochi-1 command in our words; None for anything else.

    A command that prepares clips is one with the one that trains, and with the YAML that this one names. ConfigError
    when it is one of these, but cannot be meant."""
    configs: list[dict[str, Any]] = []
    commands: list[Command] = []
    for block in blocks(text):
        data = _genmos(block)
        if data is not None:
            configs.append(data)
        else:
            commands += read_commands(block, SCRIPTS, _TOLD_BY)
    return _together(configs, commands)


def _genmos(block: str) -> dict[str, Any] | None:
    try:
        data = _keyed(parse_yaml(block.expandtabs(2)))  # YAML itself allows no tab where people put one
    except ConfigError:
        return None
    return data if compat_genmo.knows(data) else None


def _keyed(data: Any) -> Any:
    """The same with texts for keys: YAML takes a number, a date or nothing for one as well."""
    return {str(key): _keyed(value) for key, value in data.items()} if isinstance(data, dict) else data


def _together(configs: Sequence[dict[str, Any]], commands: Sequence[Command]) -> Foreign | None:
    preparing = [command for command in commands if command.script in PREPARING]
    training = [command for command in commands if command.script in (*TRAINING, compat_factory.SCRIPT)]
    drawing = [command for command in commands if command.script == CLI]
    runs = max(len(configs), len(training)) or bool(preparing)
    if runs + len(drawing) > 1:
        raise ConfigError([("", f"there are {runs + len(drawing)} configs or commands in this text; give one of them")])
    if drawing:
        return compat_commands.draw(drawing[0])
    prepared = compat_commands.preparation(preparing)
    if training and training[0].script == compat_factory.SCRIPT:
        if configs:
            raise ConfigError([("", "there are 2 configs or commands in this text; give one of them")])
        return compat_factory.translate(training[0], prepared)
    if training:
        return compat_commands.train(training[0], prepared, configs[0] if configs else None)
    if configs:
        found = compat_genmo.translate(configs[0], prepared)
        return replace(found, notes=[*found.notes, *(prepared or {"notes": []})["notes"]])
    return None if prepared is None else compat_commands.prepare_alone(prepared)


def from_arguments(script: str, arguments: Sequence[str]) -> Foreign:
    """The arguments of one of the scripts in our words."""
    found = _together([], [Command(script, tuple(arguments))])
    assert found is not None
    return found


if __name__ == "__main__":
    doors = {script: functools.partial(from_arguments, script) for script in SCRIPTS}
    sys.exit(main("mochi", read_foreign, doors))
