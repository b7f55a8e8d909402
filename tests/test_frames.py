"""Which frames a sample takes."""

from __future__ import annotations

import json
import random
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from tests.parity import cogvideox_data
from tests.parity.vectors import Case, Report, Vectors
from trainers.config import DatasetConfig
from trainers.data.frames import choose_frames, full_frames, most_frames, most_stride, needed_frames, span

OURS = ("frame_selection.json", "text_files.json", "video_frames.json")


def settings(**values) -> DatasetConfig:
    return DatasetConfig(path="data", **{"num_frames": 4, "frame_selection": "first", **values})


def choose(available: int, clip_fps: float = 8, seed: int = 0, **values) -> list[list[int]]:
    config = settings(**values)
    return choose_frames(available, clip_fps, config, config.num_frames, random.Random(seed))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, [0, 1, 2, 3]),
        ({"frame_stride": 3}, [0, 3, 6, 9]),
        ({"start_frame": 5}, [5, 6, 7, 8]),
        ({"start_frame": 2, "frame_stride": 2}, [2, 4, 6, 8]),
        ({"num_frames": 1}, [0]),
        ({"frame_selection": "uniform"}, [0, 3, 6, 9]),
        ({"frame_selection": "uniform", "num_frames": 3}, [0, 4, 9]),
        ({"frame_selection": "uniform", "num_frames": 1}, [0]),
        ({"frame_selection": "uniform", "num_frames": 10}, list(range(10))),
    ],
)
def test_one_sample(values, expected):
    assert choose(10, **values) == [expected]


def test_windows_stand_one_behind_the_other():
    assert choose(10, frame_selection="windows") == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert choose(15, frame_selection="windows", frame_stride=2) == [[0, 2, 4, 6], [7, 9, 11, 13]]
    assert choose(4, frame_selection="windows") == [[0, 1, 2, 3]]


def test_random_starts_reach_every_frame_and_repeat_with_the_seed():
    seen = [choose(10, seed=seed, frame_selection="random", frame_stride=2)[0] for seed in range(60)]
    assert {sample[0] for sample in seen} == {0, 1, 2, 3}
    assert all(b - a == 2 for sample in seen for a, b in pairwise(sample))
    assert max(max(sample) for sample in seen) == 9
    assert choose(10, seed=7, frame_selection="random") == choose(10, seed=7, frame_selection="random")


@pytest.mark.parametrize(
    ("clip_fps", "fps", "stride", "expected"),
    [
        (24, 8, 1, [0, 3, 6, 9]),
        (24, 8, 2, [0, 6, 12, 18]),
        (12, 8, 1, [0, 2, 3, 5]),  # 0, 1.5, 3, 4.5: halves go up, so that steps stay even
        (30, 8, 1, [0, 4, 8, 11]),
        (30000 / 1001, 30, 1, [0, 1, 2, 3]),
        (8, 16, 1, [0, 1, 1, 2]),  # more than the clip has: frames repeat, and the ledger says so
    ],
)
def test_a_target_rate_goes_by_time(clip_fps, fps, stride, expected):
    assert choose(60, clip_fps, fps=fps, frame_stride=stride) == [expected]
    rng = random.Random(1)
    config = settings(fps=fps, frame_stride=stride, frame_selection="random")
    sample = choose_frames(60, clip_fps, config, 4, rng)[0]
    assert [number - sample[0] for number in sample] == expected


def test_windows_at_a_target_rate_lie_on_one_grid():
    assert choose(12, 12, fps=8, frame_selection="windows") == [[0, 2, 3, 5], [6, 8, 9, 11]]


@pytest.mark.parametrize("selection", ["first", "uniform", "random", "windows"])
@pytest.mark.parametrize("stride", [1, 3])
@pytest.mark.parametrize("fps", [None, 5, 8, 24])
@pytest.mark.parametrize("start", [0, 4])
def test_exactly_the_needed_frames_are_enough(selection, stride, fps, start):
    config = settings(frame_selection=selection, frame_stride=stride, fps=fps, start_frame=start, num_frames=6)
    needed = needed_frames(config, 12, 6)
    assert choose_frames(needed - 1, 12, config, 6, random.Random(0)) == []
    for seed in range(5):
        for sample in choose_frames(needed, 12, config, 6, random.Random(seed)):
            assert len(sample) == 6
            assert sample[0] >= 0
            assert sample == sorted(sample)
            assert sample[-1] < needed
            assert fps == 24 or len(set(sample)) == 6
    assert most_frames(needed, 12, config) == 6
    assert most_frames(needed - 1, 12, config) == 5 or fps == 24
    assert most_frames(10 * needed, 12, config) == 6


