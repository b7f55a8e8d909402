"""Clips and datasets on disk. A dataset is a folder with ``clips/`` and ``metadata.jsonl``, one line a clip.

``file_name`` and ``text`` follow the Hub's video-folder convention, so the folder can be read and shown there as it is;
the other keys are facts of ours. A line may lack them, then they are measured. Datasets in other layouts are read where
they lie: see ``trainers.data.formats``. No torch.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from filelock import FileLock, Timeout

from trainers.data.facts import Facts, facts_from, facts_of, facts_row, is_known, measured, remember, sha256_of
from trainers.data.video import VideoError, normalise, probe, write_thumbnail
from trainers.errors import why

#: How long an edit waits for another one to be written.
_LOCK_SECONDS = 30.0


class DatasetError(Exception):
    """A dataset or clip that cannot be used or changed: one sentence that names it. where: the setting that can mend
    it."""

    def __init__(self, text: str, where: str = "dataset.path") -> None:
        self.where = where
        super().__init__(text)


class NotHereYet(DatasetError):
    """A dataset that a run would fetch when it begins, for somebody who does not want to wait for that."""


@dataclass(frozen=True)
class Clip:
    """One video file with its caption. duration in seconds; sha256 of the file's bytes, by which caches know it.

    file_name is relative to the dataset's folder, or what a foreign layout calls the clip. A clip whose file is missing
    or unreadable has no frames and an empty sha256: see `ReadableDataset.problem`. source: name, fps, duration, width,
    height, sha256 of what was imported, and hdr (PQ or HLG) where it was that.
    """

    file_name: str
    text: str
    num_frames: int
    fps: float
    width: int
    height: int
    duration: float
    sha256: str
    source: dict[str, Any] = field(default_factory=dict, hash=False)

    @property
    def name(self) -> str:
        """The file's name alone, as errors and lists show it."""
        return PurePosixPath(self.file_name).name


