"""list: videos and prompts named in the config itself, as trainers on one or a few videos have it (Tune-A-Video and
what came of it)."""

from __future__ import annotations

from pathlib import Path

from trainers.config import DatasetConfig
from trainers.data.clips import DatasetError
from trainers.data.originals import Entry, first, is_there, located, missing


def read(config: DatasetConfig, root: Path) -> list[Entry]:
    """The listed videos in their order, relative ones counted from `dataset.path`; a single prompt is for all."""
    base = located(root, config.path)
    prompts = config.prompts if len(config.prompts) > 1 else config.prompts * len(config.videos)
    entries = [_entry(base, video, text) for video, text in zip(config.videos, prompts, strict=True)]
    if not is_there(base) and any(base in entry.file.parents for entry in entries):
        raise DatasetError(f"folder {base} does not exist, from which the paths of dataset.videos count")
    return first(entries, lambda entry: not entry.problem, config.max_clips)


def _entry(base: Path, video: str, text: str) -> Entry:
    file = located(base, video)
    name = (file.relative_to(base) if file.is_relative_to(base) else file).as_posix()
    if not is_there(file):
        return Entry(file, text, name, problem=missing(file, video, "correct its line in dataset.videos"))
    return Entry(file, text, name)