def test_no_frames_give_no_sample():
    assert choose(0) == []
    assert most_frames(0, 8, settings()) == 0
    assert choose(3, start_frame=3) == []


def test_span_and_what_would_fit():
    assert span(16, 3) == 46
    assert needed_frames(settings(num_frames=16, frame_stride=3), 8, 16) == 46
    config = settings(num_frames=16, frame_stride=3)
    assert most_frames(31, 8, config) == 11
    assert most_stride(31, 8, config) == 2
    assert most_stride(15, 8, config) == 0
    assert most_stride(16, 8, settings(num_frames=16, frame_stride=5)) == 1


# --- Equal to upstream -----------------------------------------------------------------------------------------------

REFERENCE = json.loads((Path(__file__).parent / "data" / "animatediff" / "frame_indices.json").read_text())


def chosen(case: dict, seed: int | None = None, **values) -> list[int]:
    """What a clip gives of as many frames as it can give, in one list."""
    config = DatasetConfig(path="data", frame_buckets=True, **values)
    available = case["video_frames"]
    samples = choose_frames(available, 8, config, most_frames(available, 8, config), random.Random(seed))
    return [number for sample in samples for number in sample]


@pytest.mark.parametrize("case", REFERENCE["MultiTuneAVideoDataset"])
def test_first_frames_are_those_of_a_list_of_videos(case):
    """Where upstream goes on with no frames at all, because the start lies beyond the end, there is no sample here."""
    found = chosen(
        case,
        frame_selection="first",
        num_frames=case["n_sample_frames"],
        frame_stride=case["sample_frame_rate"],
        start_frame=case["sample_start_idx"],
    )
    assert found == case["indices"]
    assert len(found) == case["shape"][0]


@pytest.mark.parametrize("case", REFERENCE["swift_AnimateDiffDataset"] + REFERENCE["guoyww_WebVid10M"])
def test_random_frames_are_those_of_webvid(case):
    length = 1 if case.get("is_image") else case["sample_n_frames"]
    found = chosen(
        case,
        case["python_random_seed"],
        frame_selection="random",
        repeat_frames=True,
        num_frames=length,
        frame_stride=case["sample_stride"],
    )
    assert found == case["indices"]


@pytest.mark.parametrize("case", REFERENCE["tumurzakov_AnimateDiffDataset"])
def test_random_frames_are_those_of_a_folder_of_samples(case):
    found = chosen(case, case["python_random_seed"], frame_selection="random", num_frames=case["video_length"])
    assert found == case["indices"]


# --- Clips that are too short ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("available", [1, 5, 16, 40, 60])
@pytest.mark.parametrize("fps", [None, 4])
def test_a_stretched_clip_is_seen_from_its_first_frame_to_its_last(available, fps):
    config = settings(frame_selection="random", repeat_frames=True, num_frames=16, frame_stride=4, fps=fps)
    assert most_frames(available, 8, config) == 16
    (sample,) = choose_frames(available, 8, config, 16, random.Random(3))
    assert len(sample) == 16
    assert (sample[0], sample[-1]) == (0, available - 1)
    assert sample == sorted(sample)
    assert full_frames(config, 8, 16) == (61 if fps is None else 121)
    assert needed_frames(config, 8, 16) == 1


def test_stretching_rounds_as_numpy_does():
    """123 frames over 15 points: exact arithmetic would give other numbers."""
    config = settings(frame_selection="random", repeat_frames=True, num_frames=15, frame_stride=9)
    (sample,) = choose_frames(123, 8, config, 15, random.Random(0))
    assert sample == np.linspace(0, 122, 15, dtype=int).tolist()
    assert sample != [i * 122 // 14 for i in range(15)]


@pytest.mark.parametrize("selection", ["first", "uniform", "windows"])
def test_only_random_samples_are_stretched(selection):
    assert choose(3, frame_selection=selection, repeat_frames=True) == []


# --- Frames that are skipped, and those at the largest stride ---------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, [[3, 4, 5, 6]]),
        ({"frame_stride": 3}, [[3, 6, 9, 12]]),
        ({"start_frame": 5}, [[8, 9, 10, 11]]),
        ({"frame_selection": "uniform"}, [[3, 9, 15, 21]]),
        ({"frame_selection": "windows", "frame_stride": 2}, [[3, 5, 7, 9], [10, 12, 14, 16]]),
        ({"frame_selection": "windows", "fps": 4}, [[3, 5, 7, 9], [11, 13, 15, 17]]),
        ({"frame_selection": "strided"}, [[3, 7, 11, 15]]),
        ({"frame_selection": "strided", "frame_stride": 9, "fps": 1}, [[3, 7, 11, 15]]),
        ({"frame_selection": "strided", "num_frames": 10}, [list(range(3, 13))]),
        ({"frame_selection": "strided", "num_frames": 9}, [list(range(3, 20, 2))]),
    ],
)
def test_skipped_frames_are_as_if_they_were_not_there(values, expected):
    """24 frames, of which 3 and 2 are skipped."""
    assert choose(24, skip_frames_start=3, skip_frames_end=2, **values) == expected


