"""What the measures of motion and style say of clips whose movement and look are known."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest

from trainers import metrics
from trainers.data.video import write_video
from trainers.events import EventLog, read
from trainers.metrics import (
    Measures,
    colour_change,
    motion,
    motion_change,
    motion_likeness,
    spread,
    style_change,
    texture_change,
)

BLUE = ((20, 40, 160), (240, 200, 120))
RED = ((200, 30, 30), (250, 250, 250))
SIDE, FRAMES = 64, 6


def surface(seed: int, waves: int = 24, finest: int = 9):
    """(y, x) -> 0 to 1: a smooth random pattern that goes on without end and can be looked at anywhere."""
    random = np.random.default_rng(seed)
    frequencies = random.uniform(-finest, finest, (waves, 2)) * math.tau / SIDE
    phases = random.uniform(0, math.tau, waves)

    def at(y, x):
        total = sum(np.sin(fy * y + fx * x + p) for (fy, fx), p in zip(frequencies, phases, strict=True))
        return np.clip(0.5 + total / waves, 0, 1)

    return at


def film(place, seed=1, colours=BLUE, frames=FRAMES, finest=9, side=SIDE):
    """A pattern that moves: place(k, y, x) says what stands at a pixel of frame k; the origin is the centre."""
    y, x = np.mgrid[:side, :side] - (side - 1) / 2
    dark, bright = np.array(colours, float)
    shown = np.stack([surface(seed, finest=finest)(*place(k, y, x)) for k in range(frames)])[..., None]
    return (dark + (bright - dark) * shown).round().astype(np.uint8)


def pan(right=1.0, down=0.5, **look):
    return film(lambda k, y, x: (y - down * k, x - right * k), **look)


def zoom(rate, **look):
    return film(lambda k, y, x: (y / rate**k, x / rate**k), **look)


def turn(degrees, **look):
    def place(k, y, x):
        angle = -math.radians(degrees) * k
        return math.cos(angle) * y + math.sin(angle) * x, math.cos(angle) * x - math.sin(angle) * y

    return film(place, **look)


def disc(right=0.0, down=0.0, left=0.3, top=0.5, radius=0.18, ground=(30, 40, 60), colour=(230, 60, 40)):
    """A plain disc that moves on a plain ground, pixels per frame."""
    y, x = np.mgrid[:SIDE, :SIDE]
    frames = []
    for k in range(FRAMES):
        far = np.hypot(y - top * SIDE - down * k, x - left * SIDE - right * k)
        inside = np.clip(radius * SIDE - far + 0.5, 0, 1)[..., None]
        frames.append(np.array(ground) * (1 - inside) + np.array(colour) * inside)
    return np.stack(frames).round().astype(np.uint8)


def grainy(clip, deviation):
    noise = np.random.default_rng(0).normal(0, deviation, clip.shape)
    return np.clip(clip + noise, 0, 255).round().astype(np.uint8)


def graded(clip, share):
    """The clip, mixed with a colour."""
    return (clip * (1 - share) + share * np.array([250, 60, 40])).round().astype(np.uint8)


@functools.cache
def _portrait(data, shape):
    return metrics.portrait(np.frombuffer(data, np.uint8).reshape(shape))


def portrait(clip):
    """Each clip is measured once for all tests."""
    return _portrait(clip.tobytes(), clip.shape)


def moved(take, base):
    return motion_change(portrait(take), portrait(base))


def drifted(take, base):
    return style_change(portrait(take), portrait(base))


def alike(take, *clips):
    return motion_likeness(portrait(take).manner, np.stack([portrait(clip).manner for clip in clips]))


# --- motion -----------------------------------------------------------------------------------------------------------


def test_motion_is_pixels_per_frame_over_the_diagonal():
    diagonal = math.hypot(SIDE, SIDE)
    for right, down in ((1, 0), (0, 2), (-2, 1)):
        assert motion(portrait(pan(right, down))) == pytest.approx(math.hypot(right, down) / diagonal, rel=0.12)
    flow = portrait(pan(2, 1)).flow.mean(axis=(0, 2, 3)) * diagonal
    assert flow == pytest.approx([1, 2], rel=0.12), "down and to the right"
    assert motion(portrait(pan(0, 0))) == 0
    assert motion(portrait(np.full((4, 64, 64, 3), 128, np.uint8))) == 0


def test_motion_is_the_same_at_every_size():
    """A clip of 192 pixels is measured at 128; what counts is the share of the frame."""
    small, large = pan(1, 0.5), film(lambda k, y, x: (y / 3 - 0.5 * k, x / 3 - k), side=192)
    assert motion(portrait(large)) == pytest.approx(motion(portrait(small)), rel=0.12)


def test_only_what_moves_counts():
    """A plain ground gives no hold to a flow: the disc's movement must not run out over it."""
    covered = 2 * math.pi * 0.18**2 / math.hypot(SIDE, SIDE)
    assert covered < motion(portrait(disc(right=2))) < 1.8 * covered  # and the rim, as wide as the flow sees


