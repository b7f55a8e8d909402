"""The table of families, and the doors from a file to a family's own config. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trainers.config import SampleConfig, TrainConfig
from trainers.data.images import problem_of_image
from trainers.families.animatediff.config import FAMILY as ANIMATEDIFF
from trainers.families.base import Finding, ModelFamily
from trainers.families.cogvideox.config import FAMILY as COGVIDEOX
from trainers.families.dynamicrafter.config import FAMILY as DYNAMICRAFTER
from trainers.families.mochi.config import FAMILY as MOCHI
from trainers.foreign import Foreign, Kind, blocks
from trainers.settings import ConfigError, apply_overrides, parse_yaml, read_text, validate

FAMILIES: dict[str, ModelFamily] = {family.name: family for family in (ANIMATEDIFF, COGVIDEOX, MOCHI, DYNAMICRAFTER)}


def get_family(name: str) -> ModelFamily:
    """The family of that name; ConfigError lists the known ones."""
    try:
        return FAMILIES[name]
    except (KeyError, TypeError):
        raise ConfigError([("family", f"{name!r} is not a known family; known: {', '.join(FAMILIES)}")]) from None


def family_of(data: Mapping[str, Any]) -> ModelFamily:
    """The family that settings name."""
    if "family" not in data:
        raise ConfigError([("family", f"must be set; known: {', '.join(FAMILIES)}")])
    return get_family(data["family"])


def file_findings(config: TrainConfig | SampleConfig, root: Path = Path()) -> list[Finding]:
    """What can be said of the files that a config names, before anything is loaded: what the family finds, and the
    images. Relative paths of images count from `root`."""
    family = get_family(config.family)
    found = list(family.findings(config))
    if isinstance(config, TrainConfig):
        where, images, ends = "validation.images", config.validation.images, config.validation.last_images
    else:
        where, images, ends = "images", config.images, config.last_images
    if images and family.takes_image(config) is False:
        text = f"{where} are given, but {family.title} with {config.base_model} begins from none; leave them empty"
        return [*found, Finding("error", text, where)]
    named = [(file, where) for file in images] + [(file, where.replace("images", "end_images")) for file in ends]
    for file, place in dict.fromkeys(named):
        problem = problem_of_image(root / Path(file).expanduser())
        if problem:
            found.append(Finding("error", f"{place} cannot be used: {problem}", place))
    return found


def parse_config(data: Mapping[str, Any]) -> TrainConfig:
    """Settings as the family's own training config."""
    return validate(family_of(data).train_config, data)


def load_config(path: Path | str, overrides: Sequence[str] = ()) -> TrainConfig:
    """A training config from a file (YAML of ours, or what a family reads), as the family's own subclass.

    Raises ConfigError."""
    return parse_config(changed(read_file(path, "train"), overrides))


def parse_sample_config(data: Mapping[str, Any]) -> SampleConfig:
    """Settings as the family's own comparison config."""
    return validate(family_of(data).sample_config, data)


def load_sample_config(path: Path | str, overrides: Sequence[str] = ()) -> SampleConfig:
    """A comparison config from a file (YAML of ours, or what a family reads), as the family's own subclass.

    Raises ConfigError."""
    return parse_sample_config(changed(read_file(path, "sample"), overrides))


def read_file(path: Path | str, kind: Kind) -> Foreign:
    """The settings in a file, for training or for a comparison; see `read_settings`."""
    return read_settings(read_text(Path(path)), kind, str(path))


def read_settings(text: str, kind: Kind, source: str = "the text") -> Foreign:
    """The settings in a text: a config of ours as it stands, or what a family makes of an upstream config or command.

    ConfigError when it is neither, and when it is for the other kind of run; it names the right door then.
    """
    within = blocks(text)
    failure, data = None, {}
    try:
        data = parse_yaml(within[0] if len(within) == 1 else text, source)
    except ConfigError as error:
        failure = error
    if "family" in data:
        return Foreign(kind, data)
    for family in FAMILIES.values():
        found = family.read_foreign(text)
        if found is not None and found.kind != kind:
            does, door = _DOORS[found.kind]
            raise ConfigError([("", f"{source} {does} with {family.title}; {door}")])
        if found is not None:
            return found
    other = "; of other trainers can be read: " + ", ".join(f.reads for f in FAMILIES.values() if f.reads)
    if failure is None:
        raise ConfigError([("family", f"must be set; known: {', '.join(FAMILIES)}{other}")])
    raise ConfigError([(where, what if where else what + other) for where, what in failure.problems]) from failure


#: kind -> (what such a text does, where it belongs)
_DOORS: dict[Kind, tuple[str, str]] = {
    "train": ("trains", "give it to python -m trainers.train, or to Configure in the studio"),
    "sample": ("draws samples", "give it to python -m trainers.sample; in the studio, ask for it in Compare"),
}


def changed(found: Foreign, overrides: Sequence[str]) -> dict[str, Any]:
    """Settings with ``key.path=value`` put in; ConfigError when something is missing that only a person can give."""
    data = apply_overrides(found.settings, overrides)
    lacking = found.lacking(data)
    if lacking:
        raise ConfigError(lacking)
    return data
