"""Clips as lvdm's WebVid reader takes them: strides that are drawn, rounded and lowered, and how pictures are cut."""

from __future__ import annotations

import csv
import json
import random
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from tests.parity import dynamicrafter_data
from tests.parity.vectors import Report, Vectors
from trainers.config import DatasetConfig
from trainers.data.clips import DatasetError
from trainers.data.formats import open_dataset
from trainers.data.frames import choose_frames, drawn_as_reference, most_frames, needed_frames
from trainers.data.ledger import ledger
from trainers.data.loader import Batches, fitted, read_pixels
from trainers.data.samples import Sample, draw_samples, window
from trainers.data.video import read_frames, write_video
from trainers.families import get_family, parse_config
from trainers.precompute import Encoded
from trainers.settings import ConfigError

COLUMNS = ["videoid", "contentUrl", "duration", "page_dir", "name", "dynamic_confidence"]


def settings(**values) -> DatasetConfig:
    usual = {"num_frames": 16, "lower_stride": True, "fps_rounding": "stride"}
    return DatasetConfig(path="data", **{**usual, **values})


def drawn(frames: int, clip_fps: float, seed: int = 0, **values) -> list[list[int]]:
    return choose_frames(frames, clip_fps, settings(**values), 16, random.Random(seed))


def stride_of(samples: list[list[int]]) -> int:
    (indices,) = samples
    (stride,) = {b - a for a, b in pairwise(indices)}
    return stride


# --- strides ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frames", "clip_fps", "values", "stride"),
    [
        (100, 24, {"fps": 16}, 1),  # 1.5, rounded down
        (100, 60, {"fps": 16}, 3),
        (100, 15, {"fps": 16}, 1),  # never less
        (100, 30, {"fps": 10, "frame_stride": 2}, 6),
        (20, 30, {"fps": 16}, 1),
        (40, 60, {"fps": 16}, 2),  # 46 are needed for 3, and half of them are there
        (30, 30, {"frame_stride": 6}, 1),
        (90, 30, {"frame_stride": 6}, 5),
        (16, 30, {"frame_stride": 6}, 1),
    ],
)
def test_a_stride_is_whole_and_lowered_where_the_clip_is_short(frames, clip_fps, values, stride):
    assert stride_of(drawn(frames, clip_fps, **values)) == stride


@pytest.mark.parametrize(
    ("frames", "clip_fps", "values"),
    [(15, 24, {}), (15, 24, {"frame_stride": 6}), (22, 60, {"fps": 16}), (15, 24, {"fps": 16})],
)
def test_a_clip_that_is_much_too_short_gives_nothing(frames, clip_fps, values):
    assert drawn(frames, clip_fps, **values) == []


def test_half_of_the_frames_are_enough_exactly():
    config = settings(fps=16)
    assert needed_frames(config, 60, 16) == 23
    assert (most_frames(23, 60, config), most_frames(22, 60, config)) == (16, 15)
    assert stride_of(drawn(23, 60, fps=16)) == 1
    assert needed_frames(settings(fps=16, skip_frames_start=5), 60, 16) == 28


def test_strides_are_drawn_from_the_smallest_to_the_largest():
    strides = {stride_of(drawn(400, 30, seed, frame_stride=6, frame_stride_min=2)) for seed in range(60)}
    assert strides == {2, 3, 4, 5, 6}
    assert {stride_of(drawn(400, 30, seed, frame_stride=6)) for seed in range(9)} == {6}
    short = {stride_of(drawn(50, 30, seed, frame_stride=6, frame_stride_min=1)) for seed in range(60)}
    assert short == {1, 2, 3}


def test_without_lowering_a_clip_must_have_the_frames_of_the_largest_stride():
    config = settings(lower_stride=False, frame_stride=6, frame_stride_min=1)
    assert needed_frames(config, 30, 16) == 91
    assert drawn(90, 30, lower_stride=False, frame_stride=6, frame_stride_min=1) == []


def test_a_whole_stride_holds_for_first_frames_and_windows_too():
    assert drawn(100, 60, frame_selection="first", fps=16) == [[3 * i for i in range(16)]]
    windows = drawn(100, 60, frame_selection="windows", fps=16)
    assert [window[0] for window in windows] == [0, 46]


def test_the_smallest_stride_is_not_above_the_largest():
    with pytest.raises(ValueError, match="frame_stride_min"):
        settings(frame_stride=2, frame_stride_min=3)


