"""Videos and captions in a parquet file, as `datasets` uploads them: the video as bytes beside its path.

The bytes are taken out into files once, since videos are read by seeking in them.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from trainers.data.clips import DatasetError, NotHereYet

SUFFIX = ".parquet"
#: Rows with their videos that are in memory at a time.
_ROWS = 4


def names(table: Path) -> list[str]:
    """The columns of a file."""
    return list(_opened(table).schema_arrow.names)


def rows(
    table: Path, video: str, caption: str, memory: Path | None, most: int | None, fetch: bool
) -> Iterator[tuple[str | Path | None, Any]]:
    """(path as it stands there, or file of what was taken out, or None; caption) of the rows, at most `most`.

    memory: folder for what is taken out. fetch: take out what was not taken out before; else NotHereYet.
    """
    opened = _opened(table)
    pyarrow = importlib.import_module("pyarrow")
    kind = opened.schema_arrow.field(video).type
    embedded = pyarrow.types.is_struct(kind) or pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind)
    count = min(opened.metadata.num_rows, most if most is not None else opened.metadata.num_rows)
    try:
        if not embedded:
            yield from _values(opened, [video, caption], count)
            return
        if memory is None:
            raise DatasetError(
                f"{table.name} holds videos, and there is no folder to take them out into; set dataset.cache_dir",
                "dataset.cache_dir",
            )
        folder = memory / "parquet" / _key(table, video)
        done = folder / f"first-{count}.json"
        if not done.is_file():
            if not fetch:
                raise NotHereYet(f"{table.name} holds the videos themselves; the run will take them out of it")
            _take_out(opened, video, count, folder, done)
        places = json.loads(done.read_text(encoding="utf-8"))
        for (name, path), (text,) in zip(places, _values(opened, [caption], count), strict=True):
            yield (folder / name if name else path), text
    except OSError as error:
        raise DatasetError(f"the videos in {table} cannot be taken out: {error.strerror or error}") from error


def _take_out(opened: Any, column: str, count: int, folder: Path, done: Path) -> None:
    """The videos of a column as files in a folder, and when all are there a list of them: for each row the file's name,
    and the path that stands there, which may be one without a video."""
    folder.mkdir(parents=True, exist_ok=True)
    places: list[tuple[str | None, str | None]] = []
    for number, (value,) in enumerate(_values(opened, [column], count, _ROWS), 1):
        data, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)
        if not isinstance(data, bytes):
            places.append((None, path))
            continue
        suffix = PurePosixPath(str(path or "")).suffix
        if not re.fullmatch(r"[.]\w{1,5}", suffix):
            suffix = ".mp4"
        file = folder / f"{number:06d}{suffix}"
        if not file.is_file():
            _write(file, data)
        places.append((file.name, path))
    _write(done, json.dumps(places).encode())


def _write(file: Path, data: bytes) -> None:
    writing = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        writing.write_bytes(data)
        writing.replace(file)
    finally:
        writing.unlink(missing_ok=True)


def _values(opened: Any, columns: list[str], count: int, at_a_time: int = 1024) -> Iterator[tuple[Any, ...]]:
    """The values of columns, row by row."""
    left = count
    for batch in opened.iter_batches(batch_size=at_a_time, columns=columns):
        values = batch.to_pydict()
        for row in zip(*(values[name] for name in columns), strict=True):
            if not left:
                return
            left -= 1
            yield row


def _key(table: Path, column: str) -> str:
    """Tells a column of a file from others, and from what it was before."""
    stat = table.stat()
    text = f"{table.resolve()}/{stat.st_size}/{stat.st_mtime_ns}/{column}"
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def _opened(table: Path) -> Any:
    """The file in pyarrow's reader; DatasetError names the package where it is not installed."""
    try:
        reader = importlib.import_module("pyarrow.parquet")
        arrow = importlib.import_module("pyarrow")
    except ImportError as error:
        raise DatasetError(
            f"{table.name} is a parquet file, which needs the package pyarrow: pip install pyarrow"
        ) from error
    try:
        return reader.ParquetFile(table)
    except (arrow.ArrowException, OSError) as error:
        raise DatasetError(f"{table} cannot be read as parquet: {str(error).splitlines()[0]}") from error
