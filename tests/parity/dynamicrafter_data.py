"""The reference's WebVid reader against the product's: which clip, which frames, how they are cut, what the model is
told of their pace."""

from __future__ import annotations

import random
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from tests.parity.vectors import Case, Report, Tensors, Vectors
from trainers.data.clips import Clip
from trainers.data.frames import choose_frames, drawn_as_reference
from trainers.data.loader import fitted
from trainers.data.samples import Sample
from trainers.families.dynamicrafter.compat_parts import TOOL, WEBVID, clips_of
from trainers.families.dynamicrafter.config import DynamiCrafterDatasetConfig, DynamiCrafterTrainConfig
from trainers.families.dynamicrafter.facts import PUBLISHED
from trainers.families.dynamicrafter.model import DynamiCrafter
from trainers.foreign import read_keys

CASES = "dataset_cases.json"
PICTURES = "image_preprocess.safetensors"
TRANSFORM = "_resize_center_crop_"
ROWS = ("cap v", "cap ok")
SECOND = (400, 30.0)  # frames and rate of the clip in the second row, the same in every case
LEVELS = 1e-3  # of 255


def check(vectors: Vectors, report: Report) -> None:
    """Cases of datasets and pictures."""
    if CASES in vectors:
        for number, entry in enumerate(vectors.json(CASES)):
            with report.case(f"clip {number}", entry) as case:
                check_clip(case, report)
    if PICTURES in vectors:
        with report.check("pictures of clips"):
            check_pictures(vectors.tensors(PICTURES), report)


def check_clip(case: Case, report: Report) -> None:
    """A sample as the reference draws it, mistakes and all; and as it is drawn without them."""
    values = read_keys({"data_dir": "-", "meta_path": "-", **case["dataset_args"]}, WEBVID, TOOL)
    clips = [(case["frames_in_video"], case["avg_fps"]), SECOND]
    wrong = section(values, upstream_defects=True)
    found = drawn_as_reference(clips, 0, wrong, wrong.num_frames, generator(case))
    if found is None:
        report.failed(case.name, "gives no sample")
        return
    row, indices = found
    report.equal(f"{case.name} row", ROWS[row], case["picked"])
    report.equal(f"{case.name} frames", indices, case["frame_indices"])
    sample = sample_of(wrong, indices, clips[row][1])
    report.equal(f"{case.name} stride", sample.stride, case["frame_stride"])
    report.equal(f"{case.name} fps", told("512", sample, values["fps_max"]), case["fps"])
    report.equal(f"{case.name} stride, told", told("256", sample, values["fps_max"]), case["frame_stride"])
    height, width = case["height_width"]
    pixels = fitted(torch.zeros(len(indices), 3, height, width), sample).transpose(0, 1)
    report.equal(f"{case.name} shape", list(pixels.shape), case["video_shape"])
    check_without_mistakes(case, values, clips, row, indices, report)


def check_without_mistakes(
    case: Case, values: dict[str, Any], clips: list[tuple[int, float]], row: int, indices: list[int], report: Report
) -> None:
    """The same clip or none: one that cannot be used takes nobody's place, and leaves no trace in another's stride."""
    if values["random_fs"] and values["fixed_fps"] is not None:
        return  # whether a clip is long enough depends on the stride that is drawn, here on the smallest
    right = section(values)
    samples = [choose_frames(*clip, right, right.num_frames, generator(case)) for clip in clips]
    report.equal(f"{case.name} used", [bool(sample) for sample in samples], [row == 0, True])
    compounded = row == 1 and values["fixed_fps"] is not None and clips[0][0] >= right.num_frames
    if not compounded:
        report.equal(f"{case.name} frames without mistakes", samples[row], [indices])
        return
    stride = max(1, int(values["frame_stride"] * SECOND[1] / values["fixed_fps"]))
    (own,) = samples[1]
    report.equal(f"{case.name} stride without mistakes", {b - a for a, b in pairwise(own)}, {stride})


def check_pictures(tensors: Tensors, report: Report) -> None:
    for name in (name for name in tensors if TRANSFORM in name):
        picture, size = name.split(TRANSFORM)
        height, width = map(int, size.split("x"))
        pixels = tensors.take(f"{picture}_u8")
        values = read_keys({"data_dir": "-", "meta_path": "-", "resolution": [height, width]}, WEBVID, TOOL)
        config = section({**values, "spatial_transform": TRANSFORM.strip("_")}, upstream_defects=True)
        sample = sample_of(config, [0], 8.0)
        expected = tensors.take(name)
        report.close(name, fitted(pixels.float(), sample).reshape(expected.shape), expected, LEVELS, "levels")
        if not (expected == 0).all(dim=-2).any() and not (expected == 0).all(dim=-1).any():  # without bars
            plain = sample_of(section({**values, "spatial_transform": TRANSFORM.strip("_")}), [0], 8.0)
            found = fitted(pixels.float(), plain).reshape(expected.shape)
            report.close(f"{name} without mistakes", found, expected, LEVELS, "levels")


def section(values: dict[str, Any], **own: Any) -> DynamiCrafterDatasetConfig:
    """The reader's arguments as the product's settings."""
    return DynamiCrafterDatasetConfig(path="-", **{**clips_of({"spatial_transform": None, **values}), **own})


def generator(case: Case) -> random.Random:
    return random.Random(case["python_random_seed"])


def sample_of(config: DynamiCrafterDatasetConfig, indices: list[int], fps: float) -> Sample:
    clip = Clip("-", "", 0, fps, 0, 0, 0.0, "")
    bars = config.as_reference and config.fit in ("crop", "middle")
    piece = (0.5, 0.5) if config.fit == "middle" else None
    size = config.height, config.width
    whole = tuple(indices), *size, False, False
    return Sample(clip, Path("-"), *whole, piece=piece, bars=bars, smooth=config.smooth)


def told(variant: str, sample: Sample, fps_max: int | None) -> float:
    """What the model is told of a sample, from the batch that a run makes of it."""
    dataset = {"path": "-", "num_frames": 16}
    settings = {"family": "dynamicrafter", "base_model": "-", "dataset": dataset, "fps_max": fps_max}
    holder: Any = SimpleNamespace(facts=PUBLISHED[variant], config=DynamiCrafterTrainConfig(**settings))
    batch = {"clip_fps": torch.tensor([sample.clip.fps]), "frame_stride": torch.tensor([float(sample.stride)])}
    return float(DynamiCrafter._pace(holder, batch))