def test_the_vectors(tmp_path):
    """The reference on clips of many lengths and rates; the largest files of it lie elsewhere."""
    folder = tmp_path / "vectors"
    folder.mkdir()
    (folder / dynamicrafter_data.CASES).write_text(json.dumps(CASES))
    report = Report()
    dynamicrafter_data.check(Vectors(folder, tmp_path), report)
    assert report.passed
    assert report.checks == 8 * len(CASES)


def case(frames, fps, args, seed, picked, first, stride, told, size=(36, 64)):
    arguments = {"video_length": 16, "load_raw_resolution": True, "resolution": [32, 52], **args}
    return {
        "frames_in_video": frames, "avg_fps": fps, "height_width": list(size), "dataset_args": arguments,
        "python_random_seed": seed, "picked": picked, "frame_indices": [first + stride * i for i in range(16)],
        "frame_stride": stride, "fps": told, "video_shape": [3, 16, 32, 52],
    }  # fmt: skip


#: What lvdm's reader was seen to give, for fake clips of which the second has 400 frames at 30 per second.
FIXED = {"frame_stride": 1, "fixed_fps": 16, "random_fs": False}
RANDOM = {"frame_stride": 6, "random_fs": True}
CASES = [
    case(100, 24.0, FIXED, 0, "cap v", 49, 1, 24.0),
    case(100, 60.0, FIXED, 1, "cap v", 8, 3, 20.0),
    case(40, 60.0, FIXED, 3, "cap v", 3, 2, 30.0),
    case(22, 60.0, FIXED, 4, "cap ok", 120, 5, 6.0),  # 3 for the clip before, and once more for this one
    case(15, 24.0, FIXED, 5, "cap ok", 318, 1, 30.0),
    case(200, 29.97, RANDOM, 6, "cap v", 105, 5, 5.0),
    case(30, 29.97, RANDOM, 7, "cap v", 2, 1, 29.0, (64, 36)),
    case(200, 25.0, {**RANDOM, "fps_max": 8}, 8, "cap v", 94, 2, 8.0, (40, 40)),
    case(64, 15.0, FIXED, 9, "cap v", 29, 1, 15.0),
]


def test_the_reference_finds_nothing_where_no_clip_will_do():
    config = settings(fps=16)
    assert drawn_as_reference([(15, 30.0), (0, 0.0)], 0, config, 16, random.Random(0)) is None
    assert drawn_as_reference([(15, 30.0), (40, 30.0)], 0, config, 16, random.Random(0))[0] == 1


# --- pictures --------------------------------------------------------------------------------------------------------


def made(height, width, bars=False, piece=None, **how) -> Sample:
    return Sample(None, Path("-"), (0,), height, width, stretch=False, flip=False, piece=piece, bars=bars, **how)


PICTURE = torch.arange(3 * 40 * 60, dtype=torch.float32).reshape(1, 3, 40, 60) / 28 + 1


@pytest.mark.parametrize(("height", "width"), [(40, 60), (32, 32), (8, 60), (40, 12), (33, 41)])
def test_the_middle_is_taken_as_it_is(height, width):
    found = fitted(PICTURE, made(height, width, piece=(0.5, 0.5)))
    top, left = round((40 - height) / 2), round((60 - width) / 2)
    assert torch.equal(found, PICTURE[..., top : top + height, left : left + width])


def test_pieces_lie_everywhere_within_the_picture():
    corners = {(0.0, 0.0): (0, 0), (1.0, 1.0): (8, 28)}
    for piece, (top, left) in corners.items():
        assert torch.equal(fitted(PICTURE, made(32, 32, piece=piece)), PICTURE[..., top : top + 32, left : left + 32])


def test_bars_are_black_and_where_the_reference_has_them():
    wide = fitted(PICTURE, made(20, 40, bars=True))  # 20 x 30 after resizing
    assert (wide[..., :5] == 0).all()
    assert (wide[..., 35:] == 0).all()
    assert (wide[..., 5:35] > 0).all()
    assert (fitted(PICTURE, made(20, 40)) > 0).all()
    small = fitted(PICTURE, made(50, 65, piece=(0.5, 0.5), bars=True))
    assert torch.equal(small[..., 5:45, 2:62], PICTURE)
    assert float(small.sum()) == pytest.approx(float(PICTURE.sum()))


def test_a_clip_as_wide_as_the_target_is_the_same_with_and_without_mistakes():
    for height, width in [(20, 30), (20, 26), (40, 60)]:
        assert torch.equal(fitted(PICTURE, made(height, width, bars=True)), fitted(PICTURE, made(height, width)))


