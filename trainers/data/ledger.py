"""The ledger: what becomes of every clip of a dataset in a run, and why. No torch."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from trainers.config import DatasetConfig, TrainConfig
from trainers.data.clips import Clip, DatasetError, ReadableDataset
from trainers.data.frames import (
    choose_frames,
    full_frames,
    lowered_stride,
    lowers_stride,
    most_frames,
    most_stride,
    needed_frames,
    stride_over,
    usable_frames,
)
from trainers.families.base import Finding, ModelFamily


@dataclass(frozen=True)
class LedgerRow:
    """What becomes of a clip: trained at this size and length, or dropped (then num_frames is 0). reason: a sentence,
    or empty when there is nothing to say. trimmed: some of its frames are never seen. clip: with the caption that it
    trains with, which is what is encoded, cached and compared. prepared: it is encoded already, beside its video."""

    clip: Clip
    status: Literal["used", "trimmed", "dropped"]
    reason: str
    num_frames: int
    height: int
    width: int
    prepared: bool = False


def ledger(dataset: ReadableDataset, config: TrainConfig, family: ModelFamily) -> list[LedgerRow]:
    """One row for each clip, in order: nothing is left out silently."""
    dataset.reload()
    if config.dataset.prepared:
        return [_prepared_row(clip, dataset, config.dataset, family) for clip in dataset.clips]
    return [
        _ledger_row(clip, dataset.problem(clip), dataset.remark(clip), config.dataset, family) for clip in dataset.clips
    ]


def caption_of(text: str, config: DatasetConfig) -> str:
    """The caption that a clip with this text trains with: behind `dataset.id_token`, where there is one."""
    if config.id_token is None:
        return text
    if config.id_token_glued:
        return config.id_token + text
    return f"{config.id_token.strip()} {text}".strip() if text.strip() else config.id_token.strip()


def ledger_summary(rows: Sequence[LedgerRow], repeats: int = 1) -> str:
    """Such as "36 used, 1 trimmed, 2 dropped; each counts 4 times in a pass"."""
    counts = ", ".join(
        f"{sum(row.status == status for row in rows)} {status}" for status in ("used", "trimmed", "dropped")
    )
    return counts + (f"; each counts {repeats} times in a pass" if repeats > 1 else "")


def ledger_messages(
    rows: Sequence[LedgerRow], repeats: int = 1, most: int = 20
) -> list[tuple[Literal["warning", "info"], str]]:
    """(level, sentence) of each clip there is something to say of, then the summary. Beyond `most`: how many more."""
    said: list[tuple[Literal["warning", "info"], str]] = []
    dropped = [row for row in rows if row.status == "dropped"]
    others = [row for row in rows if row.status != "dropped" and row.reason]
    said += [("warning", named(row)) for row in dropped[:most]]
    if len(dropped) > most:
        said.append(("warning", f"{_counted(len(dropped) - most, 'more clip')} dropped"))
    said += [("info", named(row)) for row in others[:most]]
    if len(others) > most:
        said.append(("info", f"{_counted(len(others) - most, 'more clip')} with remarks of this kind"))
    return [*said, ("info", f"clips: {ledger_summary(rows, repeats)}")]


def size_hints(rows: Sequence[LedgerRow], config: DatasetConfig) -> list[Finding]:
    """What can be gained by clips of one shape: a batch holds one size and length only, and on a GPU every change
    costs time, as those who trained motion modules on mixed sizes found."""
    usable = [row for row in rows if row.status != "dropped"]
    found = []
    sizes = Counter(f"{row.width} x {row.height}" for row in usable)
    if len(sizes) > 1:
        text = f"the clips train in {_listed(sizes)}: every change of size costs time; clips of one shape train faster"
        way = "" if config.prepared else ", and so does dataset.fit crop"
        found.append(Finding("info", text + way, "dataset.fit"))
    lengths = Counter(f"{row.num_frames} frames" for row in usable)
    if len(lengths) > 1:
        text = f"the clips train with {_listed(lengths)}: every change of length costs time; equal ones train faster"
        found.append(Finding("info", text, "dataset.frame_buckets"))
    return found


def _listed(counts: Counter[str], most: int = 4) -> str:
    """``512 x 288 (8 clips) and 288 x 512 (1 clip)``, the most frequent first."""
    parts = [f"{what} ({_counted(n, 'clip')})" for what, n in counts.most_common(most)]
    if len(counts) > most:
        parts.append(f"{len(counts) - most} more")
    return f"{', '.join(parts[:-1])} and {parts[-1]}"


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def named(row: LedgerRow) -> str:
    """What there is to say of a clip, beginning with its name."""
    return row.reason if row.clip.name in row.reason else f"{row.clip.name}: {row.reason}"


def nothing_to_train(
    dataset: ReadableDataset, rows: Sequence[LedgerRow], config: TrainConfig
) -> tuple[str, str] | None:
    """(field, sentence) when no clip is left to train on; None when there is one."""
    usable = len({row.clip.sha256 for row in rows if row.status != "dropped"})  # copies are one clip
    if not rows:
        return "dataset.path", f"dataset {dataset.path} is empty; add clips to it first"
    if not usable:
        if len(rows) == 1:
            return "dataset.path", f"the one clip of the dataset cannot be used: {rows[0].reason}"
        return "dataset.path", f"none of the dataset's {len(rows)} clips can be used; the first: {rows[0].reason}"
    if config.validation.holdout >= usable:
        return "validation.holdout", (
            f"validation.holdout is {config.validation.holdout}, but only {usable} clips can be used; "
            f"lower it to {usable - 1}"
        )
    return None


def _ledger_row(clip: Clip, problem: str | None, remark: str, config: DatasetConfig, family: ModelFamily) -> LedgerRow:
    if problem:
        return LedgerRow(clip, "dropped", problem, 0, config.height, config.width)
    height, width = _size(clip, config, family.size_multiple)
    tall, wide = config.decoded_size or (clip.height, clip.width)
    if config.fit in ("middle", "piece") and (wide < width or tall < height) and not config.as_reference:
        return LedgerRow(clip, "dropped", _too_small(clip, config), 0, height, width)
    if not config.upscale and (clip.width < width or clip.height < height):
        return LedgerRow(clip, "dropped", _to_enlarge(clip, height, width), 0, height, width)
    num_frames = family.frames_within(most_frames(clip.num_frames, clip.fps, config))
    if not num_frames or (num_frames < config.num_frames and not config.frame_buckets):
        return LedgerRow(clip, "dropped", _too_short(clip, config, num_frames), 0, height, width)
    notes = [remark] if remark else []
    if num_frames < config.num_frames:
        notes.append(_shortened(clip, config, num_frames))
    notes += filter(None, [_lowered(clip, config, num_frames), _stretch(clip, config, num_frames)])
    skipped = _in_words(_skipped(clip, config))
    if skipped:
        notes.append(f"skipped: {skipped}")
    unseen, repeats = _coverage(clip, config, num_frames)
    if unseen:
        notes.append(f"never seen: {unseen}")
    if repeats:
        notes.append(f"frames repeat: it has {clip.fps:g} frames per second, dataset.fps asks for {config.fps:g}")
    notes += _about_caption(clip, config)
    status: Literal["used", "trimmed"] = "trimmed" if skipped or unseen else "used"
    trained = replace(clip, text=caption_of(clip.text, config))
    return LedgerRow(trained, status, "; ".join(notes), num_frames, height, width)


def _prepared_row(clip: Clip, dataset: ReadableDataset, config: DatasetConfig, family: ModelFamily) -> LedgerRow:
    """The row of a clip that is encoded already. Its video is only looked at, so it may be one that cannot be read."""
    file, problem = dataset.file(clip), dataset.problem(clip)
    notes = [dataset.remark(clip)]
    if problem and not file.is_file():
        return LedgerRow(clip, "dropped", problem, 0, config.height, config.width, prepared=True)
    try:
        found = family.prepared(file)
    except DatasetError as error:
        return LedgerRow(clip, "dropped", str(error), 0, config.height, config.width, prepared=True)
    if found is None:
        text = f"{family.title} cannot use {clip.name} as it is prepared; choose another dataset.format"
        return LedgerRow(clip, "dropped", text, 0, config.height, config.width, prepared=True)
    if problem:
        notes.append(f"only what lies encoded beside it is used: {problem.removesuffix('; remove the clip')}")
    if (found.num_frames, found.height, found.width) != (config.num_frames, config.height, config.width):
        asked = f"{config.num_frames} at {config.width} x {config.height}"
        notes.append(
            f"trains as it was prepared, with {found.num_frames} frames at {found.width} x {found.height}, not {asked}"
        )
    trained = replace(clip, sha256=found.sha256)  # not what its video holds is seen
    size = found.num_frames, found.height, found.width
    return LedgerRow(trained, "used", "; ".join(filter(None, notes)), *size, prepared=True)


def _too_small(clip: Clip, config: DatasetConfig) -> str:
    """The sentence for a clip of which no piece can be taken as it is."""
    return (
        f"{clip.name} has {clip.width} x {clip.height} pixels; at least {config.width} x {config.height} are needed "
        f"for dataset.fit {config.fit} - set it to crop, choose a smaller size, or remove the clip"
    )


def _to_enlarge(clip: Clip, height: int, width: int) -> str:
    """The sentence for a clip that would have to be enlarged."""
    return (
        f"{clip.name} has {clip.width} x {clip.height} pixels; at least {width} x {height} are needed while "
        "dataset.upscale is off - turn it on, choose a smaller size, or remove the clip"
    )


def _too_short(clip: Clip, config: DatasetConfig, num_frames: int) -> str:
    """The sentence for a clip without a single sample; num_frames: what the family could make of it, or 0."""
    paced = config.frame_selection not in ("uniform", "strided")
    how = f"{config.num_frames} frames"
    if paced:
        how += f" at stride {config.frame_stride}" if config.frame_stride > 1 else ""
        how += f" at {config.fps:g} frames per second" if config.fps else ""
    if config.frame_selection == "first" and config.start_frame:
        how += f" from frame {config.start_frame}"
    skips = {"start": config.skip_frames_start, "end": config.skip_frames_end}
    skips = {name: count for name, count in skips.items() if count}
    if skips:
        how += " besides " + " and ".join(f"{count} skipped at the {name}" for name, count in skips.items())
    needed = full_frames(config, clip.fps, config.num_frames)
    ways = [f"lower dataset.num_frames to {num_frames}"] if num_frames else []
    stride = most_stride(clip.num_frames, clip.fps, config) if paced else 0
    ways += [f"lower dataset.frame_stride to {stride}"] if stride else []
    ways += ["lower dataset.start_frame"] if config.frame_selection == "first" and config.start_frame else []
    ways += [f"lower dataset.skip_frames_{name}" for name in skips]
    if config.frame_selection == "strided" and num_frames:
        ways.append("set dataset.frame_buckets or dataset.repeat_frames")
    has = "1 frame" if clip.num_frames == 1 else f"{clip.num_frames} frames"
    why = f"{needed} are needed" + (f" ({how})" if how != f"{needed} frames" else "")
    if lowers_stride(config):
        least = needed_frames(config, clip.fps, config.num_frames)
        why = f"at least {least} are needed to lower its stride ({how})"
    elif paced and config.fps:
        there, lacking = clip.num_frames / clip.fps, (needed - clip.num_frames) / clip.fps
        why += f": {_seconds(needed / clip.fps)}, of which it has {_seconds(there)} and lacks {_seconds(lacking)}"
    return f"{clip.name} has {has}; {why} - {', '.join([*ways, ''])}{'or ' if ways else ''}remove the clip"


def _seconds(seconds: float) -> str:
    """In thousandths: a clip may be a single frame too short."""
    return f"{seconds:.3f}".rstrip("0").rstrip(".") + " s"


def _shortened(clip: Clip, config: DatasetConfig, num_frames: int) -> str:
    """What it means that a clip trains with fewer frames than asked for."""
    begin, end = usable_frames(clip.num_frames, config)
    left = " after skipping" if config.skip_frames_start or config.skip_frames_end else ""
    had = f"it has only {end - begin}{left}"
    if num_frames > 1:
        return f"trains with {num_frames} frames instead of {config.num_frames}: {had}"
    return (
        f"trains as a single picture (frame {begin}) instead of {config.num_frames} frames: {had}; remove it if it is "
        "to teach movement"
    )


def _lowered(clip: Clip, config: DatasetConfig, num_frames: int) -> str:
    """What `dataset.lower_stride` makes of a clip that is too short."""
    begin, end = usable_frames(clip.num_frames, config)
    needed = full_frames(config, clip.fps, num_frames)
    if not lowers_stride(config) or needed <= clip.num_frames or end - begin < num_frames:
        return ""
    stride = lowered_stride(end - begin, num_frames)
    drawn = "" if config.frame_stride_min is None else " where a larger one is drawn"
    return f"has {clip.num_frames} frames of {needed}: trains at stride {stride}{drawn}"


def _stretch(clip: Clip, config: DatasetConfig, num_frames: int) -> str:
    """What `dataset.repeat_frames` makes of a clip that is too short."""
    begin, end = usable_frames(clip.num_frames, config)
    has = end - begin
    needed = full_frames(config, clip.fps, num_frames) - config.skip_frames_start - config.skip_frames_end
    if not config.repeat_frames or config.frame_selection not in ("random", "strided") or has >= needed:
        return ""
    if config.frame_selection == "strided":
        return f"its last frame is repeated: it has {has}, {needed} are needed"
    what = "some frames are seen several times" if has < num_frames else "its frames lie closer than asked"
    return f"{what}: it has {has}, {needed} are needed"


def _skipped(clip: Clip, config: DatasetConfig) -> list[tuple[int, int]]:
    begin, end = usable_frames(clip.num_frames, config)
    return [(0, begin - 1), (end, clip.num_frames - 1)]


def _coverage(clip: Clip, config: DatasetConfig, num_frames: int) -> tuple[str, bool]:
    """Which of the frames that are not skipped no sample ever reaches, in words, and whether samples show a frame
    twice because of the rate that is asked for.

    Frames between two that are taken (a stride, a lower rate) count as reached: the movement over them is seen.
    """
    if config.frame_selection == "uniform" or (config.frame_selection == "random" and config.fps is None):
        return "", False
    fixed = config if config.frame_selection != "random" else config.model_copy(update={"frame_selection": "windows"})
    samples = choose_frames(clip.num_frames, clip.fps, fixed, num_frames, random.Random(0))
    repeats = any(len(set(sample)) < len(sample) for sample in samples) and config.frame_selection != "strided"
    if config.frame_selection == "random":
        return "", repeats
    begin, end = usable_frames(clip.num_frames, config)
    unseen = _in_words([(begin, samples[0][0] - 1), (samples[-1][-1] + 1, end - 1)])
    if unseen and config.frame_selection == "strided" and num_frames > 1:
        stride = stride_over(end - begin, config)
        taken = "every frame" if stride == 1 else f"one frame in {stride}"
        unseen += f" ({taken} is taken, from the front; dataset.frame_selection uniform spreads over the whole clip)"
    return unseen, repeats


def _in_words(gaps: Sequence[tuple[int, int]]) -> str:
    """``frame 0 and frames 40 to 49`` of gaps by their first and last frame; those that hold none are left out."""
    return " and ".join(f"frame {a}" if a == b else f"frames {a} to {b}" for a, b in gaps if a <= b)


def _about_caption(clip: Clip, config: DatasetConfig) -> list[str]:
    token = (config.id_token or "").strip()
    if not clip.text.strip():
        return [f"has no caption: it trains with {'dataset.id_token alone' if token else 'an empty one'}"]
    if token and clip.text.lstrip().startswith(token):
        return ["its caption begins with dataset.id_token already: it trains with the word twice"]
    return []


def _size(clip: Clip, config: DatasetConfig, multiple: int) -> tuple[int, int]:
    """(height, width) at which a clip trains; for buckets, of the sizes with about the same area, the best shape."""
    if config.fit != "buckets":
        return config.height, config.width
    area, shape = config.height * config.width, clip.height / clip.width
    sizes = []
    for height in range(multiple, area // multiple + 1, multiple):
        for width in (area / height, height / shape):
            down = max(multiple, int(width) // multiple * multiple)
            sizes += [(height, down), (height, down + multiple)]

    def far(size: tuple[int, int]) -> float:
        """A wrong shape costs picture at the edges, a wrong area only some speed or detail."""
        return abs(math.log(size[0] / size[1] / shape)) + abs(math.log(size[0] * size[1] / area)) / 4

    return min(sizes, key=far)