def test_the_same_clip_has_changed_by_exactly_nothing():
    for clip in (pan(), disc(right=2), pan(0, 0), pan()[:1]):
        assert drifted(clip, clip) == 0
        assert moved(clip, clip) == (0 if len(clip) > 1 else None)
    assert alike(pan(), pan()) == 1 and alike(pan(0, 0), pan(0, 0)) == 1


@pytest.mark.parametrize(
    ("look", "style"),
    [({"colours": RED}, 0.5), ({"seed": 5, "colours": RED}, 0.5), ({"finest": 5, "colours": RED}, 0.5)],
)
@pytest.mark.parametrize("move", [pan, lambda **look: zoom(1.04, **look), lambda **look: turn(2, **look)])
def test_the_same_movement_with_another_look(move, look, style):
    take, base = move(**look), move()
    assert moved(take, base) < 0.15
    assert alike(take, base) > 0.85
    assert drifted(take, base) > style


@pytest.mark.parametrize("other", [pan(-1, -0.5), pan(-0.5, 1), pan(0, 0), zoom(1.05), turn(3)])
def test_another_movement_with_the_same_look(other):
    assert moved(other, pan()) > 0.5
    assert alike(other, pan()) < 0.5
    assert drifted(other, pan()) < 0.08


def test_nothing_in_common_is_one():
    assert moved(pan(1, 0), pan(-1, 0)) == pytest.approx(1, abs=0.02)
    assert moved(pan(0, 0), pan()) == 1 == moved(pan(), pan(0, 0))
    assert alike(pan(0, 0), pan()) == 0
    assert alike(pan(1, 0), pan(-1, 0)) < 0.05


def test_the_farther_the_more():
    speeds = [pan(right, right / 2) for right in (1, 1.5, 2, 3)]
    changes = [moved(clip, pan()) for clip in speeds]
    assert changes == sorted(changes) and changes[1] > 0.1 and changes[-1] > 0.4
    likenesses = [alike(clip, pan()) for clip in speeds]
    assert likenesses == sorted(likenesses, reverse=True)
    looks = [graded(pan(), share) for share in (0, 0.1, 0.2, 0.4, 0.7)]
    drifts = [drifted(clip, pan()) for clip in looks]
    assert drifts == sorted(drifts) and drifts[0] == 0 and drifts[-1] > 0.5


@pytest.mark.parametrize("before", ["shaken", "left", "still"])
def test_the_curves_of_a_run_that_learns(before):
    """The way of a take is drawn from the base's to a training clip's: old motion falls, new motion rises."""
    steps = np.arange(FRAMES)[:, None]
    ways = {
        "shaken": np.random.default_rng(2).normal(0, 1.5, (FRAMES, 2)).cumsum(axis=0),
        "left": steps * [0, -1.5],
        "still": steps * [0, 0],
    }

    def take(share, **look):
        way = (1 - share) * ways[before] + share * steps * [0.5, 1.5]
        return portrait(film(lambda k, y, x: (y - way[k, 0], x - way[k, 1]), **look))

    clip, base = take(1, seed=7, colours=RED), take(0)
    takes = [take(share) for share in (0, 0.3, 0.6, 1)]
    new = [motion_likeness(portrait.manner, clip.manner[None]) for portrait in takes]
    changes = [motion_change(portrait, base) for portrait in takes]
    assert new == sorted(new) and new[0] < 0.4 and new[-1] > 0.95
    assert changes == sorted(changes) and changes[0] == 0 and changes[-1] > 0.6
    assert max(style_change(portrait, base) for portrait in takes) < 0.1


