"""The run folder: the name of everything in it, and how checkpoints come to stand there whole. No torch."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_STEP = re.compile(r"^step-(\d{6,})$")


@dataclass(frozen=True)
class Checkpoint:
    """A folder with trained weights, ``meta.json``, and ``state.pt`` (what resuming needs besides the weights)."""

    path: Path

    @property
    def step(self) -> int:
        match = _STEP.match(self.path.name)
        return int(match.group(1)) if match else int(self.meta().get("step", 0))

    @property
    def state(self) -> Path:
        return self.path / "state.pt"

    def meta(self) -> dict[str, Any]:
        """family, method, step, base_model, validation_loss, ... as the trainer wrote them; {} if there are none."""
        try:
            data = json.loads((self.path / "meta.json").read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError, ValueError):  # absent or damaged
            return {}
        return data if isinstance(data, dict) else {}


@dataclass(frozen=True)
class RunFolder:
    """RUN/: config.yaml, events.jsonl, log.txt, control.jsonl, checkpoints/, samples/, exports/."""

    path: Path

    @property
    def id(self) -> str:
        return self.path.name

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def events(self) -> Path:
        return self.path / "events.jsonl"

    @property
    def log(self) -> Path:
        return self.path / "log.txt"

    @property
    def control(self) -> Path:
        return self.path / "control.jsonl"

    @property
    def lock(self) -> Path:
        return self.path / ".lock"

    @property
    def samples(self) -> Path:
        return self.path / "samples"

    @property
    def grid(self) -> Path:
        """All clips of a comparison in one; a GIF of it stands beside."""
        return self.samples / "grid.mp4"

    @property
    def training_motion(self) -> Path:
        """How some of the training clips move, which samples are measured against, here and in comparisons."""
        return self.path / "training_motion.npz"

    @property
    def exports(self) -> Path:
        return self.path / "exports"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def cache(self) -> Path:
        return self.path / "cache"

    @property
    def exists(self) -> bool:
        """Whether a run has been started here."""
        return self.events.exists() or bool(self.checkpoints())

    def sample_dir(self, step: int) -> Path:
        return self.samples / f"step-{step:06d}"

    def checkpoints(self) -> list[Checkpoint]:
        """The whole checkpoints, oldest first."""
        folder = self.path / "checkpoints"
        if not folder.is_dir():
            return []
        found = [Checkpoint(path) for path in folder.iterdir() if path.is_dir() and _STEP.match(path.name)]
        return sorted(found, key=lambda checkpoint: checkpoint.step)

    def best(self) -> Checkpoint | None:
        """The checkpoint with the lowest validation loss, if any has one."""
        scored = [
            (loss, checkpoint)
            for checkpoint in self.checkpoints()
            if (loss := checkpoint.meta().get("validation_loss")) is not None
        ]
        return min(scored, key=lambda pair: (pair[0], pair[1].step))[1] if scored else None

    @contextmanager
    def new_checkpoint(self, step: int) -> Iterator[Path]:
        """A folder to write a checkpoint into; it takes its place under checkpoints/ only when it is whole.

        A failure (a full disk, say) leaves nothing behind and the older checkpoints as they were.
        """
        final = self.path / "checkpoints" / f"step-{step:06d}"
        writing = self.path / ".writing" / final.name
        shutil.rmtree(writing, ignore_errors=True)
        try:
            writing.mkdir(parents=True)
            yield writing
            for file in writing.rglob("*"):
                if file.is_file():
                    _flush_to_disk(file)
            final.parent.mkdir(parents=True, exist_ok=True)
            if final.exists():  # the same step again, after resuming from an earlier one
                final.replace(writing.parent / "replaced")
            writing.replace(final)
        finally:
            shutil.rmtree(writing.parent, ignore_errors=True)

    def wish(self, act: str, **values: Any) -> None:
        """Append a wish to control.jsonl: star, unstar, save, sample, stop_after. The studio's file."""
        with self.control.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"act": act, "time": time.time(), **values}) + "\n")

    def wishes(self, offset: int = 0) -> tuple[list[dict[str, Any]], int]:
        """Wishes from byte `offset` on, and the offset to go on from."""
        try:
            with self.control.open("rb") as file:
                file.seek(offset)
                data = file.read()
        except FileNotFoundError:
            return [], offset
        end = data.rfind(b"\n") + 1
        found = []
        for line in data[:end].splitlines():
            try:
                wish = json.loads(line)
            except ValueError:
                continue
            if isinstance(wish, dict):
                found.append(wish)
        return found, offset + end

    def starred(self) -> set[int]:
        """Steps that carry a star."""
        stars: set[int] = set()
        for wish in self.wishes()[0]:
            if wish.get("act") == "star":
                stars.add(int(wish.get("step", -1)))
            elif wish.get("act") == "unstar":
                stars.discard(int(wish.get("step", -1)))
        return stars

    def prune(self, keep_last: int | None) -> list[Checkpoint]:
        """Delete all but the newest `keep_last` checkpoints, the best and the starred; give what was deleted."""
        if keep_last is None:
            return []
        best, stars = self.best(), self.starred()
        old = self.checkpoints()[:-keep_last]
        gone = [c for c in old if c.step not in stars and (best is None or c.step != best.step)]
        for checkpoint in gone:  # moved out first: a kill while deleting must not leave half a folder among whole ones
            leaving = self.path / ".writing" / checkpoint.path.name
            shutil.rmtree(leaving.parent, ignore_errors=True)
            leaving.parent.mkdir(parents=True)
            checkpoint.path.replace(leaving)
            shutil.rmtree(leaving.parent)
        return gone


def _flush_to_disk(file: Path) -> None:
    with file.open("rb+") as handle:
        os.fsync(handle.fileno())
