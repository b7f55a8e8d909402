"""From ledger rows to batches: which frames, in which order. A batch depends on its number alone.

Nothing here keeps a position: the n-th batch of a run is a function of the config and n, so a resumed run sees what an
uninterrupted one would have seen.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence

import torch
from torch.nn.functional import interpolate, pad

from trainers.config import DatasetConfig
from trainers.data.clips import ReadableDataset
from trainers.data.ledger import LedgerRow
from trainers.data.samples import Sample, barred, draw_samples, middle, pieced, placed
from trainers.data.video import read_frames

__all__ = ["READING", "Batches", "Sample", "draw_samples", "fitted", "placed", "read_pixels"]

#: How `read_pixels` makes them, for the key under which what is made of them is cached.
READING = "stretched by the decoder's filters; or mirrored, covering, cropped; HDR tone-mapped"


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
    """(f, 3, h, w) uint8: mirrored, resized until it covers the target, then cropped from the middle, all in 8 bits; or
    float32 of the same range where a sample is smooth.

    In this order and with this rounding as the field does it (torchvision's Resize and CenterCrop in swift and WebVid).
    Stretched ones come from the decoder in their size, as Tune-A-Video and its kin have them. Those that are to be cut
    lose their edges first, as Genmo prepares clips, and are mirrored and resized then.
    Resizing small uint8 pictures is some 25 times faster than converting to float first (measured at 854x480 -> 256).
    """
    target = sample.height, sample.width
    by_decoder = target if sample.stretch and not sample.smooth else None
    frames = read_frames(sample.file, sample.indices, size=sample.decoded or by_decoder)
    pixels = torch.from_numpy(frames).permute(0, 3, 1, 2)  # (f, 3, H, W)
    return fitted(pixels.float() if sample.smooth else pixels, sample)


def fitted(pixels: torch.Tensor, sample: Sample) -> torch.Tensor:
    """(f, 3, h, w) of a sample from frames (f, 3, H, W), in their type: rounded to whole levels where that is uint8."""
    target = sample.height, sample.width
    if sample.cut:
        top, left, height, width = middle(pixels.shape[-2], pixels.shape[-1], *target)
        pixels = pixels[..., top : top + height, left : left + width]
    pixels = pixels.flip(-1) if sample.flip else pixels
    if sample.piece or sample.bars:
        if not sample.piece:
            pixels = _resized(pixels, barred(pixels.shape[-2], pixels.shape[-1], *target))
        pixels = _padded(pixels, *target) if sample.bars else pixels
        top, left = pieced(sample, *pixels.shape[-2:]) if sample.piece else _centre(pixels, *target)
    else:
        whole = sample.cut or sample.stretch
        size, (top, left) = (target, (0, 0)) if whole else placed(pixels.shape[-2], pixels.shape[-1], *target)
        pixels = _resized(pixels, size)
    return pixels[..., top : top + target[0], left : left + target[1]]


def _resized(pixels: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    if pixels.shape[-2:] == size:
        return pixels
    return interpolate(pixels.contiguous(), size, mode="bilinear", antialias=True, align_corners=False)


def _padded(pixels: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """With black on both sides of what is too short, an odd one behind, as torchvision's CenterCrop has it."""
    down, across = max(0, height - pixels.shape[-2]), max(0, width - pixels.shape[-1])
    return pad(pixels, (across // 2, (across + 1) // 2, down // 2, (down + 1) // 2)) if down or across else pixels


def _centre(pixels: torch.Tensor, height: int, width: int) -> tuple[int, int]:
    return round((pixels.shape[-2] - height) / 2), round((pixels.shape[-1] - width) / 2)