class ReadableDataset(ABC):
    """What can be read of a dataset, however its files lie. No two of its clips have the same file_name."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._clips: tuple[Clip, ...] = ()
        self._problems: dict[str, str] = {}
        self._remarks: dict[str, str] = {}

    @property
    def name(self) -> str:
        return self.path.absolute().name

    @property
    def clips(self) -> tuple[Clip, ...]:
        """The clips in the order of the dataset."""
        return self._clips

    @property
    def seconds(self) -> float:
        """Running time of all clips."""
        return sum(clip.duration for clip in self.clips)

    @abstractmethod
    def reload(self) -> None:
        """Read the dataset as it stands on disk now. DatasetError where that cannot be done."""

    @abstractmethod
    def file(self, clip: Clip) -> Path:
        """The video file of a clip."""

    def clip(self, file_name: str) -> Clip:
        """The clip of that file name."""
        for clip in self.clips:
            if clip.file_name == file_name:
                return clip
        raise DatasetError(f"dataset {self.name} has no clip {file_name}")

    def problem(self, clip: Clip) -> str | None:
        """Why a clip cannot be used at all (its file is missing or cannot be read), as a sentence."""
        return self._problems.get(clip.file_name)

    def remark(self, clip: Clip) -> str:
        """What is unusual about a clip that can be used, in clauses; or empty."""
        return self._remarks.get(clip.file_name, "")

    def thumbnail(self, clip: Clip) -> Path:
        """A WebP picture of a clip, made if there is none of this very content. VideoError for an unreadable clip."""
        key = _picture_key(clip.file_name)
        target = self._thumbnails / f"{_slug(clip.name)}-{key}-{clip.sha256[:12]}.webp"
        if not target.exists():
            problem = self.problem(clip)
            if problem:
                raise VideoError(problem)
            for outdated in target.parent.glob(f"*-{key}-*.webp"):
                outdated.unlink(missing_ok=True)
            write_thumbnail(self.file(clip), target)
        return target

    @property
    @abstractmethod
    def _thumbnails(self) -> Path:
        """The folder of the pictures."""


class Dataset(ReadableDataset):
    """A folder of clips with captions. Edits are written at once, whole, under a lock; reading needs none.

    max_clips: show only the first so many whose file is there. An edit keeps the others.
    """

    def __init__(self, path: Path | str, max_clips: int | None = None) -> None:
        super().__init__(Path(path).expanduser())
        self._max_clips = max_clips
        self._read_at: tuple[int, int, int] | None = None

    @classmethod
    def create(cls, path: Path | str) -> Dataset:
        """An empty dataset in a new or empty folder."""
        dataset = cls(path)
        if dataset._metadata.exists():
            raise DatasetError(f"{dataset.path} already holds a dataset; open it or choose another name")
        try:
            (dataset.path / "clips").mkdir(parents=True, exist_ok=True)
            dataset._write([])
        except OSError as error:
            raise DatasetError(f"dataset {dataset.path} cannot be made: {why(error)}") from error
        return dataset

    @classmethod
    def open(cls, path: Path | str, max_clips: int | None = None) -> Dataset:
        """A dataset as it stands on disk. DatasetError when there is none or its metadata cannot be read."""
        dataset = cls(path, max_clips)
        dataset.reload()
        return dataset

    @property
    def clips(self) -> tuple[Clip, ...]:
        """The clips in the order of metadata.jsonl; read again when somebody has changed it."""
        if self._read_at is None or self._read_at != self._stamp():
            self.reload()
        return self._clips

    def reload(self) -> None:
        """Read metadata.jsonl, and measure the clips whose facts it lacks or whose file has changed since."""
        stamp = self._stamp()
        clips: list[Clip] = []
        problems, remarks, there = {}, {}, 0
        for row in self._rows():
            if there == self._max_clips:
                break
            clip, problem, remark = self._clip(row)
            clips.append(clip)
            there += self.file(clip).exists() if problem else 1
            if problem:
                problems[clip.file_name] = problem
            if remark:
                remarks[clip.file_name] = remark
        self._clips, self._problems, self._remarks, self._read_at = tuple(clips), problems, remarks, stamp

    def file(self, clip: Clip) -> Path:
        return self.path / clip.file_name

    def add(self, source: Path, text: str = "", source_name: str | None = None) -> Clip:
        """Import a video file: checked, normalised into clips/, and written down with its original's facts.

        `source_name`: what the person calls the file; it is shown, never used as a path. VideoError when the file
        cannot be used, DatasetError when the same content is here already.
        """
        shown = re.split(r"[/\\]", source_name or source.name)[-1] or "clip"
        found = probe(source, name=shown)
        sha256 = sha256_of(source)
        self._refuse_twin(sha256, shown, self._rows())
        incoming = self.path / f".incoming-{uuid.uuid4().hex}.mp4"
        try:
            facts = facts_row(measured(incoming, normalise(source, incoming, name=shown)))
            file_name = f"clips/{_slug(shown)}-{sha256[:8]}.mp4"
            row = {
                "file_name": file_name,
                "text": _clean(text),
                **facts,
                "source": {
                    "name": _clean(shown),
                    "num_frames": found.num_frames,
                    "fps": found.fps,
                    "duration": found.duration,
                    "width": found.width,
                    "height": found.height,
                    "sha256": sha256,
                    **({"hdr": found.hdr} if found.hdr else {}),
                },
            }
            with self._locked():
                rows = self._rows()
                self._refuse_twin(sha256, shown, rows)
                (self.path / "clips").mkdir(exist_ok=True)
                incoming.replace(self.path / file_name)
                self._write([*rows, row])
        finally:
            incoming.unlink(missing_ok=True)
        return self.clip(file_name)

    def set_text(self, file_name: str, text: str) -> None:
        """Change the caption of a clip. Any text is kept as it is, without line breaks at its ends."""
        with self._locked():
            rows = self._rows()
            self._row(rows, file_name)["text"] = _clean(text)
            self._write(rows)

    def remove(self, file_name: str) -> None:
        """Take a clip out. Its file is deleted when it was made on import; a file that somebody put here stays."""
        with self._locked():
            rows = self._rows()
            row = self._row(rows, file_name)
            self._write([other for other in rows if other is not row])
        if row.get("source"):
            (self.path / file_name).unlink(missing_ok=True)
        for picture in self._thumbnails.glob(f"*-{_picture_key(file_name)}-*.webp"):
            picture.unlink(missing_ok=True)

    # --- metadata.jsonl ----------------------------------------------------------------------------------------------

    @property
    def _thumbnails(self) -> Path:
        return self.path / "thumbs"

    @property
    def _metadata(self) -> Path:
        return self.path / "metadata.jsonl"

    def _stamp(self) -> tuple[int, int, int] | None:
        try:
            facts = self._metadata.stat()
        except OSError:
            return None
        return facts.st_ino, facts.st_size, facts.st_mtime_ns

    def _rows(self) -> list[dict[str, Any]]:
        """The lines of metadata.jsonl, checked. Keys that are not ours stay in them."""
        if not self.path.is_dir():
            raise DatasetError(f"dataset folder {self.path} does not exist")
        try:
            content = self._metadata.read_text(encoding="utf-8-sig")
        except FileNotFoundError as error:
            raise DatasetError(
                f"{self.path} is not a dataset: it has no metadata.jsonl; write one line for each clip, such as "
                '{"file_name": "clips/a.mp4", "text": "a caption"}'
            ) from error
        except (OSError, UnicodeDecodeError) as error:
            raise DatasetError(f"{self._metadata} cannot be read: {why(error)}") from error
        rows: list[dict[str, Any]] = []
        lines: dict[str, int] = {}
        for number, line in enumerate(content.split("\n"), 1):  # splitlines would break captions at rarer signs
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise DatasetError(f"{self._metadata}, line {number}, is not JSON: {error}") from error
            wrong = _wrong_with(row)
            if wrong:
                raise DatasetError(f"{self._metadata}, line {number}: {wrong}")
            first = lines.setdefault(row["file_name"], number)
            if first != number:
                raise DatasetError(f"{self._metadata}: {row['file_name']} stands twice, in lines {first} and {number}")
            rows.append(row)
        return rows

    def _row(self, rows: Sequence[dict[str, Any]], file_name: str) -> dict[str, Any]:
        for row in rows:
            if row["file_name"] == file_name:
                return row
        raise DatasetError(f"dataset {self.name} has no clip {file_name}")

    def _write(self, rows: Sequence[dict[str, Any]]) -> None:
        """Replace metadata.jsonl as a whole. With the lock held."""
        writing = self.path / f".metadata-{uuid.uuid4().hex}.jsonl"
        try:
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            writing.write_text(text, encoding="utf-8", newline="\n")
            writing.replace(self._metadata)
        finally:
            writing.unlink(missing_ok=True)
        self._read_at = None

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One edit at a time, across processes, so that no caption is lost between reading and writing."""
        try:
            with FileLock(self.path / ".lock", timeout=_LOCK_SECONDS):
                yield
        except Timeout as error:
            raise DatasetError(f"dataset {self.name} is being changed by somebody else; try again") from error
        except OSError as error:
            raise DatasetError(f"dataset {self.name} cannot be changed: {why(error)}") from error

    def _refuse_twin(self, sha256: str, shown: str, rows: Sequence[dict[str, Any]]) -> None:
        for row in rows:
            source = row.get("source") or {}
            if sha256 in (source.get("sha256"), row.get("sha256")):
                earlier = PurePosixPath(row["file_name"]).name
                raise DatasetError(f"{shown} is already in dataset {self.name}, as {earlier}")

    # --- Facts of a clip ---------------------------------------------------------------------------------------------

    def _clip(self, row: dict[str, Any]) -> tuple[Clip, str | None, str]:
        """The clip of a line, what is wrong with its file, and what is unusual about it."""
        file = self.path / row["file_name"]
        text, source = row.get("text") or "", row.get("source") or {}
        try:
            facts = self._facts_of(file, row)
        except FileNotFoundError:
            problem = f"{file.name} is missing; put the file back or remove the clip"
        except (VideoError, OSError) as error:
            told = f"{file.name} cannot be read: {why(error)}" if isinstance(error, OSError) else str(error)
            problem = f"{told}; remove the clip"
        else:
            was = [f"it was HDR ({source['hdr']}): its colours are tone-mapped to BT.709"] if source.get("hdr") else []
            return clip_of(row["file_name"], text, facts, source), None, "; ".join([*was, *facts.unusual])
        return clip_of(row["file_name"], text, None, source), problem, ""

    def _facts_of(self, file: Path, row: dict[str, Any]) -> Facts:
        """From the line while the file is the one it speaks of, else measured."""
        known = facts_from(row)
        if known is None:
            return facts_of(file)
        stat = file.stat()
        if (known.bytes, known.modified) == (stat.st_size, stat.st_mtime_ns):
            return known
        if not is_known(file) and known.bytes == stat.st_size and known.sha256 == sha256_of(file):
            remember(file, known)  # copied from elsewhere: another time, the same content
        return facts_of(file)


