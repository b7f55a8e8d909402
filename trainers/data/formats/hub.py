"""hub: a table of videos and captions as datasets of the Hugging Face Hub have it, from the Hub or from a folder.

Tables are metadata.jsonl, metadata.csv and metadata.parquet, else any .jsonl, .csv or .parquet of the part named train;
where the dataset's card names files, those. Videos are files that a column names, or lie in a parquet file themselves.
"""

from __future__ import annotations

import csv
import functools
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from typing import Any

import yaml

from trainers.config import DatasetConfig
from trainers.data.clips import DatasetError, NotHereYet
from trainers.data.formats import paired, parquet
from trainers.data.formats.repository import fetched
from trainers.data.originals import Entry, first, is_file, is_there, located, missing

TEXTS = (".jsonl", ".csv")
TABLES = (*TEXTS, parquet.SUFFIX)
_VIDEOS = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".gif")
#: Words by which the Hub tells the parts of a dataset, in the names of files and folders.
_TRAIN = {"train", "training"}
_OTHERS = {"test", "testing", "eval", "evaluation", "validation", "valid", "val", "dev"}
#: More videos than that are fetched by their folders: the Hub's client compares each name with each pattern.
_MOST_PATTERNS = 200


@dataclass(frozen=True)
class _Row:
    """A row of a table: where its video lies, or why there is none, and its caption."""

    video: str | Path
    text: str
    table: Path
    number: int
    problem: str = ""


def read(config: DatasetConfig, root: Path, memory: Path | None, fetch: bool = True) -> list[Entry]:
    """The rows in their order, up to the last that `dataset.max_clips` takes.

    memory: the folder for videos that are taken out of parquet files. fetch: download what is not on this machine and
    take out what was not taken out yet; else NotHereYet.
    """
    path = located(root, config.path)
    local = is_there(path)
    get = functools.partial(fetched, config.path, download=fetch)
    folder = path if local else get(["README.md", *(f"*{end}" for end in (*TEXTS, ".txt"))])
    tables = _tables(folder, config)
    if not tables and folder.is_dir() and paired.lies_in(folder, config):
        if not local:
            get([f"*{end}" for end in _VIDEOS])
        return paired.pairs(folder, config)
    if not tables and not local:
        named = _named_by_card(folder, config)
        below = f"{escape(config.hub_config)}/" if config.hub_config else ""
        folder = get(named or [f"{below}*{parquet.SUFFIX}"])
        tables = _tables(folder, config)
    if not tables:
        hint = f" in its part {config.hub_config}" if config.hub_config else ""
        raise DatasetError(
            f"{config.path} has no table of videos{hint}: no metadata.jsonl, metadata.csv or other file {_or(TABLES)}; "
            "a folder of videos with texts beside them is dataset.format sidecar"
        )
    rows = [row for table in tables for row in _rows(table, config, memory, fetch)]
    if not rows:
        raise DatasetError(f"{tables[0]} has no rows; add one for each video")
    base = located(root, config.video_folder) if config.video_folder else None
    if base and not base.is_dir():
        raise DatasetError(f"the folder of the videos, {base}, does not exist", "dataset.video_folder")
    above = folder.parent if is_file(folder) else folder
    if not local and base is None:
        rows = rows[: config.max_clips]
        get(_patterns(rows, above))
    entries = first(
        (_entry(row, [base] if base else [row.table.parent, above], not local and base is None) for row in rows),
        lambda entry: not entry.problem,
        config.max_clips,
    )
    if not any(is_file(entry.file) for entry in entries):
        if not fetch and not local:
            raise NotHereYet(f"the videos of {config.path} are not on this machine yet; the run will fetch them")
        count = "the one video" if len(entries) == 1 else f"none of the {len(entries)} videos"
        raise DatasetError(
            f"{count} that {tables[0]} names {'is not' if len(entries) == 1 else 'is'} in {base or tables[0].parent} "
            f"(such as {entries[0].name}); set dataset.video_folder to the folder from which they count",
            "dataset.video_folder",
        )
    return entries


# --- tables -----------------------------------------------------------------------------------------------------------