def test_what_a_sample_shows_of_a_picture():
    assert window(made(32, 32, piece=(1.0, 0.5)), 40, 60) == (14, 8, 46, 40)
    squeezed = made(32, 32, piece=(0.5, 0.5), decoded=(80, 60))
    assert window(squeezed, 40, 60) == (14, 12.0, 46, 28.0)


@pytest.fixture(scope="module")
def film(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("film") / "a.mp4"
    down, across = np.mgrid[:40, :64]
    frames = [np.stack([down * 6, across * 3, np.full((40, 64), 5 * n)], -1).astype(np.uint8) for n in range(6)]
    write_video(file, np.stack(frames), 30)
    return file


def test_smooth_pictures_are_resized_before_they_are_rounded(film):
    whole = torch.from_numpy(read_frames(film, [2])).permute(0, 3, 1, 2)
    for fit in ("crop", "stretch"):
        sample = Sample(None, film, (2,), 32, 32, fit == "stretch", False, smooth=True)
        size = (32, 51) if fit == "crop" else (32, 32)
        expected = torch.nn.functional.interpolate(whole.float(), size, mode="bilinear", antialias=True)
        left = round((size[1] - 32) / 2)
        found = read_pixels(sample)
        assert found.dtype == torch.float32
        assert torch.equal(found, expected[..., left : left + 32])
        rough = read_pixels(Sample(None, film, (2,), 32, 32, fit == "stretch", False))
        assert rough.dtype == torch.uint8


def test_frames_are_squeezed_by_the_decoder_before_anything_else(film):
    sample = Sample(None, film, (2,), 32, 32, False, False, decoded=(50, 70), piece=(0.5, 0.5))
    whole = torch.from_numpy(read_frames(film, [2], size=(50, 70))).permute(0, 3, 1, 2)
    assert torch.equal(read_pixels(sample), whole[..., 9:41, 19:51])


# --- tables ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def table(tmp_path):
    """WebVid's layout: one long clip, one without a number in a column that nobody uses, a short one, one that is
    missing, and a narrow one."""
    sizes = {"long": (40, 64, 64), "bare": (24, 64, 64), "short": (3, 64, 64), "narrow": (20, 96, 64)}
    for name, (count, height, width) in sizes.items():
        folder = tmp_path / "train" / "videos" / ("cats" if name != "bare" else "dogs")
        folder.mkdir(parents=True, exist_ok=True)
        level = np.linspace(40, 250, count)[:, None, None, None]
        write_video(folder / f"{name}.mp4", np.broadcast_to(level, (count, height, width, 3)).astype(np.uint8), 30)
    rows = [
        ["long", "https://localhost", "PT1S", "cats", "a long clip", "95"],
        ["bare", "", "PT1S", "dogs", "a clip in a row that is not full", ""],
        ["short", "https://localhost", "PT1S", "cats", "a short clip", "95"],
        ["gone", "https://localhost", "PT1S", "cats", "a clip that is not there", "95"],
        ["narrow", "https://localhost", "PT1S", "cats", "a narrow clip", "95"],
    ]
    file = tmp_path / "train" / "data.csv"
    with file.open("w", newline="", encoding="utf-8") as handle:
        csv.writer(handle).writerows([COLUMNS, *rows])
    return file


def config_for(table: Path, **values):
    dataset = {"path": str(table), "format": "webvid", "video_folder": str(table.parent / "videos"), "height": 64}
    dataset |= {"width": 128, "frame_stride": 2, **values}
    return parse_config({"family": "dynamicrafter", "method": "lora", "base_model": "-", "dataset": dataset})


def rows_of(config):
    dataset = open_dataset(config.dataset)
    return dataset, ledger(dataset, config, get_family("dynamicrafter"))


@pytest.mark.parametrize("count", [1, 3, 4, 9])
def test_clips_at_random_are_those_of_pandas(table, count):
    """As DynamiCrafter's reader takes its subsample; of fewer rows it takes all, where pandas refuses."""
    names = [row.clip.file_name for row in rows_of(config_for(table, max_clips=count, max_clips_at_random=True))[1]]
    expected = pd.read_csv(table, dtype=str).sample(min(count, 5), random_state=0)
    assert [Path(name).stem for name in names] == list(expected["videoid"])


def test_every_row_is_used_or_left_out_with_a_reason(table):
    dataset, rows = rows_of(config_for(table))
    told = {Path(row.clip.file_name).stem: (row.status, row.reason) for row in rows}
    assert [name for name, (status, _) in told.items() if status != "dropped"] == ["long", "bare", "narrow"]
    assert told["bare"] == ("used", "has 24 frames of 31: trains at stride 1")
    assert "3 frames" in told["short"][1]
    assert "at least 16 are needed" in told["short"][1]
    assert "gone.mp4" in told["gone"][1], "and not https://localhost, which stands in for an address"
    assert [row.clip.text for row in rows][:2] == ["a long clip", "a clip in a row that is not full"]
    (narrow,) = [s for s in draw_samples(dataset, rows, config_for(table).dataset, 0, 0) if "narrow" in s.file.name]
    pixels = read_pixels(narrow)
    assert pixels.shape == (16, 3, 64, 128)
    assert pixels.dtype == torch.float32
    assert (pixels > 5).all()


def test_the_mistakes_of_the_reference_come_back_when_they_are_asked_for(table):
    config = config_for(table, upstream_defects=True)
    dataset, rows = rows_of(config)
    names = [Path(row.clip.file_name).stem for row in rows]
    assert names == ["long", "short", "gone", "narrow"], "a row with an empty cell is lost"
    samples = draw_samples(dataset, rows, config.dataset, 0, 0)
    assert [sample.file.stem for sample in samples] == ["long", "narrow", "narrow", "narrow"]
    bars = read_pixels(samples[-1])
    assert (bars[..., :32] == 0).all()
    assert (bars[..., 32:96] > 5).all()
    assert (bars[..., 96:] == 0).all()
    assert len(Batches(dataset, rows, config.dataset, 0)[0]) == 1


def test_a_table_of_which_every_row_is_lost_is_refused(table):
    rows = table.read_text(encoding="utf-8").splitlines()
    table.write_text("\n".join([rows[0], rows[2]]), encoding="utf-8")
    with pytest.raises(DatasetError, match="empty cell in every row"):
        rows_of(config_for(table, upstream_defects=True))
    assert len(rows_of(config_for(table))[1]) == 1


def test_a_table_without_a_usable_clip_ends_instead_of_going_on_for_ever(table):
    rows = table.read_text(encoding="utf-8").splitlines()
    table.write_text("\n".join([rows[0], rows[3]]), encoding="utf-8")
    config = config_for(table, upstream_defects=True)
    dataset, found = rows_of(config)
    assert [row.status for row in found] == ["dropped"]
    assert draw_samples(dataset, found, config.dataset, 0, 0) == []


def test_mistakes_are_only_for_samples_that_the_reference_could_draw(table):
    for values in ({"frame_selection": "first"}, {"fps_rounding": "nearest"}):
        with pytest.raises(ConfigError, match="upstream_defects"):
            config_for(table, upstream_defects=True, **values)


def test_clips_too_small_for_a_piece_are_left_out(table):
    for fit in ("middle", "piece"):
        _, rows = rows_of(config_for(table, fit=fit))
        assert all(row.status == "dropped" for row in rows)
        assert f"at least 128 x 64 are needed for dataset.fit {fit}" in rows[0].reason
    _, rows = rows_of(config_for(table, fit="piece", width=64))
    assert [row.status for row in rows] == ["used", "used", "dropped", "dropped", "used"]
    _, rows = rows_of(config_for(table, fit="middle", height=256, width=512, decode_small=True))
    assert rows[0].status == "used"


def test_a_squeezed_clip_fills_the_target_too(table):
    config = config_for(table, decode_small=True, fit="middle")
    dataset, rows = rows_of(config)
    sample = draw_samples(dataset, rows, config.dataset, 0, 0)[0]
    assert sample.decoded == (300, 530)
    assert read_pixels(sample).shape == (16, 3, 64, 128)


def test_what_is_cached_of_usual_samples_stays_good(film):
    """A new way to cut a clip has a key of its own; samples without it keep theirs."""

    class Model:
        def fingerprint(self, encoder):
            return "0"

    encoded = Encoded(Model(), "any", None, 0)
    clip = open_dataset(DatasetConfig(path=str(film.parent), format="sidecar")).clips[0]
    usual = {"clip": clip, "file": film, "indices": (0,), "height": 32, "width": 32, "stretch": False, "flip": False}
    hows = [{}, {"cut": True}, {"bars": True}, {"piece": (0.5, 0.5)}, {"piece": (0.0, 0.5)}, {"decoded": (50, 70)}]
    keys = [encoded._video_key(Sample(**usual, **how)) for how in [*hows, {"smooth": True}]]
    assert len(set(keys)) == len(keys)
