"""What is read from a clip's pixels is what was drawn: on exact clips, and on blurred, noisy and compressed ones."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageFilter

from examples.demo import shapes
from examples.demo.score import Asked, seen, shares, table
from trainers.data.video import read_frames, write_video
from trainers.shape_tracking import track

SCENES = shapes.scenes(seed=5, count=48, motions=shapes.KNOWN + shapes.NEW)
PATHS = {**dict.fromkeys(shapes.DIRECTIONS, "line"), "still": "still", **{name: name for name in shapes.NEW}}


def blurred(clip, folder):
    return np.stack([np.asarray(Image.fromarray(frame).filter(ImageFilter.GaussianBlur(1.5))) for frame in clip])


def noisy(clip, folder):
    return np.clip(clip + np.random.default_rng(0).normal(0, 15, clip.shape), 0, 255).astype(np.uint8)


def as_jpeg(clip, folder):
    frames = []
    for frame in clip:
        file = io.BytesIO()
        Image.fromarray(frame).save(file, "JPEG", quality=40)
        frames.append(np.asarray(Image.open(file)))
    return np.stack(frames)


def as_h264(clip, folder):
    write_video(folder / "clip.mp4", clip, shapes.FPS)
    return read_frames(folder / "clip.mp4", range(len(clip)))


@pytest.mark.parametrize("spoilt", [None, blurred, noisy, as_jpeg, as_h264], ids=lambda f: f.__name__ if f else "exact")
def test_every_measure_is_as_drawn(spoilt, tmp_path):
    right = 0
    for scene in SCENES:
        clip = scene.draw()
        found = track(spoilt(clip, tmp_path) if spoilt else clip)
        assert np.abs(found.centres - scene.path()).max() < 0.75  # pixels
        assert found.path == PATHS[scene.motion], scene
        if scene.motion in shapes.KNOWN:
            assert found.direction == scene.motion, scene
        right += (found.shape, found.named_colour(shapes.COLOURS)) == (scene.shape, scene.colour)
    assert right == len(SCENES)


def test_a_clip_without_a_shape_has_no_measures():
    found = track(np.full((8, 64, 64, 3), 90, np.uint8))
    assert (found.shape, found.direction, found.path, found.named_colour(shapes.COLOURS)) == (None, None, None, None)
    assert found.found == 0


def test_frames_without_the_shape_are_bridged_while_most_show_it():
    clip = SCENES[0].draw().copy()
    clip[3] = clip[3, 0, 0]
    assert track(clip).direction == SCENES[0].motion
    clip[:5] = clip[0, 0, 0]
    assert track(clip).direction is None


def test_a_random_walk_is_no_path():
    rng = np.random.default_rng(1)
    frames = []
    for _ in range(8):
        x, y = rng.uniform(0.2, 0.8, 2)
        frames.append(shapes.Scene("circle", "red", "small", "day", "still", x, y, 0).draw_at(0))
    assert track(np.stack(frames)).path is None


def test_what_is_no_clip_is_refused():
    with pytest.raises(ValueError, match="uint8"):
        track(np.zeros((8, 64, 64, 3)))


def test_the_same_seed_draws_the_same_and_new_motions_are_kept_out():
    assert shapes.scenes(3, 10) == shapes.scenes(3, 10)
    assert {scene.motion for scene in shapes.scenes(0, 50)} == set(shapes.KNOWN)
    assert not set(shapes.KNOWN) & set(shapes.NEW)


def test_shapes_travel_about_half_of_the_frame():
    for scene in shapes.scenes(2, 40, tuple(shapes.DIRECTIONS)):
        path = scene.path()
        assert np.linalg.norm(path[-1] - path[0]) > 0.45 * shapes.SIZE


def test_the_table_counts_what_is_right():
    results = []
    for scene in SCENES:
        asked = Asked(scene.shape, "red", scene.motion, 0)
        results.append((asked, seen(scene.draw())))
    red = np.mean([scene.colour == "red" for scene in SCENES])
    assert shares(results) == pytest.approx({"shape": 1.0, "colour": red, "direction": 1.0, "path": 1.0})
    lines = list(table(results))
    assert lines[-1].startswith("totals shape=1.00 colour=0.") and lines[-1].endswith(" direction=1.00")
