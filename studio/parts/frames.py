"""What a model will see of clips: of each the first, the middle and the last frame, cut and resized as they train."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from studio.parts import part
from trainers.config import DatasetConfig, TrainConfig
from trainers.data.clips import DatasetError, ReadableDataset
from trainers.data.formats import open_dataset
from trainers.data.ledger import LedgerRow, ledger
from trainers.data.samples import Sample, draw_samples, window
from trainers.data.video import VideoError, read_frames
from trainers.families.base import ModelFamily

#: Clips that are shown, and the longer side of a picture on the page, in pixels.
MOST_CLIPS, _SIDE = 4, 280


def frame_strips(**settings: Any) -> Any:
    """The part; it shows nothing but its line while there are no clips."""
    return part("frames", frames_value("", [], ""), **settings)


def frames_value(key: str, clips: Sequence[dict[str, Any]], line: str) -> dict[str, Any]:
    """What the part shows. key: tells what was asked for from what is asked for now. line: said beneath the clips."""
    return {"key": key, "clips": list(clips), "line": line}


def first_samples(
    dataset: ReadableDataset, rows: Sequence[LedgerRow], config: DatasetConfig, seed: int
) -> list[Sample]:
    """The first sample of each of the first usable clips, as a run of that seed begins with it."""
    usable = [row for row in rows if row.status != "dropped"][:MOST_CLIPS]
    found: dict[str, Sample] = {}
    for sample in draw_samples(dataset, usable, config, seed, 0):
        found.setdefault(sample.clip.file_name, sample)
    return list(found.values())


def seen_frames(
    config: TrainConfig, family: ModelFamily, root: Path, report: Callable[[int, int], None] | None = None
) -> dict[str, Any]:
    """What the part shows of a run: its first clips that can be used, or why there are none. root and report: see
    `open_dataset`."""
    key = frames_key(config)
    try:
        dataset = open_dataset(config.dataset, root, report, fetch=False)
        rows = ledger(dataset, config, family)
        clips = [strip(sample) for sample in first_samples(dataset, rows, config.dataset, config.seed)]
    except DatasetError as error:
        return frames_value(key, [], str(error))
    usable = sum(row.status != "dropped" for row in rows)
    if not usable:
        return frames_value(key, [], "No clip can be used.")
    every = "The one clip" if usable == 1 else f"All {usable} clips"
    line = f"{f'The first {len(clips)} of {usable} clips' if usable > len(clips) else every} that can be used"
    if config.dataset.prepared:
        line += ", by its video: what trains lies encoded beside it"
    elif config.dataset.frame_selection == "random":
        line += ", from where this seed lets it start first"
    return frames_value(key, clips, f"{line}.")


def frames_key(config: TrainConfig | None) -> str:
    """What the frames that a model sees depend on, besides the files."""
    if config is None:
        return ""
    other = {"repeats", "caption_dropout", "batch_size", "variants", "cache", "cache_dir"}
    return f"{config.seed} {config.dataset.model_dump_json(exclude=other)}"


def strip(sample: Sample) -> dict[str, Any]:
    """A sample as the part shows it: its pictures with their numbers, and what there is to say of it."""
    count = len(sample.indices)
    places = sorted({0, count // 2, count - 1})
    shown: dict[str, Any] = {
        "name": sample.clip.name,
        "text": sample.clip.text,
        "facts": f"{count} frame{'' if count == 1 else 's'} at {sample.width} x {sample.height}",
        "pictures": [],
    }
    try:
        frames = read_frames(sample.file, [sample.indices[place] for place in places])
    except VideoError as error:
        return {**shown, "problem": str(error)}
    shown["pictures"] = [
        {"look": _look(Image.fromarray(frame), sample), "number": f"frame {sample.indices[place]}"}
        for place, frame in zip(places, frames, strict=True)
    ]
    return shown


def _look(picture: Image.Image, sample: Sample) -> str:
    """A frame in small, as an address that holds it (data:)."""
    box = window(sample, picture.height, picture.width)
    scale = min(1.0, _SIDE / max(sample.width, sample.height))
    size = max(1, round(sample.width * scale)), max(1, round(sample.height * scale))
    small = picture.resize(size, Image.Resampling.BILINEAR, box=box)
    if sample.flip:
        small = small.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    data = io.BytesIO()
    small.save(data, "WEBP", quality=80)
    return "data:image/webp;base64," + base64.b64encode(data.getvalue()).decode()