def _tables(folder: Path, config: DatasetConfig) -> list[Path]:
    """The tables of a folder that hold what is to be trained on, none where there is none; or the one that is named
    itself."""
    if is_file(folder):
        if folder.suffix.lower() not in TABLES:
            raise DatasetError(f"{folder} is no table of videos; dataset.format hub reads {_or(TABLES)}")
        return [folder]
    named = _named_by_card(folder, config)
    if named is not None:
        found = {file for pattern in named for file in folder.glob(pattern)}
        return sorted(file for file in found if file.suffix.lower() in TABLES and file.is_file())
    below = folder / config.hub_config if config.hub_config else folder
    if not is_there(below):
        return []
    files = [file for file in sorted(below.rglob("*")) if file.suffix.lower() in TABLES and _is_seen(file, folder)]
    found_here = [file for file in files if file.stem == "metadata"] or files
    train = [file for file in found_here if _words(file, folder) & _TRAIN]
    return train or [file for file in found_here if not _words(file, folder) & _OTHERS]


def _is_seen(file: Path, folder: Path) -> bool:
    hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
    return not hidden and file.is_file()


def _words(file: Path, folder: Path) -> set[str]:
    return set(re.split(r"[^a-z0-9]+", file.relative_to(folder).as_posix().lower()))


def _named_by_card(folder: Path, config: DatasetConfig) -> list[str] | None:
    """The patterns of files that the dataset's card (the head of its README.md) gives for the part that is asked for;
    None where it names none. DatasetError where it has no such part."""
    try:
        head = (folder / "README.md").read_text(encoding="utf-8-sig").split("---\n")
        card = yaml.safe_load(head[1]) if len(head) > 2 and not head[0].strip() else None
    except (OSError, ValueError, yaml.YAMLError):
        return None
    offered = card.get("configs") if isinstance(card, dict) else None
    parts = [part for part in offered if isinstance(part, dict)] if isinstance(offered, list) else []
    if not parts:
        return None
    names = [str(part.get("config_name", "default")) for part in parts]
    if config.hub_config is None:
        flagged = [part for part in parts if part.get("default")]
        default = [part for part, name in zip(parts, names, strict=True) if name == "default"]
        part = (flagged or default or parts)[0]
    elif config.hub_config in names:
        part = parts[names.index(config.hub_config)]
    else:
        raise DatasetError(
            f"{config.path} has no part {config.hub_config!r}; it has {', '.join(names)}", "dataset.hub_config"
        )
    inside = str(part.get("data_dir") or "").strip("/")
    files = part.get("data_files")
    patterns = [*_of_train(files)] if files is not None else [f"**/*{end}" for end in TABLES]
    patterns = [f"{inside}/{pattern}" if inside else pattern for pattern in patterns if pattern]
    patterns = [f"{pattern}/*" if pattern.endswith("**") else pattern for pattern in patterns]  # files, not folders
    if not patterns:
        raise DatasetError(f"{config.path} has nothing to train on: its card names no files for train")
    return [pattern for pattern in patterns if ".." not in pattern.split("/") and not pattern.startswith("/")]


def _of_train(files: Any) -> Iterator[str]:
    """The patterns for train in what a card says under data_files: patterns, or patterns by part."""
    if isinstance(files, str):
        yield files
    elif isinstance(files, dict):
        yield from _of_train(files.get("train", []))
    elif isinstance(files, list):
        for item in files:
            if isinstance(item, str):
                yield item
            elif isinstance(item, dict) and item.get("split", "train") == "train":
                yield from _of_train(item.get("path", []))


# --- rows -------------------------------------------------------------------------------------------------------------


def _rows(table: Path, config: DatasetConfig, memory: Path | None, fetch: bool) -> Iterator[_Row]:
    """The rows of a table. DatasetError names the table and what it lacks."""
    if table.suffix.lower() == parquet.SUFFIX:
        video, caption = columns(parquet.names(table), table, config)
        found = parquet.rows(table, video, caption, memory, config.max_clips, fetch)
        for number, (value, text) in enumerate(found, 1):
            yield _row(value, text, table, number)
        return
    lines = list(_csv(table) if table.suffix.lower() == ".csv" else _jsonl(table))
    if not lines:
        return
    video, caption = columns(dict.fromkeys(name for _, line in lines for name in line), table, config)
    for number, line in lines:
        yield _row(line.get(video), line.get(caption), table, number)


