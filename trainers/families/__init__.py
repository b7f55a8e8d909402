"""The table of families, and the doors from a file to a family's own config. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trainers.config import ConfigError, SampleConfig, TrainConfig, apply_overrides, read_yaml, validate
from trainers.families.animatediff.config import FAMILY as ANIMATEDIFF
from trainers.families.base import ModelFamily

FAMILIES: dict[str, ModelFamily] = {family.name: family for family in (ANIMATEDIFF,)}


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


def parse_config(data: Mapping[str, Any]) -> TrainConfig:
    """Settings as the family's own training config."""
    return validate(family_of(data).train_config, data)


def load_config(path: Path | str, overrides: Sequence[str] = ()) -> TrainConfig:
    """A training config from YAML, as the family's own subclass. Raises ConfigError."""
    return parse_config(apply_overrides(read_yaml(Path(path)), overrides))


def parse_sample_config(data: Mapping[str, Any]) -> SampleConfig:
    """Settings as the family's own comparison config."""
    return validate(family_of(data).sample_config, data)


def load_sample_config(path: Path | str, overrides: Sequence[str] = ()) -> SampleConfig:
    """A comparison config from YAML, as the family's own subclass. Raises ConfigError."""
    return parse_sample_config(apply_overrides(read_yaml(Path(path)), overrides))
