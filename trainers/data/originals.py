"""A dataset whose videos are read where they lie: nothing is copied, changed or written beside them. No torch."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TypeVar

from trainers.data.clips import Clip, DatasetError, ReadableDataset, clip_of
from trainers.data.facts import Facts, Report, measure

T = TypeVar("T")


@dataclass(frozen=True)
class Entry:
    """A video and its caption as a layout names them. name: what to call it, with / between folders.

    problem: why it cannot be used, known without looking into the file. remark: what is unusual about the entry itself.
    """

    file: Path
    text: str
    name: str
    problem: str = ""
    remark: str = ""


class Originals(ReadableDataset):
    """The videos that a layout names, in its order; one that is named twice is two clips.

    entries: reads the layout. memory: folder for facts and pictures, which can be made again at any time.
    """

    def __init__(
        self, path: Path, entries: Callable[[], Sequence[Entry]], memory: Path | None, report: Report | None = None
    ) -> None:
        super().__init__(path)
        self._entries, self._memory, self._report = entries, memory, report
        self._files: dict[str, Path] = {}
        self.reload()

    def reload(self) -> None:
        entries = self._entries()
        keep = self._memory / "clips.jsonl" if self._memory else None
        facts = measure((entry.file for entry in entries if not entry.problem), keep, self._report)
        clips: list[Clip] = []
        files, problems, remarks = {}, {}, {}
        for entry, name in zip(entries, unlike(entry.name for entry in entries), strict=True):
            found = None if entry.problem else facts[entry.file]
            files[name] = entry.file
            if isinstance(found, Facts):
                clips.append(clip_of(name, entry.text, found))
                remarks[name] = "; ".join([*filter(None, [entry.remark]), *found.unusual])
            else:
                clips.append(clip_of(name, entry.text, None))
                problems[name] = entry.problem or f"{found}; remove the clip"
        self._clips, self._files, self._problems, self._remarks = tuple(clips), files, problems, remarks

    def file(self, clip: Clip) -> Path:
        return self._files[clip.file_name]

    @property
    def _thumbnails(self) -> Path:
        if self._memory is None:
            raise DatasetError(f"there is no folder for pictures of {self.name}; set dataset.cache_dir")
        return self._memory / "thumbs" / hashlib.sha256(str(self.path.absolute()).encode()).hexdigest()[:12]


# --- what the layouts share -------------------------------------------------------------------------------------------


def located(base: Path, text: str) -> Path:
    """The file or folder that a text names, from `base` on. Where there is none and the text has backslashes, as
    Windows writes paths, they are read as slashes."""
    path = base / _at_home(text)
    if "\\" in text and not is_there(path):
        path = base / _at_home(text.replace("\\", "/"))
    return path


def is_there(path: Path) -> bool:
    """Whether a path leads anywhere; also for texts that cannot be a path at all."""
    try:
        path.stat()
    except (OSError, ValueError):
        return False
    return True


def is_file(path: Path) -> bool:
    return is_there(path) and path.is_file()


def missing(file: Path, text: str, way: str) -> str:
    """The sentence for a file that is not there. text: as the layout names it; way: what to do."""
    foreign = os.name != "nt" and re.match(r"[A-Za-z]:[\\/]|\\\\", text)
    where = f"{text} is a path of a Windows machine" if foreign else f"there is no file {file}"
    return f"{file.name} is missing: {where}; {way}"


def first(found: Iterable[T], is_there: Callable[[T], bool], most: int | None) -> list[T]:
    """Up to the `most`-th that is there, and those between that are not, which are told of."""
    kept: list[T] = []
    there = 0
    for item in found:
        if there == most:
            break
        kept.append(item)
        there += is_there(item)
    return kept


def unlike(names: Iterable[str]) -> list[str]:
    """The names, a repeated one with its number: ``a.mp4``, ``a.mp4 (2)``."""
    names = list(names)
    taken = set(names)
    seen: set[str] = set()
    counts: dict[str, int] = {}
    found = []
    for name in names:
        unique = name
        if name in seen:
            number = counts.get(name, 1) + 1
            while (unique := f"{name} ({number})") in taken:
                number += 1
            counts[name] = number
            taken.add(unique)
        seen.add(name)
        found.append(unique)
    return found


def place(dataset: ReadableDataset, folder: Path) -> list[tuple[Clip, Path]]:
    """The videos of a dataset, put into a new folder under names that occur once: linked where the disk can, else
    copied. DatasetError for a clip that cannot be used."""
    for clip in dataset.clips:
        problem = dataset.problem(clip)
        if problem:
            raise DatasetError(f"dataset {dataset.name} cannot be written in another layout: {problem}")
    try:
        folder.mkdir(parents=True)
        stems = unlike(PurePosixPath(clip.name).stem for clip in dataset.clips)
        placed = []
        for clip, stem in zip(dataset.clips, stems, strict=True):
            source = dataset.file(clip)
            target = folder / f"{stem}{source.suffix}"
            try:
                target.hardlink_to(source.resolve())
            except OSError:  # another disk, or one that knows no links
                shutil.copyfile(source, target)
            placed.append((clip, target))
    except FileExistsError as error:
        raise DatasetError(f"{folder} exists already; choose another folder") from error
    except OSError as error:
        raise DatasetError(f"{folder} cannot be written: {error.strerror or error}") from error
    return placed


def _at_home(text: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError:  # ~ of somebody who is not here
        return Path(text)
