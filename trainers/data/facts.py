"""What a video file holds: measured once, and remembered for as long as the file stays as it is. No torch.

Measuring reads a whole file, which for a thousand of them takes from seconds to minutes. What was measured is known by
the file's place, size and time: in this process, and beyond it in a file of one line each.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trainers.data.video import Probe, VideoError, probe

#: Called with (done, total) while files are measured; may raise to stop.
Report = Callable[[int, int], None]

#: Facts are kept on disk only where measuring them took longer than this: small sets leave nothing behind.
KEEP_AFTER_SECONDS = 1.0
_KINDS: dict[str, type | tuple[type, ...]] = {
    "num_frames": int,
    "fps": (int, float),
    "width": int,
    "height": int,
    "duration": (int, float),
    "sha256": str,
    "bytes": int,
    "modified": int,
}
_Key = tuple[str, int, int]  # absolute path, bytes, time of the last change


@dataclass(frozen=True)
class Facts:
    """A video file. duration in seconds; sha256 of its bytes; modified in nanoseconds; unusual: see `Probe`."""

    num_frames: int
    fps: float
    width: int
    height: int
    duration: float
    sha256: str
    bytes: int
    modified: int
    unusual: tuple[str, ...] = ()


def facts_of(file: Path) -> Facts:
    """The facts of one file. FileNotFoundError where there is none, VideoError where it is no video, OSError."""
    found = _memory().known.get(_key(file)) or _remembered(file)
    if isinstance(found, str):
        raise VideoError(found)
    return found


def measure(files: Iterable[Path], keep: Path | None = None, report: Report | None = None) -> dict[Path, Facts | str]:
    """The facts of many files, or a sentence on why one has none. keep: the file of what earlier processes measured.

    What is known already costs one look at each file's size and time.
    """
    memory = _memory()
    if keep is not None:
        memory.read(keep)
    found: dict[Path, Facts | str] = {}
    unknown: list[Path] = []
    for file in dict.fromkeys(files):
        try:
            known = memory.known.get(_key(file))
        except OSError as error:
            found[file] = _unreadable(file, error)
            continue
        if known is None:
            unknown.append(file)
        else:
            found[file] = known
    if unknown:
        with memory.measuring:  # who comes second finds everything known
            already, total = len(found), len(found) + len(unknown)
            found |= _measure(unknown, keep, report and (lambda done, _: report(already + done, total)))
    return found


def is_known(file: Path) -> bool:
    """Whether the file has been measured as it stands now."""
    return _key(file) in _memory().known


def remember(file: Path, facts: Facts) -> None:
    """Take the facts of a file as known."""
    _memory().known[_key(file)] = facts


def measured(file: Path, found: Probe) -> Facts:
    """The facts of a file that has been probed."""
    stat = file.stat()
    return Facts(
        num_frames=found.num_frames,
        fps=found.fps,
        width=found.width,
        height=found.height,
        duration=found.duration,
        sha256=sha256_of(file),
        bytes=stat.st_size,
        modified=stat.st_mtime_ns,
        unusual=found.unusual,
    )


def facts_from(row: Mapping[str, Any]) -> Facts | None:
    """The facts that a line of JSON holds, if all are there and make sense."""
    values: dict[str, Any] = {key: row.get(key) for key in _KINDS}
    if not all(isinstance(values[key], kind) for key, kind in _KINDS.items()):
        return None
    if not all(row[key] > 0 for key in ("num_frames", "fps", "width", "height")):
        return None
    unusual = row.get("unusual", [])
    return Facts(**values, unusual=tuple(map(str, unusual)) if isinstance(unusual, list) else ())


def facts_row(facts: Facts) -> dict[str, Any]:
    """The facts as a line of JSON holds them."""
    return {key: value for key, value in asdict(facts).items() if key != "unusual" or value}


def sha256_of(file: Path) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


class _Memory:
    """What this process knows of files; a sentence for those that are no videos."""

    def __init__(self) -> None:
        self.known: dict[_Key, Facts | str] = {}
        self.measuring = threading.Lock()
        self._been_read: set[Path] = set()

    def read(self, keep: Path) -> None:
        """What earlier processes kept, once. A line that is damaged is one that is not there."""
        if keep in self._been_read:
            return
        self._been_read.add(keep)
        try:
            lines = keep.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return
        for line in lines:
            try:
                row = json.loads(line)
            except ValueError:
                continue
            facts = facts_from(row) if isinstance(row, dict) else None
            if facts is not None and isinstance(row.get("file"), str):
                self.known[row["file"], facts.bytes, facts.modified] = facts


@functools.cache
def _memory() -> _Memory:
    return _Memory()


def _key(file: Path) -> _Key:
    stat = file.stat()
    return str(file.absolute()), stat.st_size, stat.st_mtime_ns


def _measure(files: Sequence[Path], keep: Path | None, report: Report | None) -> dict[Path, Facts | str]:
    """Files side by side: FFmpeg and the hash leave the interpreter to others."""
    found: dict[Path, Facts | str] = {}
    lines: list[str] = []
    began = time.monotonic()
    kept_at = began
    pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))
    try:
        for file, facts in zip(files, pool.map(_found, files), strict=True):
            found[file] = facts
            if isinstance(facts, Facts):
                lines.append(json.dumps({"file": str(file.absolute()), **facts_row(facts)}, ensure_ascii=False))
            if keep is not None and time.monotonic() - kept_at > KEEP_AFTER_SECONDS:
                _append(keep, lines)
                lines, kept_at = [], time.monotonic()
            if report:
                report(len(found), len(files))
    finally:
        pool.shutdown(cancel_futures=True)
        if keep is not None and kept_at > began:
            _append(keep, lines)
    return found


def _found(file: Path) -> Facts | str:
    try:
        return _memory().known.get(_key(file)) or _remembered(file)
    except VideoError as error:
        return str(error)
    except OSError as error:
        return _unreadable(file, error)


def _remembered(file: Path) -> Facts | str:
    """The facts of a file that is not known yet. A file that could not be opened at all is asked again next time."""
    key = _key(file)
    found: Facts | str
    try:
        found = measured(file, probe(file))
    except VideoError as error:
        if isinstance(error.__cause__, OSError):
            raise
        found = str(error)
    _memory().known[key] = found
    return found


def _unreadable(file: Path, error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return f"{file.name} is missing"
    return f"{file.name} cannot be read: {error.strerror or error}"


def _append(keep: Path, lines: Sequence[str]) -> None:
    """Whole lines in one piece, so that processes may add to the file side by side. Where the disk takes none, they
    are measured again another time."""
    try:
        keep.parent.mkdir(parents=True, exist_ok=True)
        with keep.open("a", encoding="utf-8", newline="\n") as handle:
            handle.write("".join(line + "\n" for line in lines))
    except OSError:
        pass