# --- new motion -------------------------------------------------------------------------------------------------------


def test_likeness_does_not_ask_where():
    """The same disc, on the same way, elsewhere: the flow differs at almost every pixel, the movement does not."""
    take, clip = disc(right=2, top=0.75), disc(right=2, top=0.25)
    assert moved(take, clip) > 0.9
    assert alike(take, clip) > 0.85
    assert alike(disc(right=-2, left=0.7), clip) < 0.2


def test_a_zoom_is_told_from_its_reverse_and_a_turn_from_its_reverse():
    """The speeds of both are spread alike: only the whole picture's expansion and rotation tell them apart."""
    assert alike(zoom(1.04, seed=3), zoom(1.04)) > 0.9
    assert alike(zoom(1 / 1.04), zoom(1.04)) < 0.5
    assert alike(turn(-3), turn(3)) < 0.5
    assert alike(turn(2.3), zoom(1.04)) < 0.7


def test_flicker_is_no_steady_movement():
    jumps = np.random.default_rng(2).normal(0, 1, (FRAMES, 2))
    shaken = film(lambda k, y, x: (y - jumps[k, 0], x - jumps[k, 1]))
    assert motion(portrait(shaken)) > motion(portrait(pan()))
    assert alike(shaken, pan(), pan(-1, 0.5), pan(0, 1)) < 0.4
    noise = np.random.default_rng(3).integers(0, 256, pan().shape, dtype=np.uint8)
    assert alike(noise, pan()) < 0.4


def test_the_nearest_training_clip_counts():
    assert alike(pan(2, 0, seed=8), pan(0, 2), zoom(1.05), pan(2, 0)) > 0.9
    assert motion_likeness(portrait(pan()).manner, np.zeros((0, 24, 256))) is None


# --- style ------------------------------------------------------------------------------------------------------------


def test_colours_and_texture_are_measured_apart():
    plain, other = portrait(pan()), portrait(pan(colours=tuple(c[::-1] for c in BLUE)))
    assert colour_change(other, plain) > 0.25
    finer = portrait(pan(finest=18))
    assert texture_change(finer, plain) > 0.15 > colour_change(finer, plain)


def test_the_scales_of_style():
    grey = np.full((2, 64, 64, 3), 119, np.uint8)  # L = 50
    assert colour_change(portrait(np.full_like(grey, 119)), portrait(grey)) == 0
    lighter = np.full_like(grey, 185)  # L = 75
    assert colour_change(portrait(lighter), portrait(grey)) == pytest.approx(0.5, abs=0.01)
    rough = np.zeros((2, 64, 64, 3), np.uint8)
    rough[:, :, ::4] = rough[:, :, 1::4] = 200
    half = rough // 2
    assert texture_change(portrait(half), portrait(rough)) == pytest.approx(1 / 3, abs=0.03)
    assert texture_change(portrait(grey), portrait(rough)) > 0.95


def test_a_moving_thing_keeps_its_look():
    assert drifted(disc(down=2, top=0.3), disc(right=2)) < 0.03
    assert drifted(disc(right=2, colour=(40, 200, 60)), disc(right=2)) > 0.05


# --- what clips can be like -------------------------------------------------------------------------------------------


def test_grain_is_no_movement():
    assert moved(grainy(pan(), 5), pan()) < 0.05 and alike(grainy(pan(), 5), pan()) > 0.85
    assert moved(grainy(disc(right=2), 3), disc(right=2)) < 0.15
    assert motion(portrait(grainy(disc(), 3))) < 0.1 * motion(portrait(disc(right=2)))
    assert moved(grainy(disc(), 3), disc()) < 0.25


def test_one_frame_has_no_motion_and_a_style():
    one, red = portrait(pan()[:1]), portrait(pan(colours=RED)[:1])
    assert motion(one) is None and motion_change(one, one) is None
    assert motion_likeness(one.manner, portrait(pan()).manner[None]) is None
    assert style_change(red, one) > 0.5


def test_clips_of_other_sizes_and_lengths():
    """Movement at the same place cannot be compared then; how things move, and the look, can."""
    short, wide = portrait(pan()[:3]), portrait(pan()[:, 8:-8])
    full = portrait(pan())
    for clip in (short, wide):
        assert motion_change(clip, full) is None
        assert motion_likeness(clip.manner, full.manner[None]) > 0.7
        assert style_change(clip, full) < 0.1
    assert motion_likeness(portrait(pan()[:2]).manner, full.manner[None]) > 0.7