def columns(names: Iterable[str], table: Path, config: DatasetConfig) -> tuple[str, str]:
    """The columns of videos and of captions. The Hub calls the files of a column ``video`` ``file_name`` or
    ``video_file_name``."""
    names = list(names)
    listed = ", ".join(names)[:200]
    asked = config.video_column
    found = [name for name in (asked, f"{asked}_file_name", "file_name") if name in names]
    if not found:
        raise DatasetError(
            f"{table} has no column {asked} of videos; its columns: {listed}; set dataset.video_column",
            "dataset.video_column",
        )
    if config.caption_column not in names:
        raise DatasetError(
            f"{table} has no column {config.caption_column} of captions; its columns: {listed}; set "
            "dataset.caption_column",
            "dataset.caption_column",
        )
    return found[0], config.caption_column


def _row(value: Any, text: Any, table: Path, number: int) -> _Row:
    """A row from what stands in its two columns: a path, or the Hub's pair of a path and bytes."""
    if isinstance(value, dict):
        value = value.get("path")
    place = f"row {number} of {table.name}"
    if not isinstance(value, Path | str) or not str(value).strip():
        return _Row(place, _shown(text), table, number, f"{place} names no video; take it out")
    if text is not None and not isinstance(text, str):
        return _Row(value, "", table, number, f"the caption in {place} is not a text")
    return _Row(value, (text or "").strip(), table, number)


def _shown(text: Any) -> str:
    return text.strip() if isinstance(text, str) else ""


def _csv(table: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """(number, values by column) of the rows below the header."""
    try:
        with table.open(encoding="utf-8-sig", newline="") as handle:
            lines = csv.reader(handle)
            names = [name.strip() for name in next(lines, [])]
            yield from (
                (number, dict(zip(names, line, strict=False))) for number, line in enumerate(filter(None, lines), 1)
            )
    except UnicodeDecodeError as error:
        raise DatasetError(f"{table} is not UTF-8; save it as UTF-8") from error
    except csv.Error as error:
        raise DatasetError(f"{table} cannot be read: {error}") from error
    except OSError as error:
        raise DatasetError(f"{table} cannot be read: {error.strerror or error}") from error


def _jsonl(table: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number, object) of the lines that are not empty."""
    try:
        text = table.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DatasetError(f"{table} is not UTF-8; save it as UTF-8") from error
    except OSError as error:
        raise DatasetError(f"{table} cannot be read: {error.strerror or error}") from error
    for number, line in enumerate(text.split("\n"), 1):  # splitlines would break captions at rarer signs
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DatasetError(f"{table}, line {number}, is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise DatasetError(f"{table}, line {number}, is not an object")
        yield number, row


# --- videos -----------------------------------------------------------------------------------------------------------


def _entry(row: _Row, bases: Sequence[Path], from_the_hub: bool) -> Entry:
    """A row as a clip. bases: folders from which its path may count, the likeliest first."""
    if row.problem:
        return Entry(row.table, row.text, str(row.video), problem=row.problem)
    if isinstance(row.video, Path):  # taken out of its table
        return Entry(row.video, row.text, f"{row.table.stem}-{row.number}{row.video.suffix}")
    places = [located(base, row.video) for base in bases]
    file = next(filter(is_file, places), places[0])
    inside = [base for base in bases if file.is_relative_to(base)]
    name = (file.relative_to(inside[0]) if inside else file).as_posix()
    if from_the_hub and (not inside or ".." in Path(row.video).parts):  # never what a stranger's table points at
        return Entry(file, row.text, name, problem=f"{row.video} leads out of the dataset; the row is not used")
    if not is_file(file):
        way = f"put it there, or take row {row.number} out of {row.table.name}"
        return Entry(file, row.text, name, problem=missing(file, row.video, way))
    return Entry(file, row.text, name)


def _or(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"


def _patterns(rows: Sequence[_Row], folder: Path) -> list[str]:
    """What to fetch for rows: their videos, or the folders of them when they are many."""
    names = set()
    for row in rows:
        if isinstance(row.video, str) and not row.problem:
            names.add(row.video)
            names.add((row.table.parent.relative_to(folder) / row.video).as_posix())
    if len(names) <= _MOST_PATTERNS:
        return [escape(name) for name in sorted(names)]
    return sorted({f"{escape(parent)}/*" if (parent := name.rpartition("/")[0]) else "*" for name in names})
