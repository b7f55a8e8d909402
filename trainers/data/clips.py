"""Clips and datasets on disk. A dataset is a folder with ``clips/`` and ``metadata.jsonl``, one line a clip.

``file_name`` and ``text`` follow the Hub's video-folder convention, so the folder can be read and shown there as it is;
the other keys are facts of ours. A line may lack them, then they are measured. No torch.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import re
import unicodedata
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from filelock import FileLock, Timeout

from trainers.config import DatasetConfig, TrainConfig
from trainers.data.frames import choose_frames, most_frames, most_stride, needed_frames
from trainers.data.video import Probe, VideoError, normalise, probe, write_thumbnail
from trainers.families.base import ModelFamily

#: How long an edit waits for another one to be written.
_LOCK_SECONDS = 30.0


class DatasetError(Exception):
    """A dataset or clip that cannot be used or changed: one sentence that names it."""


@dataclass(frozen=True)
class Clip:
    """One video file with its caption. duration in seconds; sha256 of the file's bytes, by which caches know it.

    file_name is relative to the dataset's folder. A clip whose file is missing or unreadable has no frames and an
    empty sha256: see `Dataset.problem`. source: name, fps, duration, width, height, sha256 of what was imported.
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


class Dataset:
    """A folder of clips with captions. Edits are written at once, whole, under a lock; reading needs none."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path).expanduser()
        self._clips: tuple[Clip, ...] = ()
        self._problems: dict[str, str] = {}
        self._read_at: tuple[int, int, int] | None = None
        self._facts: dict[tuple[str, int, int], dict[str, Any]] = {}  # (file, bytes, mtime) -> measured facts

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
            raise DatasetError(f"dataset {dataset.path} cannot be made: {error.strerror}") from error
        return dataset

    @classmethod
    def open(cls, path: Path | str) -> Dataset:
        """A dataset as it stands on disk. DatasetError when there is none or its metadata cannot be read."""
        dataset = cls(path)
        dataset.reload()
        return dataset

    @property
    def name(self) -> str:
        return self.path.absolute().name

    @property
    def clips(self) -> tuple[Clip, ...]:
        """The clips in the order of metadata.jsonl; read again when somebody has changed it."""
        if self._read_at is None or self._read_at != self._stamp():
            self.reload()
        return self._clips

    @property
    def seconds(self) -> float:
        """Running time of all clips."""
        return sum(clip.duration for clip in self.clips)

    def reload(self) -> None:
        """Read metadata.jsonl, and measure the clips whose facts it lacks or whose file has changed since."""
        stamp = self._stamp()
        clips, problems = [], {}
        for row in self._rows():
            clip, problem = self._clip(row)
            clips.append(clip)
            if problem:
                problems[clip.file_name] = problem
        self._clips, self._problems, self._read_at = tuple(clips), problems, stamp

    def clip(self, file_name: str) -> Clip:
        """The clip of that file name."""
        for clip in self.clips:
            if clip.file_name == file_name:
                return clip
        raise DatasetError(f"dataset {self.name} has no clip {file_name}")

    def problem(self, clip: Clip) -> str | None:
        """Why a clip cannot be used at all (its file is missing or cannot be read), as a sentence."""
        return self._problems.get(clip.file_name)

    def file(self, clip: Clip) -> Path:
        """The video file of a clip."""
        return self.path / clip.file_name

    def thumbnail(self, clip: Clip) -> Path:
        """A WebP picture of a clip, made if there is none of this very content. VideoError for an unreadable clip."""
        key = _picture_key(clip.file_name)
        target = self.path / "thumbs" / f"{_slug(clip.name)}-{key}-{clip.sha256[:12]}.webp"
        if not target.exists():
            if self.problem(clip):
                raise VideoError(self._problems[clip.file_name])
            for outdated in target.parent.glob(f"*-{key}-*.webp"):
                outdated.unlink(missing_ok=True)
            write_thumbnail(self.file(clip), target)
        return target

    def add(self, source: Path, text: str = "", source_name: str | None = None) -> Clip:
        """Import a video file: checked, normalised into clips/, and written down with its original's facts.

        `source_name`: what the person calls the file; it is shown, never used as a path. VideoError when the file
        cannot be used, DatasetError when the same content is here already.
        """
        shown = re.split(r"[/\\]", source_name or source.name)[-1] or "clip"
        found = probe(source, name=shown)
        sha256 = _sha256(source)
        self._refuse_twin(sha256, shown, self._rows())
        incoming = self.path / f".incoming-{uuid.uuid4().hex}.mp4"
        try:
            facts = _facts(incoming, normalise(source, incoming, name=shown))
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
        for picture in (self.path / "thumbs").glob(f"*-{_picture_key(file_name)}-*.webp"):
            picture.unlink(missing_ok=True)

    # --- metadata.jsonl ----------------------------------------------------------------------------------------------

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
            raise DatasetError(f"{self._metadata} cannot be read: {error}") from error
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
            raise DatasetError(f"dataset {self.name} cannot be changed: {error.strerror or error}") from error

    def _refuse_twin(self, sha256: str, shown: str, rows: Sequence[dict[str, Any]]) -> None:
        for row in rows:
            source = row.get("source") or {}
            if sha256 in (source.get("sha256"), row.get("sha256")):
                earlier = PurePosixPath(row["file_name"]).name
                raise DatasetError(f"{shown} is already in dataset {self.name}, as {earlier}")

    # --- Facts of a clip ---------------------------------------------------------------------------------------------

    def _clip(self, row: dict[str, Any]) -> tuple[Clip, str | None]:
        """The clip of a line, and what is wrong with its file."""
        file = self.path / row["file_name"]
        problem = None
        try:
            facts = self._facts_of(file, row)
        except FileNotFoundError:
            facts, problem = {}, f"{file.name} is missing; put the file back or remove the clip"
        except (VideoError, OSError) as error:
            facts, problem = {}, f"{error}; remove the clip"
        clip = Clip(
            file_name=row["file_name"],
            text=row.get("text") or "",
            num_frames=facts.get("num_frames", 0),
            fps=facts.get("fps", 0.0),
            width=facts.get("width", 0),
            height=facts.get("height", 0),
            duration=facts.get("duration", 0.0),
            sha256=facts.get("sha256", ""),
            source=row.get("source") or {},
        )
        return clip, problem

    def _facts_of(self, file: Path, row: dict[str, Any]) -> dict[str, Any]:
        """From the line while the file is the one it speaks of, else measured and remembered."""
        stat = file.stat()
        key = (row["file_name"], stat.st_size, stat.st_mtime_ns)
        if key in self._facts:
            return self._facts[key]
        known = _known_facts(row)
        if known is not None and (known["bytes"], known["modified"]) == key[1:]:
            return known
        if known is not None and known["bytes"] == stat.st_size and known["sha256"] == _sha256(file):
            facts = known  # copied from elsewhere: another time, the same content
        else:
            facts = _facts(file, probe(file))
        self._facts[key] = facts
        return facts


def _facts(file: Path, found: Probe) -> dict[str, Any]:
    stat = file.stat()
    return {
        "num_frames": found.num_frames,
        "fps": found.fps,
        "width": found.width,
        "height": found.height,
        "duration": found.duration,
        "sha256": _sha256(file),
        "bytes": stat.st_size,
        "modified": stat.st_mtime_ns,
    }


def _known_facts(row: dict[str, Any]) -> dict[str, Any] | None:
    """Our facts in a line, if all are there and make sense."""
    kinds: dict[str, type | tuple[type, ...]] = {
        "num_frames": int,
        "fps": (int, float),
        "width": int,
        "height": int,
        "duration": (int, float),
        "sha256": str,
        "bytes": int,
        "modified": int,
    }
    facts = {key: row.get(key) for key in kinds}
    if not all(isinstance(facts[key], kind) for key, kind in kinds.items()):
        return None
    return facts if all(row[key] > 0 for key in ("num_frames", "fps", "width", "height")) else None


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


def _sha256(file: Path) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


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


# --- The ledger ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LedgerRow:
    """What becomes of a clip: trained at this size and length, or dropped (then num_frames is 0). reason: a sentence,
    or empty when there is nothing to say. trimmed: some of its frames are never seen."""

    clip: Clip
    status: Literal["used", "trimmed", "dropped"]
    reason: str
    num_frames: int
    height: int
    width: int


def ledger(dataset: Dataset, config: TrainConfig, family: ModelFamily) -> list[LedgerRow]:
    """One row for each clip, in order: nothing is left out silently."""
    dataset.reload()
    return [_ledger_row(clip, dataset.problem(clip), config.dataset, family) for clip in dataset.clips]


def ledger_summary(rows: Sequence[LedgerRow]) -> str:
    """Such as "36 used, 1 trimmed, 2 dropped"."""
    return ", ".join(
        f"{sum(row.status == status for row in rows)} {status}" for status in ("used", "trimmed", "dropped")
    )


def nothing_to_train(dataset: Dataset, rows: Sequence[LedgerRow], config: TrainConfig) -> tuple[str, str] | None:
    """(field, sentence) when no clip is left to train on; None when there is one."""
    usable = sum(row.status != "dropped" for row in rows)
    if not rows:
        return "dataset.path", f"dataset {dataset.path} is empty; add clips to it first"
    if not usable:
        return (
            "dataset.path",
            f"none of the {len(rows)} clips of {dataset.path} can be used; the first: {rows[0].reason}",
        )
    if config.validation.holdout >= usable:
        return "validation.holdout", (
            f"validation.holdout is {config.validation.holdout}, but only {usable} clips can be used; "
            f"lower it to {usable - 1}"
        )
    return None


def _ledger_row(clip: Clip, problem: str | None, config: DatasetConfig, family: ModelFamily) -> LedgerRow:
    if problem:
        return LedgerRow(clip, "dropped", problem, 0, config.height, config.width)
    height, width = _size(clip, config, family.size_multiple)
    num_frames = most_frames(clip.num_frames, clip.fps, config)
    if num_frames < config.num_frames:
        num_frames = family.frames_within(num_frames)
        if not config.frame_buckets or not num_frames:
            return LedgerRow(clip, "dropped", _too_short(clip, config, num_frames), 0, height, width)
    notes = []
    if num_frames < config.num_frames:
        notes.append(f"trains with {num_frames} frames instead of {config.num_frames}: it has only {clip.num_frames}")
    unseen, repeats = _coverage(clip, config, num_frames)
    if unseen:
        notes.append(f"never seen: {unseen}")
    if repeats:
        notes.append(f"frames repeat: it has {clip.fps:g} frames per second, dataset.fps asks for {config.fps:g}")
    if not clip.text.strip():
        notes.append("has no caption: it trains with an empty one")
    return LedgerRow(clip, "trimmed" if unseen else "used", "; ".join(notes), num_frames, height, width)


def _too_short(clip: Clip, config: DatasetConfig, num_frames: int) -> str:
    """The sentence for a clip without a single sample; num_frames: what the family could make of it, or 0."""
    how = f"{config.num_frames} frames"
    if config.frame_selection != "uniform":
        how += f" at stride {config.frame_stride}" if config.frame_stride > 1 else ""
        how += f" at {config.fps:g} frames per second" if config.fps else ""
    if config.frame_selection == "first" and config.start_frame:
        how += f" from frame {config.start_frame}"
    needed = needed_frames(config, clip.fps, config.num_frames)
    ways = [f"lower dataset.num_frames to {num_frames}"] if num_frames else []
    stride = most_stride(clip.num_frames, clip.fps, config) if config.frame_selection != "uniform" else 0
    ways += [f"lower dataset.frame_stride to {stride}"] if stride else []
    ways += ["lower dataset.start_frame"] if config.frame_selection == "first" and config.start_frame else []
    has = "1 frame" if clip.num_frames == 1 else f"{clip.num_frames} frames"
    why = f"{needed} are needed" + (f" ({how})" if how != f"{needed} frames" else "")
    return f"{clip.name} has {has}; {why} - {', '.join([*ways, ''])}{'or ' if ways else ''}remove the clip"


def _coverage(clip: Clip, config: DatasetConfig, num_frames: int) -> tuple[str, bool]:
    """Which frames no sample ever reaches, in words, and whether samples show a frame twice.

    Frames between two that are taken (a stride, a lower rate) count as reached: the movement over them is seen.
    """
    if config.frame_selection == "uniform":
        return "", False
    fixed = config if config.frame_selection != "random" else config.model_copy(update={"frame_selection": "windows"})
    samples = choose_frames(clip.num_frames, clip.fps, fixed, num_frames, random.Random(0))
    repeats = any(len(set(sample)) < len(sample) for sample in samples)
    if config.frame_selection == "random":
        return "", repeats
    first, last = samples[0][0], samples[-1][-1]
    gaps = [(0, first - 1), (last + 1, clip.num_frames - 1)]
    parts = [f"frame {a}" if a == b else f"frames {a} to {b}" for a, b in gaps if a <= b]
    return " and ".join(parts), repeats


def _size(clip: Clip, config: DatasetConfig, multiple: int) -> tuple[int, int]:
    """(height, width) at which a clip trains; for buckets, of the sizes with about the same area, the best shape."""
    if config.fit != "buckets":
        return config.height, config.width
    area, shape = config.height * config.width, clip.height / clip.width
    sizes = []
    for height in range(multiple, area // multiple + 1, multiple):
        for width in (area / height, height / shape):
            down = max(multiple, int(width) // multiple * multiple)
            sizes += [(height, down), (height, down + multiple)]

    def far(size: tuple[int, int]) -> float:
        """A wrong shape costs picture at the edges, a wrong area only some speed or detail."""
        return abs(math.log(size[0] / size[1] / shape)) + abs(math.log(size[0] * size[1] / area)) / 4

    return min(sizes, key=far)