def test_of_a_long_clip_some_frames_are_measured():
    clip = pan(frames=60)
    measured = portrait(clip)
    assert len(measured.flow) == 16
    assert motion(measured) == pytest.approx(motion(portrait(clip[:10])), rel=0.1)
    assert spread(60, 4) == [0, 20, 39, 59] and spread(3, 8) == [0, 1, 2] and spread(9, 1) == [0] and spread(9, 0) == []


# --- of a run's clips -------------------------------------------------------------------------------------------------


@pytest.fixture
def told(tmp_path):
    """Measures with a log, and what it holds: (measures, folder, events of a type)."""
    log = EventLog(tmp_path / "events.jsonl")
    yield Measures(log), tmp_path, lambda type: [e for e in read(tmp_path / "events.jsonl")[0] if e["type"] == type]
    log.close()


def written(folder, name, clip, **tags):
    file = folder / f"{name}.mp4"
    write_video(file, clip, 8, {"prompt": "p", "seed": "1", "take": name} | tags)
    return file


EVENT = {"step": 3, "take": "t", "prompt": "p", "seed": 1}


def test_clips_are_measured_as_they_lie_on_disk(told):
    measures, folder, events = told
    training = folder / "training_motion.npz"
    measures.keep_training_motion([("a pan", pan(-1, 0)), ("a zoom", zoom(1.05))], training)
    base, take = written(folder, "base", pan(seed=3)), written(folder, "take", pan(-1, 0, colours=RED))
    measures.write(base, base, training, **EVENT)
    measures.write(take, base, training, **EVENT)
    first, second = events("measure")
    assert (first["motion_change"], first["style"]) == (0, 0) and first["new_motion"] < 0.5
    assert second["motion_change"] > 0.5 and second["style"] > 0.5 and second["new_motion"] > 0.9
    assert {key: second[key] for key in EVENT} == EVENT
    Measures(EventLog(folder / "later.jsonl")).write(take, base, training, **EVENT)  # a process that goes on
    later = read(folder / "later.jsonl")[0][0]
    assert {**later, "time": 0} == {**second, "time": 0}


def test_a_prompt_is_measured_against_the_clips_of_its_caption(told):
    measures, folder, events = told
    training = folder / "training_motion.npz"
    measures.keep_training_motion([("left", pan(-1, 0)), ("right", pan(1, 0))], training)
    take = written(folder, "take", pan(-1, 0, seed=4))
    for prompt in ("left", "right", "somewhere"):
        measures.write(take, None, training, **{**EVENT, "prompt": prompt})
    left, right, either = (event["new_motion"] for event in events("measure"))
    assert left == either > 0.9 and right < 0.1
    assert events("measure")[0]["motion_change"] is None and events("measure")[0]["style"] is None


@pytest.mark.parametrize("tags", [{"seed": "2"}, {"prompt": "q"}])
def test_a_base_of_another_prompt_or_seed_is_no_base(told, tags):
    measures, folder, events = told
    measures.write(written(folder, "take", pan()), written(folder, "base", pan(), **tags), None, **EVENT)
    (event,) = events("measure")
    assert event["motion"] > 0 and event["motion_change"] is event["style"] is event["new_motion"] is None


def test_what_cannot_be_measured_is_said_once_and_ends_nothing(told, monkeypatch):
    measures, folder, events = told
    broken, good = folder / "broken.mp4", written(folder, "good", pan())
    broken.write_bytes(b"no video")
    for _ in range(2):
        measures.write(broken, None, None, **EVENT)
    assert not events("measure")
    (message,) = events("message")
    assert message["level"] == "warning" and "broken.mp4" in message["text"]
    training = folder / "training_motion.npz"
    training.write_bytes(b"half a file")
    measures.write(good, None, training, **EVENT)
    measures.keep_training_motion([("tiny", np.zeros((3, 1, 1, 3), np.uint8))], training)
    assert len(events("message")) == 3 and not events("measure")

    def gone(*_):
        raise ImportError("no module named skimage")

    monkeypatch.setattr(metrics, "movement", gone)
    measures.write(good, None, None, **EVENT)
    assert "no module named skimage" in events("message")[-1]["text"]