def test_random_samples_reach_all_that_is_not_skipped():
    values = {"frame_selection": "random", "frame_stride": 2, "skip_frames_start": 4, "skip_frames_end": 3}
    seen = [choose(17, seed=seed, **values)[0] for seed in range(60)]
    assert {sample[0] for sample in seen} == {4, 5, 6, 7}
    assert max(max(sample) for sample in seen) == 13
    (stretched,) = choose(12, **values, repeat_frames=True)
    assert (stretched[0], stretched[-1]) == (4, 8)
    assert choose(7, **values, repeat_frames=True) == []


@pytest.mark.parametrize("selection", ["first", "uniform", "random", "windows"])
def test_a_clip_that_is_skipped_whole_gives_nothing(selection):
    config = settings(frame_selection=selection, skip_frames_start=6, skip_frames_end=5, num_frames=1)
    assert needed_frames(config, 8, 1) == 12
    assert most_frames(11, 8, config) == 0
    assert choose_frames(11, 8, config, 1, random.Random(0)) == []


def test_of_strided_frames_one_stays_where_the_skipped_ones_meet():
    values = {"frame_selection": "strided", "skip_frames_start": 6, "skip_frames_end": 5}
    assert most_frames(11, 8, settings(**values)) == 1
    assert choose(11, num_frames=1, **values) == [[6]]
    assert choose(11, **values) == []
    assert choose(11, **values, repeat_frames=True) == [[6, 6, 6, 6]]
    assert choose(6, **values, repeat_frames=True) == []


@pytest.mark.parametrize("start", [0, 4])
@pytest.mark.parametrize("end", [0, 3])
def test_exactly_the_needed_frames_are_enough_of_strided_ones(start, end):
    config = settings(frame_selection="strided", skip_frames_start=start, skip_frames_end=end, num_frames=6)
    needed = needed_frames(config, 12, 6)
    assert choose_frames(needed - 1, 12, config, 6, random.Random(0)) == []
    assert choose_frames(needed, 12, config, 6, random.Random(0)) == [list(range(start, start + 6))]
    assert [most_frames(needed - short, 12, config) for short in range(7)] == [6, 5, 4, 3, 2, 1, 1 if end else 0]
    filled = config.model_copy(update={"repeat_frames": True})
    assert full_frames(filled, 12, 6) == needed
    for available in range(start + 1, needed):
        (sample,) = choose_frames(available, 12, filled, 6, random.Random(0))
        left = max(1, available - start - end)
        assert sample == [*range(start, start + left), *[start + left - 1] * (6 - left)]


def test_frames_pairs_and_pictures_are_those_of_the_trainers(tmp_path, capsys):
    """Of CogVideoX: as its seed-time script, its current trainer and cogvideox-factory have them."""
    vectors = Vectors(Path(__file__).parent / "data" / "cogvideox", tmp_path)
    report = Report()
    cogvideox_data.check(vectors, report)
    assert report.totals() == "totals passed=159 failed=0", capsys.readouterr().out
    assert [name for name in vectors.left() if name in (*OURS, "video_frames.safetensors")] == []


def test_frames_that_were_moved_are_found(tmp_path):
    vectors = Vectors(Path(__file__).parent / "data" / "cogvideox", tmp_path)
    for kind, cases in vectors.json("frame_selection.json").items():
        case = next(case for case in cases if len(case.get("frames", [])) > 1)
        report = Report()
        cogvideox_data.check_frames(kind, Case(kind, case | {"frames": case["frames"][1:]}), report)
        assert (report.checks, report.failures) == (1, 1)