def clip_of(file_name: str, text: str, facts: Facts | None, source: dict[str, Any] | None = None) -> Clip:
    """A clip from what its file holds; facts None: there is nothing that can be read."""
    if facts is None:
        return Clip(file_name, text, 0, 0.0, 0, 0, 0.0, "", source or {})
    return Clip(
        file_name=file_name,
        text=text,
        num_frames=facts.num_frames,
        fps=facts.fps,
        width=facts.width,
        height=facts.height,
        duration=facts.duration,
        sha256=facts.sha256,
        source=source or {},
    )


def _wrong_with(row: Any) -> str | None:
    """What a line of metadata.jsonl must not be, or None."""
    if not isinstance(row, dict):
        return "is not an object"
    file_name = row.get("file_name")
    if not isinstance(file_name, str) or not file_name:
        return "has no file_name"
    parts = file_name.split("/")
    if "\\" in file_name or "\0" in file_name or ".." in parts or "" in parts or ":" in parts[0]:
        return f"file_name {file_name!r} leads out of the dataset's folder; give a path below it, with /"
    if any(part.startswith(".") for part in parts):
        return f"file_name {file_name!r} is hidden; rename the file so that no part begins with a dot"
    if row.get("text") is not None and not isinstance(row["text"], str):
        return f"the text of {file_name} is not a text"
    if row.get("source") is not None and not isinstance(row["source"], dict):
        return f"the source of {file_name} is not an object"
    return None


def _picture_key(file_name: str) -> str:
    """Tells the thumbnails of one clip from those of another whose name looks the same."""
    return hashlib.sha256(file_name.encode()).hexdigest()[:8]


def _slug(name: str) -> str:
    """A file name's stem in letters, digits and dashes."""
    plain = unicodedata.normalize("NFKD", PurePosixPath(name).stem).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9]+", "-", plain).strip("-").lower()[:40].strip("-") or "clip"


def _clean(text: str) -> str:
    """A text as it is, without line breaks at its ends and without halves of characters, which UTF-8 cannot hold."""
    return text.strip("\r\n").encode("utf-8", "replace").decode("utf-8")
