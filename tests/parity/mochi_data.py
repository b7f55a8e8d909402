"""Genmo's preparation of clips against the product's: which frames, which piece of the picture, how many latents."""

from __future__ import annotations

import random
import re
from fractions import Fraction

from tests.parity.vectors import Case, Report, Vectors
from trainers.data.frames import choose_frames, needed_frames
from trainers.data.samples import middle
from trainers.families.mochi.config import FAMILY, FRAME_MULTIPLE, MochiDatasetConfig

PREPARATION = "preprocess.json"
FPS = 30


def check(vectors: Vectors, report: Report) -> None:
    if PREPARATION not in vectors:
        return
    with report.case(PREPARATION, vectors.json(PREPARATION)) as facts:
        facts["provenance"]
        for number, entry in enumerate(facts["frames"]):
            with report.case(f"frames {number}", entry) as case:
                check_length(case, report)
        for number, entry in enumerate(facts["crops"]):
            with report.case(f"crop {number}", entry) as case:
                check_crop(case, report)
        for number, entry in enumerate(facts["frame_index"]):
            with report.case(f"frame index {number}", entry) as case:
                report.equal(f"{case.name} rate", case["out_fps"], FPS)
                report.equal(case.name, shown(case["src_fps"], len(case["indices"])), case["indices"])
        measured = dict(facts["frame_index_measured_with_reference_script"])
        measured.pop("target")
        for name, indices in measured.items():
            report.equal(f"frames of {name}", shown(rate_of(name), len(indices)), indices)


def dataset(num_frames: int) -> MochiDatasetConfig:
    return MochiDatasetConfig(path="-", num_frames=num_frames)


def check_length(case: Case, report: Report) -> None:
    """Latent frames and tokens; and that what upstream writes is enough for us, which need no more than is shown."""
    frames = case["num_frames"]
    report.equal(f"{case.name} allowed", FAMILY.frames_within(frames), frames)
    latent = (frames - 1) // FRAME_MULTIPLE + 1
    report.equal(f"{case.name} latent frames", latent, case["latent_frames"])
    (shape,) = [case[name] for name in case if name.startswith("latent_shape_")]
    height, width = map(int, re.findall(r"\d+", next(name for name in case if name.startswith("latent_shape_")))[-2:])
    report.equal(f"{case.name} shape", [1, 12, latent, height // 8, width // 8], shape)
    report.equal(f"{case.name} tokens", latent * (height // 16) * (width // 16), case["visual_tokens"])
    written = case["frames_written"]
    report.equal(f"{case.name} written", round(float(case["duration_arg"]) * FPS), written)
    report.equal(f"{case.name} enough", needed_frames(dataset(frames), FPS, frames) <= written, True)


def check_crop(case: Case, report: Report) -> None:
    (width, height), (across, down) = case["src"], case["target"]
    config = dataset(37)
    small = not config.upscale and (width < across or height < down)
    report.equal(f"{case.name} left out", small, case["skipped"])
    if small:
        return
    top, left, tall, wide = middle(height, width, down, across)
    branch = case["branch"]
    report.equal(case.name, (left, top, wide, tall), (case["x1"], case["y1"], case["w"], case["h"]))
    report.equal(f"{case.name} branch", tall == height if branch == "width" else wide == width, True)


def shown(fps: float, frames: int) -> list[int]:
    """The clip's frames that stand for the first so many at 30 per second."""
    (found,) = choose_frames(10**6, fps, dataset(frames), frames, random.Random(0))
    return found


def rate_of(name: str) -> float:
    """Frames per second of a measured video by its name: f24.mp4, f2997.mp4 (29.97); the others have 30."""
    match = re.match(r"f(\d+)\.", name)
    if match is None:
        return float(FPS)
    digits = match[1]
    if len(digits) <= 3:
        return float(digits)
    whole = round(float(f"{digits[:2]}.{digits[2:]}"))  # 23.976, 29.97 and 59.94 are 24, 30 and 60 x 1000 / 1001
    return float(Fraction(whole * 1000, 1001))
