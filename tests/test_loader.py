"""From clips to batches: which samples, how often, and their pixels."""

from __future__ import annotations

import random
import re
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from trainers.config import DatasetConfig
from trainers.data.clips import Clip
from trainers.data.frames import choose_frames
from trainers.data.ledger import LedgerRow
from trainers.data.loader import Batches, Sample, read_pixels
from trainers.data.samples import middle
from trainers.data.video import read_frames

REFERENCE = Path(__file__).parent / "data" / "animatediff"


class Listed:
    """Clips without files."""

    def __init__(self, *contents: str, num_frames: int = 40) -> None:
        names = [f"{place}.mp4" for place in range(len(contents))]
        clips = [Clip(name, "x", num_frames, 8, 64, 64, 5, sha) for name, sha in zip(names, contents, strict=True)]
        self.rows = [LedgerRow(clip, "used", "", 8, 64, 64) for clip in clips]

    def file(self, clip: Clip) -> Path:
        return Path(clip.file_name)


def batches(dataset: Listed, **values) -> Batches:
    config = DatasetConfig(path="-", num_frames=8, height=64, width=64, **values)
    return Batches(dataset, dataset.rows, config, 7)


def epoch(made: Batches, number: int) -> list[Sample]:
    first = number * made.per_epoch
    return [sample for k in range(first, first + made.per_epoch) for sample in made[k]]


# --- how often a clip is seen ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("size", [1, 4])
def test_each_clip_counts_so_many_times_in_a_pass(cache, size):
    made = batches(Listed("a", "b", "c"), repeats=5, cache=cache, batch_size=size)
    assert made.per_epoch == -(-15 // size)
    for number in range(3):
        assert Counter(sample.clip.file_name for sample in epoch(made, number)) == {
            "0.mp4": 5, "1.mp4": 5, "2.mp4": 5,
        }  # fmt: skip


def test_repeats_of_what_is_cached_need_no_further_encoding():
    made = batches(Listed("a", "b"), repeats=6, variants=4, flip=True)
    prepared = {sample for variant in made.variants() for sample in variant}
    seen = [sample for number in range(4) for sample in epoch(made, number)]
    assert set(seen) == prepared
    assert len(prepared) == 8
    assert Counter(seen) == dict.fromkeys(prepared, 6)  # 4 epochs of 6 repeats walk evenly through 4 variants


def test_without_a_cache_every_repeat_is_drawn_anew():
    made = batches(Listed("a", num_frames=4000), repeats=6, cache=False)
    starts = [sample.indices[0] for number in range(3) for sample in epoch(made, number)]
    assert len(set(starts)) == 18


def test_a_batch_depends_on_its_number_alone():
    settings = {"repeats": 3, "batch_size": 2, "cache": False, "flip": True}
    made, other = batches(Listed("a", "b", "c"), **settings), batches(Listed("a", "b", "c"), **settings)
    forwards = [made[number] for number in range(20)]
    backwards = [other[number] for number in reversed(range(20))]
    assert forwards == backwards[::-1]


def test_one_repeat_changes_nothing():
    """What a resumed run of an earlier version goes on with."""
    made = batches(Listed("a", "b", "c", num_frames=400), variants=3)
    for number in range(5):
        drawn = {sample.clip.sha256: sample.indices[0] for sample in epoch(made, number)}
        expected = {
            sha: choose_frames(
                400, 8, DatasetConfig(path="-", num_frames=8), 8, random.Random(f"7/{sha}/{number % 3}")
            )[0][0]
            for sha in "abc"
        }
        assert drawn == expected


def test_copies_of_a_clip_have_starts_of_their_own():
    made = batches(Listed("a", "b", "a", num_frames=4000))
    starts = {sample.clip.file_name: sample.indices[0] for sample in epoch(made, 0)}
    assert len(set(starts.values())) == 3
    alone = {s.clip.file_name: s.indices[0] for s in epoch(batches(Listed("a", "b", num_frames=4000)), 0)}
    assert {name: starts[name] for name in alone} == alone, "a copy changes nothing for the others"


# --- pixels ----------------------------------------------------------------------------------------------------------


def pixels(file: Path, indices: list[int], height: int, width: int, **how: bool) -> torch.Tensor:
    clip = Clip(file.name, "", 12, 8, 64, 48, 1.5, "")
    return read_pixels(Sample(clip, file, tuple(indices), height, width, **{"stretch": False, "flip": False, **how}))


def grey_levels(values: torch.Tensor) -> torch.Tensor:
    return (values + 1) * 127.5


def test_decoded_frames_are_those_of_the_reference():
    expected = load_file(REFERENCE / "pixels.safetensors")["decoded_uint8"]
    assert torch.equal(torch.from_numpy(read_frames(REFERENCE / "pattern.mp4", [0, 5])), expected)


def test_stretched_pixels_are_those_of_a_list_of_videos():
    """Upstream's decoder resizes before it turns the picture into RGB, and so does ours."""
    expected = grey_levels(load_file(REFERENCE / "pixels.safetensors")["multitune_w32_h16_frames_0_5"])
    error = (pixels(REFERENCE / "pattern.mp4", [0, 5], 16, 32, stretch=True).float() - expected).abs()
    assert error.max() < 1e-3


def test_cropped_pixels_are_those_of_webvid():
    found = {k: v for k, v in load_file(REFERENCE / "pixels.safetensors").items() if k.startswith("swift_")}
    assert len(found) == 2
    for name, expected in found.items():
        size, stride, count, seed, start = map(int, re.findall(r"\d+", name))
        config = DatasetConfig(path="-", num_frames=count, frame_stride=stride)
        (indices,) = choose_frames(12, 8, config, count, random.Random(seed))
        assert indices[0] == start
        flip = bool(torch.rand(1, generator=torch.Generator().manual_seed(seed)) < 0.5)
        error = pixels(REFERENCE / "pattern.mp4", indices, size, size, flip=flip).float() - grey_levels(expected)
        assert error.abs().max() < 1.5


@pytest.mark.parametrize("size", [(48, 64), (16, 16), (16, 64), (64, 16), (33, 57), (96, 128), (8, 120)])
def test_a_crop_fills_the_target_from_the_middle(size):
    found = pixels(REFERENCE / "pattern.mp4", [3], *size)
    assert found.shape == (1, 3, *size)
    mirrored = pixels(REFERENCE / "pattern.mp4", [3], *size, flip=True)
    assert mirrored.shape == found.shape
    assert not torch.equal(mirrored, found)


@pytest.mark.parametrize("size", [(48, 64), (16, 16), (16, 64), (64, 16), (33, 57), (96, 128), (8, 120)])
def test_a_cut_takes_the_middle_before_it_is_resized(size):
    file = REFERENCE / "pattern.mp4"
    found = pixels(file, [3], *size, cut=True)
    assert found.shape == (1, 3, *size)
    whole = torch.from_numpy(read_frames(file, [3])).permute(0, 3, 1, 2)
    top, left, height, width = middle(whole.shape[-2], whole.shape[-1], *size)
    piece = whole[..., top : top + height, left : left + width]
    if (height, width) == size:
        assert torch.equal(found, piece)
    resized = torch.nn.functional.interpolate(piece.float(), size, mode="bilinear", antialias=True)
    assert (found.float() - resized).abs().max() < 1.01
    mirrored = pixels(file, [3], *size, cut=True, flip=True)
    assert (mirrored.flip(-1).int() - found.int()).abs().max() <= 2
