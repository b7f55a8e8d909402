"""webvid: a CSV file of captions and videos beside a folder of the videos, as WebVid is published.

Columns: ``name`` is the caption; the video is the last part of ``contentUrl`` (as ModelScope swift reads it), or
``videoid.mp4`` (guoyww), which may also lie in the folder ``page_dir``.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping
from itertools import zip_longest
from pathlib import Path

import numpy as np

from trainers.config import DatasetConfig
from trainers.data.clips import DatasetError, ReadableDataset
from trainers.data.originals import Entry, first, is_file, is_there, located, missing, place

_VIDEO_COLUMNS = ("contentUrl", "videoid")
_NEEDED = "the columns name and contentUrl (or videoid)"


def read(config: DatasetConfig, root: Path) -> list[Entry]:
    """The rows in their order, up to the last that `dataset.max_clips` takes; those without a file among them.

    With `dataset.max_clips_at_random` the rows are drawn before it is known which have a file."""
    file = located(root, config.path)
    folder = located(root, config.video_folder) if config.video_folder else file.parent
    if not is_file(file):
        hint = "it is a folder; dataset.format webvid needs the CSV file" if is_there(file) else "it does not exist"
        raise DatasetError(f"CSV file {file} cannot be read: {hint}")
    if not folder.is_dir():
        raise DatasetError(f"the folder of the videos, {folder}, does not exist", "dataset.video_folder")
    rows: Iterable[Mapping[str, str]] = _rows(file)
    if config.max_clips and config.max_clips_at_random:
        rows = _some(list(rows), config.max_clips)
    if config.as_reference:
        rows = _filled(rows, file)
    found = rows_with_files(rows, folder, config.max_clips)
    if not found:
        raise DatasetError(f"CSV file {file} has no rows below its header")
    entries = [_entry(row, video, folder) for row, video in found]
    if all(entry.problem for entry in entries):
        count = "the one video" if len(entries) == 1 else f"none of the {len(entries)} videos"
        is_not = "is not" if len(entries) == 1 else "is"
        raise DatasetError(
            f"{count} that CSV file {file} names {is_not} in {folder} (such as {entries[0].file.name}); set "
            "dataset.video_folder to the folder of the videos",
            "dataset.video_folder",
        )
    return entries


def write(dataset: ReadableDataset, folder: Path) -> Path:
    """A new folder with ``videos/`` and ``videos.csv`` from a dataset; gives the CSV file."""
    placed = place(dataset, folder / "videos")
    file = folder / "videos.csv"
    with file.open("w", encoding="utf-8", newline="") as handle:
        rows = csv.writer(handle)
        rows.writerow(["name", "contentUrl"])
        rows.writerows([clip.text, video.name] for clip, video in placed)
    return file


def rows_with_files(
    rows: Iterable[Mapping[str, str]], folder: Path, max_clips: int | None = None, *, upstream_count: bool = False
) -> list[tuple[Mapping[str, str], Path | None]]:
    """Each row with its video, or None where there is none; no more than it takes for `max_clips` videos.

    upstream_count: keep one more than asked for, as swift does.
    """
    most = max_clips + 1 if max_clips is not None and upstream_count else max_clips
    found = ((row, next(filter(is_file, videos_of(row, folder)), None)) for row in rows)
    return first(found, lambda item: item[1] is not None, most)


def videos_of(row: Mapping[str, str], folder: Path) -> list[Path]:
    """Where the video of a row may lie, the most likely place first. Only / divides a `contentUrl`."""
    places = []
    url = row.get("contentUrl", "").rsplit("/", 1)[-1]
    if url:
        places.append(folder / url)
    if row.get("videoid"):
        name = f"{row['videoid']}.mp4"
        places.append(folder / name)
        if row.get("page_dir"):
            places.append(folder / row["page_dir"] / name)
    return places


def _some(rows: list[Mapping[str, str]], count: int) -> list[Mapping[str, str]]:
    """So many rows as ``DataFrame.sample(count, random_state=0)`` draws them, in its order; of fewer, all of them."""
    chosen = np.random.RandomState(0).choice(len(rows), min(count, len(rows)), replace=False)
    return [rows[place] for place in chosen]


def _entry(row: Mapping[str, str], video: Path | None, folder: Path) -> Entry:
    places = videos_of(row, folder)
    file = video or _likeliest(places, folder)
    name = (file.relative_to(folder) if file.is_relative_to(folder) else file).as_posix()
    text = row.get("name", "")
    if not places:
        return Entry(file, text, name, problem=f"the row of {text[:60]!r} names no video")
    if video is None:
        return Entry(file, text, name, problem=missing(file, file.name, "put it there or take its row out"))
    return Entry(file, text, name)


def _likeliest(places: list[Path], folder: Path) -> Path:
    """Where a missing video is missing. An address that names no file is filled in for the column's sake."""
    if not places:
        return folder
    return places[0] if places[0].suffix else places[-1]


#: What pandas, with which the reference reads its table, takes for an empty cell.
_EMPTY = (
    *("", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN"),
    *("<NA>", "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null"),
)


def _filled(rows: Iterable[Mapping[str, str]], file: Path) -> Iterator[Mapping[str, str]]:
    """The rows that have something in every column: lvdm's reader loses the others without a word, so nothing is said
    of them either. DatasetError when it is all of them."""
    kept = False
    for row in rows:
        if not any(cell in _EMPTY for cell in row.values()):
            kept = True
            yield row
    if not kept:
        raise DatasetError(
            f"CSV file {file} has an empty cell in every row, and such rows are lost here; fill all of its columns"
        )


def _rows(file: Path) -> Iterator[dict[str, str]]:
    """The rows below the header, by column. DatasetError names the file and what it lacks."""
    try:
        with file.open(encoding="utf-8-sig", newline="") as handle:
            lines = csv.reader(handle)
            header = next(lines, None)
            if header is None:
                raise DatasetError(f"CSV file {file} is empty; it needs {_NEEDED}")
            columns = [column.strip() for column in header]
            if "name" not in columns or not any(column in columns for column in _VIDEO_COLUMNS):
                shown = ",".join(header)
                raise DatasetError(
                    f"CSV file {file} needs {_NEEDED}, named in its first line, which is "
                    f"{shown[:80] + '...' if len(shown) > 80 else shown!r}"
                )
            for line in lines:
                if line:
                    yield dict(zip_longest(columns, line[: len(columns)], fillvalue=""))
    except UnicodeDecodeError as error:
        raise DatasetError(f"CSV file {file} is not UTF-8; save it as UTF-8") from error
    except csv.Error as error:
        raise DatasetError(f"CSV file {file} cannot be read: {error}") from error
    except OSError as error:
        raise DatasetError(f"CSV file {file} cannot be read: {error.strerror or error}") from error
