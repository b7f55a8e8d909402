"""CogVideoX's trainers against their own answers to: which frames, which pairs of video and caption, which pictures.

What is compared is always the product's own answer: frames go through `DatasetConfig`, `most_frames` and
`choose_frames`, pairs through `open_dataset` and the ledger's caption, pictures through `read_pixels`.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch

from tests.parity.vectors import Case, Report, Vectors
from trainers.config import DatasetConfig
from trainers.data.clips import Clip, DatasetError
from trainers.data.formats import open_dataset
from trainers.data.frames import choose_frames, most_frames
from trainers.data.ledger import caption_of
from trainers.data.loader import Sample, read_pixels
from trainers.data.video import probe
from trainers.families.cogvideox.config import FAMILY

FRAMES, TEXTS = "frame_selection.json", "text_files.json"
PICTURES, PIXELS = "video_frames.json", "video_frames.safetensors"
#: Grey levels of 255, on average and for the worst pixel. Exact but for clips of which only the width changes: there
#: FFmpeg's scaler has changed since decord was built.
MEAN, WORST = 3.0, 24.0


def check(vectors: Vectors, report: Report) -> None:
    """Every file of a folder that is about data."""
    if FRAMES in vectors:
        with report.check(FRAMES):
            for kind, cases in vectors.json(FRAMES).items():
                for number, facts in enumerate(cases):
                    with report.case(f"{kind} {number}", facts) as case:
                        check_frames(kind, case, report)
    if TEXTS in vectors:
        with report.check(TEXTS):
            for number, facts in enumerate(vectors.json(TEXTS)):
                with report.case(f"text files {number}", facts) as case:
                    check_pairs(case, vectors.made(f"text-files-{number}"), report)
    if PICTURES in vectors:
        with report.check(PICTURES):
            for facts in vectors.json(PICTURES):
                with report.case(facts["key"], facts) as case:
                    file = vectors.file(case["video"])
                    check_pictures(case, file, vectors.tensors(PIXELS).take(case["key"]), report)


# --- frames -----------------------------------------------------------------------------------------------------------


def settings(kind: str, case: Case) -> DatasetConfig:
    """How a clip is asked for as the seed-time script, CogVideo's current trainer or cogvideox-factory does it."""
    values: dict[str, Any] = {"path": "-", "frame_selection": "strided", "fit": "stretch"}
    most = case["max_num_frames"]
    if kind == "seed_time_script":
        skips = {f"skip_frames_{end}": case[f"skip_frames_{end}"] for end in ("start", "end")}
        return DatasetConfig(**values, **skips, num_frames=most, frame_buckets=True)
    if kind == "cogvideo_today":
        return DatasetConfig(**values, num_frames=most, repeat_frames=True)
    if kind == "cogvideox_factory":  # which has a list of lengths, of which the nearest one is what is asked for here
        wanted = min(case["num_video_frames"], most)
        return DatasetConfig(**values, num_frames=min(case["frame_buckets"], key=lambda bucket: abs(bucket - wanted)))
    raise KeyError(f"no check knows the frames of {kind}")


def frames_of(kind: str, config: DatasetConfig, available: int) -> list[int]:
    """The frames that a clip of so many gives: none where the ledger drops it."""
    length = most_frames(available, 8.0, config)
    if kind == "seed_time_script":
        length = FAMILY.frames_within(length)
    if length < config.num_frames and not config.frame_buckets:
        return []
    found = choose_frames(available, 8.0, config, length, random.Random(0))
    return found[0] if found else []


def check_frames(kind: str, case: Case, report: Report) -> None:
    """The frames of a case of frame_selection.json; where the original fails, there are none."""
    found = frames_of(kind, settings(kind, case), case["num_video_frames"])
    report.equal(case.name, found, [] if case.get("error") else case["frames"])


# --- pairs ------------------------------------------------------------------------------------------------------------


def check_pairs(case: Case, folder: Path, report: Report) -> None:
    """The pairs of a case of text_files.json, made in an empty folder, or that there is an error. The mark at the
    beginning of a UTF-8 file, which the original keeps in the first caption, is no part of the text here."""
    for name in case["existing_files"]:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    for name, key in (("prompts.txt", "prompts_txt"), ("videos.txt", "videos_txt")):
        (folder / name).write_bytes(case[key].encode())
    config = DatasetConfig(path=str(folder), format="paired", id_token=case["id_token"], id_token_glued=True)
    try:
        clips = open_dataset(config).clips
    except DatasetError as error:
        return report.equal(case.name, f"error: {error}" if not case.get("error") else "error", "error")
    found = [(clip.file_name, caption_of(clip.text, config)) for clip in clips]
    expected = zip(case["videos"], (text.replace("\ufeff", "") for text in case["prompts"]), strict=True)
    return report.equal(case.name, found, list(expected))


# --- pictures ---------------------------------------------------------------------------------------------------------


def check_pictures(case: Case, file: Path, expected: torch.Tensor, report: Report) -> None:
    """The pictures of a case of video_frames.json: expected (f, 3, h, w) uint8."""
    clip = probe(file)
    shown = {"src_frames": clip.num_frames, "src_width": clip.width, "src_height": clip.height}
    for name, value in shown.items():
        if name in case:
            report.equal(f"{case.name} {name}", value, case[name])
    kind = "cogvideo_today" if case["key"].endswith(".today") else "seed_time_script"
    indices = tuple(frames_of(kind, settings(kind, case), clip.num_frames))
    facts = Clip(file.name, "", clip.num_frames, clip.fps, clip.width, clip.height, clip.duration, "")
    found = read_pixels(Sample(facts, file, indices, case["height"], case["width"], stretch=True, flip=False))
    report.equal(f"{case.name} shape", list(found.shape), case["out_shape_FCHW"])
    report.measured(f"{case.name} mean", float((found.float() - expected.float()).abs().mean()), MEAN, "grey levels")
    report.close(f"{case.name} pixel", found, expected, WORST, "grey levels")
