"""The ledger of what becomes of each clip."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import films
import pytest

from trainers.config import TrainConfig
from trainers.data.clips import Clip, Dataset
from trainers.data.frames import choose_frames
from trainers.data.ledger import ledger, ledger_messages, ledger_summary, nothing_to_train, size_hints
from trainers.data.video import VideoError
from trainers.families import get_family, parse_config

FAMILY = get_family("animatediff")


@pytest.fixture(scope="module")
def film(tmp_path_factory) -> Path:
    """31 frames at 8 fps, 64 x 64."""
    return films.plain(tmp_path_factory.mktemp("source") / "film.mp4", count=31)


@pytest.fixture(scope="module")
def made(tmp_path_factory, film) -> Path:
    """A dataset of one clip. Read it, never write into it."""
    dataset = Dataset.create(tmp_path_factory.mktemp("sets") / "one")
    dataset.add(film, "a red square")
    return dataset.path


def foreign(folder: Path, *rows: dict) -> Path:
    """A folder with a metadata.jsonl that somebody else wrote."""
    folder.mkdir(exist_ok=True)
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def config_of(dataset: Dataset, **values) -> TrainConfig:
    section = {"path": str(dataset.path), "num_frames": 16, "height": 64, "width": 64, **values}
    data = {"family": FAMILY.name, "method": "motion_module", "base_model": "base", "dataset": section}
    return parse_config(data)


def row_of(dataset: Dataset, **values):
    (row,) = ledger(dataset, config_of(dataset, **values), FAMILY)
    return row


@pytest.mark.parametrize(
    ("values", "status", "reason"),
    [
        ({"frame_selection": "random"}, "used", ""),
        ({"frame_selection": "uniform"}, "used", ""),
        ({"frame_selection": "first"}, "trimmed", "never seen: frames 16 to 30"),
        ({"frame_selection": "first", "start_frame": 15}, "trimmed", "never seen: frames 0 to 14"),
        ({"frame_selection": "first", "start_frame": 3}, "trimmed", "never seen: frames 0 to 2 and frames 19 to 30"),
        ({"frame_selection": "first", "frame_stride": 2}, "used", ""),
        ({"frame_selection": "windows"}, "trimmed", "never seen: frames 16 to 30"),
        ({"frame_selection": "windows", "num_frames": 15}, "trimmed", "never seen: frame 30"),
        ({"frame_selection": "windows", "num_frames": 31}, "used", ""),
        (
            {"frame_selection": "random", "fps": 12},
            "used",
            "frames repeat: it has 8 frames per second, dataset.fps asks for 12",
        ),
    ],
)
def test_what_becomes_of_a_clip_that_is_long_enough(made, values, status, reason):
    row = row_of(Dataset.open(made), **values)
    assert (row.status, row.reason) == (status, reason)
    assert (row.num_frames, row.height, row.width) == (values.get("num_frames", 16), 64, 64)


def test_the_ledger_speaks_of_the_frames_that_are_chosen(made):
    dataset = Dataset.open(made)
    for values in ({"frame_selection": "windows", "num_frames": 7}, {"frame_selection": "first", "num_frames": 9}):
        row, config = row_of(dataset, **values), config_of(dataset, **values).dataset
        seen = {k for sample in choose_frames(31, 8, config, row.num_frames, None) for k in sample}
        first_unseen = int(row.reason.rsplit("frames ", 1)[-1].split()[0])
        assert seen == set(range(first_unseen))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (
            {"frame_stride": 3},
            "has 31 frames; 46 are needed (16 frames at stride 3) - "
            "lower dataset.num_frames to 11, lower dataset.frame_stride to 2, or remove the clip",
        ),
        ({"num_frames": 32}, "has 31 frames; 32 are needed - lower dataset.num_frames to 31, or remove the clip"),
        (
            {"fps": 2, "frame_selection": "first"},
            "has 31 frames; 61 are needed (16 frames at 2 frames per second): 7.625 s, of which it has 3.875 s and "
            "lacks 3.75 s - lower dataset.num_frames to 8, or remove the clip",
        ),
        (
            {"frame_selection": "first", "start_frame": 40},
            "has 31 frames; 56 are needed (16 frames from frame 40) - lower dataset.start_frame, or remove the clip",
        ),
    ],
)
def test_a_clip_that_is_too_short_says_what_to_do(made, values, words):
    dataset = Dataset.open(made)
    row = row_of(dataset, **values)
    assert row.status == "dropped"
    assert row.reason == f"{dataset.clips[0].name} {words}"
    assert row.num_frames == 0


def test_following_the_advice_makes_the_clip_usable(made):
    dataset = Dataset.open(made)
    assert row_of(dataset, frame_stride=3, num_frames=11).status == "used"
    assert row_of(dataset, frame_stride=2).status == "used"


def test_a_clip_of_one_frame(tmp_path):
    dataset = Dataset.create(tmp_path / "set")
    clip = dataset.add(films.plain(tmp_path / "still.mp4", count=1), "a still")
    row = row_of(dataset)
    assert row.status == "dropped"
    assert row.reason.startswith(f"{clip.name} has 1 frame; 16 are needed - lower dataset.num_frames to 1, or")
    assert row_of(dataset, num_frames=1).status == "used"


def test_frame_buckets_take_what_there_is(made):
    dataset = Dataset.open(made)
    row = row_of(dataset, frame_stride=3, frame_buckets=True)
    assert (row.status, row.num_frames) == ("used", 11)
    assert row.reason == "trains with 11 frames instead of 16: it has only 31"
    rule = replace(FAMILY, frames_within=lambda n: (n - 1) // 4 * 4 + 1)
    (row,) = ledger(dataset, config_of(dataset, frame_stride=3, frame_buckets=True), rule)
    assert row.num_frames == 9
    never = replace(FAMILY, frames_within=lambda n: 0)
    (row,) = ledger(dataset, config_of(dataset, frame_stride=3, frame_buckets=True), never)
    assert row.status == "dropped"
    assert "num_frames" not in row.reason


def test_every_clip_ends_in_the_ledger(tmp_path, film):
    rows = [{"file_name": name, "text": "x"} for name in ("ok.mp4", "gone.mp4", "text.mp4", "short.mp4")]
    folder = foreign(tmp_path / "set", *rows, {"file_name": "mute.mp4"})
    shutil.copy(film, folder / "ok.mp4")
    films.plain(folder / "mute.mp4", count=20)
    films.plain(folder / "short.mp4", count=4)
    (folder / "text.mp4").write_text("a letter")
    dataset = Dataset.open(folder)
    found = ledger(dataset, config_of(dataset), FAMILY)
    assert [(row.clip.name, row.status) for row in found] == [
        ("ok.mp4", "used"),
        ("gone.mp4", "dropped"),
        ("text.mp4", "dropped"),
        ("short.mp4", "dropped"),
        ("mute.mp4", "used"),
    ]
    assert found[1].reason == "gone.mp4 is missing; put the file back or remove the clip"
    assert found[2].reason == "text.mp4 is not a video (it holds text); remove the clip"
    assert found[4].reason == "has no caption: it trains with an empty one"
    assert ledger_summary(found) == "2 used, 0 trimmed, 3 dropped"
    assert dataset.problem(dataset.clips[1]) == found[1].reason
    with pytest.raises(VideoError, match=r"gone\.mp4 is missing"):
        dataset.thumbnail(dataset.clips[1])
    (folder / "ok.mp4").unlink()
    assert ledger(dataset, config_of(dataset), FAMILY)[0].status == "dropped"  # gone since the dataset was opened


def test_an_empty_dataset_has_an_empty_ledger(tmp_path):
    dataset = Dataset.create(tmp_path / "set")
    assert ledger(dataset, config_of(dataset), FAMILY) == []


@pytest.mark.parametrize(
    ("shape", "target", "expected"),
    [
        ((1080, 1920), (256, 256), (192, 344)),
        ((1920, 1080), (256, 256), (344, 192)),
        ((480, 640), (384, 512), (384, 512)),
        ((512, 512), (256, 256), (256, 256)),
        ((64, 64), (32, 32), (32, 32)),
    ],
)
def test_buckets_keep_the_shape_and_the_area(made, shape, target, expected):
    from trainers.data.ledger import _size

    dataset = Dataset.open(made)
    clip: Clip = replace(dataset.clips[0], height=shape[0], width=shape[1])
    config = config_of(dataset, fit="buckets", height=target[0], width=target[1]).dataset
    height, width = _size(clip, config, 8)
    assert (height, width) == expected
    assert height % 8 == width % 8 == 0
    assert height * width == pytest.approx(target[0] * target[1], rel=0.13)
    assert height / width == pytest.approx(shape[0] / shape[1], rel=0.03)
    assert _size(clip, config.model_copy(update={"fit": "crop"}), 8) == target


def test_bucket_sizes_reach_the_ledger(tmp_path):
    dataset = Dataset.create(tmp_path / "set")
    dataset.add(films.plain(tmp_path / "wide.mp4", count=3, width=128, height=64), "x")
    row = row_of(dataset, fit="buckets", num_frames=3, height=64, width=64)
    assert (row.height, row.width) == (48, 96)


# --- what is said of it ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "frames", "reason"),
    [
        ({"num_frames": 16, "frame_stride": 2}, 16, ""),
        ({"num_frames": 16, "frame_stride": 3}, 16, "its frames lie closer than asked: it has 31, 46 are needed"),
        ({"num_frames": 32}, 32, "some frames are seen several times: it has 31, 32 are needed"),
        ({"num_frames": 16, "fps": 2}, 16, "its frames lie closer than asked: it has 31, 61 are needed"),
    ],
)
def test_a_stretched_clip_says_so(made, values, frames, reason):
    row = row_of(Dataset.open(made), repeat_frames=True, frame_buckets=True, **values)
    assert (row.status, row.num_frames, row.reason) == ("used", frames, reason)


@pytest.mark.parametrize(
    ("values", "status", "frames", "reason"),
    [
        ({"frame_selection": "random", "skip_frames_start": 2, "skip_frames_end": 1}, "trimmed", 16,
         "skipped: frames 0 to 1 and frame 30"),
        ({"frame_selection": "uniform", "skip_frames_end": 15}, "trimmed", 16, "skipped: frames 16 to 30"),
        ({"frame_selection": "first", "skip_frames_start": 5, "start_frame": 2}, "trimmed", 16,
         "skipped: frames 0 to 4; never seen: frames 5 to 6 and frames 23 to 30"),
        ({"frame_selection": "windows", "skip_frames_start": 3}, "trimmed", 16,
         "skipped: frames 0 to 2; never seen: frames 19 to 30"),
        ({"frame_selection": "strided"}, "trimmed", 16, "never seen: frames 16 to 30 (every frame is taken, from the "
         "front; dataset.frame_selection uniform spreads over the whole clip)"),
        ({"frame_selection": "strided", "num_frames": 9}, "trimmed", 9, "never seen: frames 25 to 30 (one frame in 3 "
         "is taken, from the front; dataset.frame_selection uniform spreads over the whole clip)"),
        ({"frame_selection": "strided", "num_frames": 31}, "used", 31, ""),
        ({"frame_selection": "strided", "num_frames": 32, "repeat_frames": True}, "used", 32,
         "its last frame is repeated: it has 31, 32 are needed"),
        ({"frame_selection": "strided", "num_frames": 32, "frame_buckets": True}, "trimmed", 29,
         "trains with 29 frames instead of 32: it has only 31; never seen: frames 29 to 30 (every frame is taken, from "
         "the front; dataset.frame_selection uniform spreads over the whole clip)"),
        ({"frame_selection": "strided", "num_frames": 32, "frame_buckets": True, "skip_frames_start": 28}, "trimmed", 1,
         "trains as a single picture (frame 28) instead of 32 frames: it has only 3 after skipping; remove it if it is "
         "to teach movement; skipped: frames 0 to 27; never seen: frames 29 to 30"),
        ({"frame_selection": "strided", "num_frames": 5, "repeat_frames": True, "skip_frames_start": 20,
          "skip_frames_end": 20}, "trimmed", 5,
         "its last frame is repeated: it has 1, 5 are needed; skipped: frames 0 to 19 and frames 21 to 30"),
    ],
)  # fmt: skip
def test_what_is_trimmed_is_said_with_the_reason(made, values, status, frames, reason):
    dataset = Dataset.open(made)
    family = replace(FAMILY, frames_within=lambda n: (n - 1) // 4 * 4 + 1 if values.get("frame_buckets") else n)
    (row,) = ledger(dataset, config_of(dataset, **values), family)
    assert (row.status, row.num_frames, row.reason) == (status, frames, reason)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"frame_selection": "strided", "num_frames": 32}, "has 31 frames; 32 are needed - lower dataset.num_frames to "
         "31, set dataset.frame_buckets or dataset.repeat_frames, or remove the clip"),
        ({"skip_frames_start": 10, "skip_frames_end": 8}, "has 31 frames; 34 are needed (16 frames besides 10 skipped "
         "at the start and 8 skipped at the end) - lower dataset.num_frames to 13, lower dataset.skip_frames_start, "
         "lower dataset.skip_frames_end, or remove the clip"),
        ({"frame_selection": "strided", "skip_frames_start": 31}, "has 31 frames; 47 are needed (16 frames besides 31 "
         "skipped at the start) - lower dataset.skip_frames_start, or remove the clip"),
    ],
)  # fmt: skip
def test_a_clip_that_is_too_short_after_skipping_says_what_to_do(made, values, words):
    dataset = Dataset.open(made)
    row = row_of(dataset, **values)
    assert (row.status, row.reason) == ("dropped", f"{dataset.clips[0].name} {words}")


def test_what_is_unusual_about_a_clip_is_said(tmp_path, film):
    folder = foreign(tmp_path / "set", {"file_name": "uneven.mp4", "text": "x"})
    films.uneven(folder / "uneven.mp4", film)
    row = row_of(Dataset.open(folder))
    assert (row.status, row.reason) == ("used", "its frames stand for different times, but are taken by number")


def test_thousands_of_clips_are_counted_not_listed(made):
    dataset = Dataset.open(made)
    rows = [row_of(dataset, num_frames=32)] * 3000 + [row_of(dataset, frame_selection="first")] * 21
    said = ledger_messages(rows, repeats=4)
    assert [level for level, _ in said] == ["warning"] * 21 + ["info"] * 22
    name = dataset.clips[0].name
    assert said[0][1].startswith(f"{name} has 31 frames")
    assert said[20][1] == "2980 more clips dropped"
    assert said[21][1] == f"{name}: never seen: frames 16 to 30"
    assert said[41][1] == "1 more clip with remarks of this kind"
    assert said[42][1] == "clips: 0 used, 21 trimmed, 3000 dropped; each counts 4 times in a pass"
    assert ledger_messages([row_of(dataset)]) == [("info", "clips: 1 used, 0 trimmed, 0 dropped")]


def test_clips_of_one_size_and_length_need_no_hint(made, tmp_path):
    dataset = Dataset.open(made)
    config = config_of(dataset).dataset
    rows = [row_of(dataset), row_of(dataset), row_of(dataset, num_frames=32)]
    assert size_hints(rows, config) == []
    other = replace(rows[0], height=32, width=96)
    (hint,) = size_hints([*rows, other], config)
    assert hint.level == "info"
    assert hint.where == "dataset.fit"
    assert "64 x 64 (2 clips) and 96 x 32 (1 clip)" in hint.text
    (hint,) = size_hints([*rows, replace(rows[0], num_frames=9)], config)
    assert "16 frames (2 clips) and 9 frames (1 clip)" in hint.text


def test_nothing_to_train_on_is_said_at_its_field(made):
    dataset = Dataset.open(made)
    config = config_of(dataset, num_frames=32)
    where, text = nothing_to_train(dataset, ledger(dataset, config, FAMILY), config)
    assert where == "dataset.path"
    assert "the one clip of the dataset cannot be used: " in text
