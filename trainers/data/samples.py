"""What the model sees of clips: which frames, cut how, at what size. Numbers only, no pixels and no torch."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trainers.config import DatasetConfig
from trainers.data.clips import Clip, ReadableDataset
from trainers.data.frames import choose_frames
from trainers.data.ledger import LedgerRow


@dataclass(frozen=True)
class Sample:
    """What the model sees once: these frames of this clip, at this size.

    stretch: without regard to the clip's shape. cut: the middle is taken before it is resized, see `middle`; else
    after, see `placed`. prepared: it is encoded already, beside its file.
    """

    clip: Clip
    file: Path
    indices: tuple[int, ...]
    height: int
    width: int
    stretch: bool
    flip: bool
    cut: bool = False
    prepared: bool = False

    @property
    def shape(self) -> tuple[int, int, int]:
        return len(self.indices), self.height, self.width

    @property
    def stride(self) -> float:
        """Frames of the clip from one frame of the sample to the next; where they differ, on average."""
        return (self.indices[-1] - self.indices[0]) / (len(self.indices) - 1) if len(self.indices) > 1 else 1.0

    def describe(self) -> str:
        first, last = self.indices[0], self.indices[-1]
        return f"{Path(self.clip.file_name).name} (frames {first} to {last})"


def draw_samples(
    dataset: ReadableDataset, rows: Sequence[LedgerRow], config: DatasetConfig, seed: int, variant: int
) -> list[Sample]:
    """The samples that usable clips give in one variant (one pass's random starts and flips). Copies of a clip have
    starts and flips of their own."""
    found = []
    copies: Counter[str] = Counter()
    for row in rows:
        if row.status == "dropped":
            continue
        copies[row.clip.sha256] += 1
        copy = copies[row.clip.sha256]
        rng = random.Random(f"{seed}/{row.clip.sha256}/{variant}" + (f"/{copy}" if copy > 1 else ""))
        flip = config.flip and rng.random() < 0.5
        if row.prepared:
            chosen = [list(range(row.num_frames))]
        else:
            chosen = choose_frames(row.clip.num_frames, row.clip.fps, config, row.num_frames, rng)
        for indices in chosen:
            found.append(
                Sample(
                    clip=row.clip,
                    file=dataset.file(row.clip),
                    indices=tuple(indices),
                    height=row.height,
                    width=row.width,
                    stretch=config.fit == "stretch",
                    flip=flip,
                    cut=config.fit == "cut",
                    prepared=row.prepared,
                )
            )
    return found


def placed(height: int, width: int, target_height: int, target_width: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """The smallest (height, width) of a picture's shape that covers the target, and (top, left) of the target in it."""
    if target_width * height >= target_height * width:
        size = max(target_height, target_width * height // width), target_width
    else:
        size = target_height, max(target_width, target_height * width // height)
    return size, (round((size[0] - target_height) / 2), round((size[1] - target_width) / 2))


def middle(height: int, width: int, target_height: int, target_width: int) -> tuple[int, int, int, int]:
    """(top, left, height, width) of the largest piece of the target's shape in the middle of a picture, in whole
    pixels as Genmo's trim_and_crop_videos.py rounds them: in floating point, whose error belongs to it."""
    shape = target_width / target_height
    if width / height > shape:
        piece = max(1, int(height * shape))
        return 0, (width - piece) // 2, height, piece
    piece = max(1, int(width / shape))
    return (height - piece) // 2, 0, piece, width


def window(sample: Sample, height: int, width: int) -> tuple[float, float, float, float]:
    """(left, top, right, bottom) of what a sample shows of a picture of that height and width, in its pixels."""
    if sample.stretch or sample.prepared:
        return 0, 0, width, height
    if sample.cut:
        top, left, tall, wide = middle(height, width, sample.height, sample.width)
        return left, top, left + wide, top + tall
    (tall, wide), (top, left) = placed(height, width, sample.height, sample.width)
    down, across = height / tall, width / wide
    return left * across, top * down, (left + sample.width) * across, (top + sample.height) * down
