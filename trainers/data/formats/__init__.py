"""Datasets in the layouts of other trainers, read where they lie: one file per layout. No torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from trainers.config import DatasetConfig
from trainers.data.clips import Dataset, DatasetError, ReadableDataset
from trainers.data.facts import Report
from trainers.data.formats import hub, listed, paired, prepared, sidecar, webvid
from trainers.data.originals import Entry, Originals, is_file, located

READERS: dict[str, Callable[[DatasetConfig, Path], Sequence[Entry]]] = {
    "list": listed.read,
    "paired": paired.read,
    "prepared": prepared.read,
    "sidecar": sidecar.read,
    "webvid": webvid.read,
}


def open_dataset(
    config: DatasetConfig, root: Path | None = None, report: Report | None = None, *, fetch: bool = True
) -> ReadableDataset:
    """The dataset that a config names. root: what relative paths count from, else the current folder.

    report: told of the videos of other formats that must be measured first, which takes time when there are many.
    fetch: get from the Hub what is not on this machine, which may take long; else NotHereYet. DatasetError, with the
    setting that can mend it, where there is no such dataset.
    """
    root = root or Path()
    path = located(root, config.path)
    if config.format == "dailies":
        if is_file(path):
            raise DatasetError(
                f"{path} is a file, not the folder of a dataset; for a CSV file set dataset.format to webvid"
            )
        return Dataset.open(path, config.max_clips)
    memory = _memory(config, root)
    if config.format == "hub":
        return Originals(path, lambda: hub.read(config, root, memory, fetch), memory, report)
    read = READERS[config.format]
    return Originals(path, lambda: read(config, root), memory, report)


def _memory(config: DatasetConfig, root: Path) -> Path | None:
    """Where facts and pictures of videos may be kept that lie in folders of their own: beside the encoded samples, or
    in the person's cache."""
    if config.cache_dir:
        return located(root, config.cache_dir)
    try:
        return Path.home() / ".cache" / "dailies"
    except RuntimeError:  # no home
        return None
