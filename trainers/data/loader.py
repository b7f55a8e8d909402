"""From ledger rows to batches: which frames, in which order. A batch depends on its number alone.

Nothing here keeps a position: the n-th batch of a run is a function of the config and n, so a resumed run sees what an
uninterrupted one would have seen.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn.functional import interpolate

from trainers.config import DatasetConfig
from trainers.data.clips import Clip, ReadableDataset
from trainers.data.frames import choose_frames
from trainers.data.ledger import LedgerRow
from trainers.data.video import read_frames

#: How `read_pixels` makes them, for the key under which what is made of them is cached.
READING = "stretched by the decoder's filters; or mirrored, covering, cropped"


@dataclass(frozen=True)
class Sample:
    """What the model sees once: these frames of this clip, at this size."""

    clip: Clip
    file: Path
    indices: tuple[int, ...]
    height: int
    width: int
    stretch: bool
    flip: bool

    @property
    def shape(self) -> tuple[int, int, int]:
        return len(self.indices), self.height, self.width

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
        for indices in choose_frames(row.clip.num_frames, row.clip.fps, config, row.num_frames, rng):
            found.append(
                Sample(
                    clip=row.clip,
                    file=dataset.file(row.clip),
                    indices=tuple(indices),
                    height=row.height,
                    width=row.width,
                    stretch=config.fit == "stretch",
                    flip=flip,
                )
            )
    return found


class Batches:
    """The endless stream of a run's batches, by number. Every batch holds samples of one shape.

    An epoch shows every clip `dataset.repeats` times, each time in the next variant: with a cache they walk through the
    `dataset.variants` that are encoded, without one every time is drawn anew.
    """

    def __init__(self, dataset: ReadableDataset, rows: Sequence[LedgerRow], config: DatasetConfig, seed: int) -> None:
        self._dataset, self._rows, self._config, self._seed = dataset, list(rows), config, seed
        self._epochs: dict[int, list[list[Sample]]] = {}
        self.per_epoch = len(self._epoch(0))

    def __getitem__(self, number: int) -> list[Sample]:
        epoch, index = divmod(number, self.per_epoch)
        return self._epoch(epoch)[index]

    def variants(self) -> list[list[Sample]]:
        """The samples of each variant that a cached run walks through."""
        return [self._samples(variant) for variant in range(self._config.variants)]

    def _samples(self, variant: int) -> list[Sample]:
        return draw_samples(self._dataset, self._rows, self._config, self._seed, variant)

    def _samples_of(self, epoch: int) -> list[Sample]:
        repeats = self._config.repeats
        passes = range(epoch * repeats, (epoch + 1) * repeats)
        seen = [number % self._config.variants if self._config.cache else number for number in passes]
        drawn = {variant: self._samples(variant) for variant in set(seen)}
        return [sample for variant in seen for sample in drawn[variant]]

    def _epoch(self, epoch: int) -> list[list[Sample]]:
        if epoch not in self._epochs:
            rng = random.Random(f"{self._seed}/order/{epoch}")
            buckets: dict[tuple[int, int, int], list[Sample]] = defaultdict(list)
            for sample in self._samples_of(epoch):
                buckets[sample.shape].append(sample)
            size = self._config.batch_size
            batches = []
            for samples in buckets.values():
                rng.shuffle(samples)
                batches += [samples[i : i + size] for i in range(0, len(samples), size)]
            rng.shuffle(batches)
            self._epochs = {key: value for key, value in self._epochs.items() if key >= epoch - 1}
            self._epochs[epoch] = batches
        return self._epochs[epoch]


def read_pixels(sample: Sample) -> torch.Tensor:
    """(f, 3, h, w) uint8: mirrored, resized until it covers the target, then cropped from the middle, all in 8 bits.

    In this order and with this rounding as the field does it (torchvision's Resize and CenterCrop in swift and WebVid).
    Stretched ones come from the decoder in their size, as Tune-A-Video and its kin have them.
    Resizing small uint8 pictures is some 25 times faster than converting to float first (measured at 854x480 -> 256).
    """
    target = sample.height, sample.width
    frames = read_frames(sample.file, sample.indices, size=target if sample.stretch else None)
    pixels = torch.from_numpy(frames).permute(0, 3, 1, 2)  # (f, 3, H, W)
    pixels = pixels.flip(-1) if sample.flip else pixels
    size, (top, left) = placed(pixels.shape[-2], pixels.shape[-1], *target)
    if pixels.shape[-2:] != size:
        pixels = interpolate(pixels.contiguous(), size, mode="bilinear", antialias=True, align_corners=False)
    return pixels[..., top : top + target[0], left : left + target[1]]


def placed(height: int, width: int, target_height: int, target_width: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """The smallest (height, width) of a picture's shape that covers the target, and (top, left) of the target in it."""
    if target_width * height >= target_height * width:
        size = max(target_height, target_width * height // width), target_width
    else:
        size = target_height, max(target_width, target_height * width // height)
    return size, (round((size[0] - target_height) / 2), round((size[1] - target_width) / 2))
