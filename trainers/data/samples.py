"""What the model sees of clips: which frames, cut how, at what size. Numbers only, no pixels and no torch."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trainers.config import DatasetConfig
from trainers.data.clips import Clip, ReadableDataset
from trainers.data.frames import choose_frames, drawn_as_reference
from trainers.data.ledger import LedgerRow


@dataclass(frozen=True)
class Sample:
    """What the model sees once: these frames of this clip, at this size.

    stretch: without regard to the clip's shape. cut: the middle is taken before it is resized, see `middle`. piece:
    (down, across) of a piece that is not resized, from 0 (at the top, left) to 1. Else the middle is taken after it is
    resized, see `placed`; or with bars as `barred` has it. decoded: (height, width) to which frames are squeezed before
    anything else. smooth: see `DatasetConfig.smooth`. prepared: it is encoded already, beside its file.
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
    piece: tuple[float, float] | None = None
    bars: bool = False
    decoded: tuple[int, int] | None = None
    smooth: bool = False

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
    starts and flips of their own. With `dataset.as_reference` a clip that cannot be used shows another one."""
    found = []
    copies: Counter[str] = Counter()
    facts = [(row.clip.num_frames, row.clip.fps) for row in rows]
    for number, row in enumerate(rows):
        if row.status == "dropped" and not config.as_reference:
            continue
        copies[row.clip.sha256] += 1
        copy = copies[row.clip.sha256]
        rng = random.Random(f"{seed}/{row.clip.sha256}/{variant}" + (f"/{copy}" if copy > 1 else ""))
        flip = config.flip and rng.random() < 0.5
        if row.prepared:
            chosen = [list(range(row.num_frames))]
        elif config.as_reference:
            drawn = drawn_as_reference(facts, number, config, config.num_frames, rng)
            row, chosen = (row, []) if drawn is None else (rows[drawn[0]], [drawn[1]])
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
                    piece=_piece(config, rng),
                    bars=config.as_reference and config.fit in ("crop", "middle"),
                    decoded=config.decoded_size,
                    smooth=config.smooth,
                )
            )
    return found


def _piece(config: DatasetConfig, rng: random.Random) -> tuple[float, float] | None:
    """Where the piece of a clip lies that is not resized."""
    if config.fit == "middle":
        return 0.5, 0.5
    return (rng.random(), rng.random()) if config.fit == "piece" else None


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


def pieced(sample: Sample, height: int, width: int) -> tuple[int, int]:
    """(top, left) of the sample's piece in a picture that is at least as large; in the middle as torchvision rounds."""
    assert sample.piece is not None
    down, across = sample.piece
    return round((height - sample.height) * down), round((width - sample.width) * across)


def barred(height: int, width: int, target_height: int, target_width: int) -> tuple[int, int]:
    """(height, width) at which the shorter side of a picture is the shorter one of the target, as torchvision's Resize
    makes it: where the picture then does not cover the target, black bars are left."""
    side = min(target_height, target_width)
    return (side, side * width // height) if height <= width else (side * height // width, side)


def window(sample: Sample, height: int, width: int) -> tuple[float, float, float, float]:
    """(left, top, right, bottom) of what a sample shows of a picture of that height and width, in its pixels. Bars
    are not shown: with them it is what would fill the target."""
    if sample.decoded and (sample.decoded != (height, width)):
        tall, wide = sample.decoded
        left, top, right, bottom = window(sample, tall, wide)
        return left * width / wide, top * height / tall, right * width / wide, bottom * height / tall
    if sample.piece and height >= sample.height and width >= sample.width:
        top, left = pieced(sample, height, width)
        return left, top, left + sample.width, top + sample.height
    if sample.stretch or sample.prepared:
        return 0, 0, width, height
    if sample.cut:
        top, left, tall, wide = middle(height, width, sample.height, sample.width)
        return left, top, left + wide, top + tall
    (tall, wide), (top, left) = placed(height, width, sample.height, sample.width)
    down, across = height / tall, width / wide
    return left * across, top * down, (left + sample.width) * across, (top + sample.height) * down
