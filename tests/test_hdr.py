"""HDR clips: as a screen without HDR shows them, wherever they are read."""

from __future__ import annotations

from pathlib import Path

import films
import numpy as np
import pytest

from trainers.data import hdr
from trainers.data.clips import Dataset
from trainers.data.index import index_of
from trainers.data.video import normalise, probe, read_frames

CURVES = {"HLG": (hdr.HLG, "arib-std-b67"), "PQ": (hdr.PQ, "smpte2084")}
#: R'G'B' of BT.2020, from 0 to 1.
PATCHES = [(0.75, 0.75, 0.75), (0.38, 0.38, 0.38), (0.1, 0.1, 0.1), (0.6, 0.3, 0.2), (1, 1, 1), (0.2, 0.6, 0.3),
           (0.5, 0.4, 0.45), (0, 0, 0)]  # fmt: skip
WIDTH, HEIGHT = 32 * len(PATCHES), 64


def signal(light: float) -> float:
    """PQ's value for so many cd/m2, as SMPTE ST 2084 has it (the inverse of what is tested)."""
    power = (light / 10_000) ** (2610 / 16384)
    return ((3424 / 4096 + 2413 / 128 * power) / (1 + 2392 / 128 * power)) ** (2523 / 32)


def mapped(values: list[tuple[float, float, float]], transfer: int) -> np.ndarray:
    """(n, 3) of 8 bits."""
    return hdr.tone_mapped(np.round(np.array([values]) * 65535).astype(np.uint16), transfer)[0].astype(int)


def grey(value: float, transfer: int) -> int:
    (colour,) = mapped([(value, value, value)], transfer)
    assert colour.max() - colour.min() <= 1, "grey stays grey"
    return int(colour[0])


@pytest.fixture(scope="module", params=list(CURVES))
def film(request, tmp_path_factory) -> tuple[str, Path]:
    """Six frames of the patches side by side, 10 bits as a phone writes them; (the curve's name, the file)."""
    folder = tmp_path_factory.mktemp("hdr")
    luma, blue, red = (np.zeros((HEIGHT // k, WIDTH // k), np.uint16) for k in (1, 2, 2))
    for place, (r, g, b) in enumerate(PATCHES):  # BT.2020's matrix, limited range
        y = 0.2627 * r + 0.6780 * g + 0.0593 * b
        luma[:, place * 32 : place * 32 + 32] = round(64 + 876 * y)
        blue[:, place * 16 : place * 16 + 16] = round(512 + 896 * (b - y) / 1.8814)
        red[:, place * 16 : place * 16 + 16] = round(512 + 896 * (r - y) / 1.4746)
    (folder / "raw.yuv").write_bytes(6 * (luma.tobytes() + blue.tobytes() + red.tobytes()))
    colours = f"log-level=error:crf=4:transfer={CURVES[request.param][1]}:colorprim=bt2020:colormatrix=bt2020nc"
    films.ffmpeg(
        "-f", "rawvideo", "-pix_fmt", "yuv420p10le", "-s", f"{WIDTH}x{HEIGHT}", "-r", "30", "-i", folder / "raw.yuv",
        "-c:v", "libx265", "-x265-params", colours, folder / "phone.mov",
    )  # fmt: skip
    return request.param, folder / "phone.mov"


def patches(picture: np.ndarray) -> np.ndarray:
    step = picture.shape[1] // len(PATCHES)
    return picture[picture.shape[0] // 2, step // 2 :: step].astype(int)


# --- the curve -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("light", [0.5, 2, 10, 36.5, 80, 120])
def test_what_is_darker_than_highlights_is_as_bright_as_it_was(light):
    """203 cd/m2 are the white of a screen whose gamma is 2.4."""
    assert grey(signal(light), hdr.PQ) == pytest.approx(255 * (light / 203) ** (1 / 2.4), abs=1)


def test_highlights_bend_towards_white_and_reach_it_at_the_peak():
    shown = [grey(signal(light), hdr.PQ) for light in (120, 160, 203, 300, 500, 800, 1000, 4000)]
    assert shown == sorted(shown)
    assert 225 <= shown[2] <= 240, "white leaves room for what is brighter"
    assert shown[3] < shown[4] < shown[5] <= 255
    assert shown[-2:] == [255, 255]


def test_hlg_and_pq_agree_about_the_same_light():
    """BT.2408: HLG's 75 % is 203 cd/m2 on a screen of 1000, 38 % is 26; all of it is the peak."""
    for value, light in ((0.75, 203), (0.38, 26.2), (1.0, 1000), (0.0, 0)):
        assert grey(value, hdr.HLG) == pytest.approx(grey(signal(light), hdr.PQ), abs=1)


@pytest.mark.parametrize("transfer", [hdr.HLG, hdr.PQ])
def test_colours_keep_their_side(transfer):
    red, green, blue = mapped([(0.6, 0.3, 0.3), (0.3, 0.6, 0.3), (0.3, 0.3, 0.6)], transfer)
    assert (red.argmax(), green.argmax(), blue.argmax()) == (0, 1, 2)
    (vivid,) = mapped([(0.0, 0.7, 0.0)], transfer)  # a green that BT.709 does not have
    assert vivid[1] - max(vivid[0], vivid[2]) > 60


# --- the files -------------------------------------------------------------------------------------------------------


def test_frames_are_tone_mapped_where_they_lie(film):
    name, file = film
    expected = mapped(PATCHES, CURVES[name][0])
    assert (probe(file).hdr, index_of(file).plain) == (name, False)
    assert np.abs(patches(read_frames(file, [2])[0]) - expected).max() <= 2
    assert np.abs(patches(read_frames(file, [2], size=(32, 128))[0]) - expected).max() <= 2


def test_an_import_is_tone_mapped_once_and_says_so(film, tmp_path):
    name, file = film
    normalise(file, tmp_path / "a.mp4")
    assert probe(tmp_path / "a.mp4").hdr == ""
    assert np.abs(patches(read_frames(tmp_path / "a.mp4", [2])[0]) - mapped(PATCHES, CURVES[name][0])).max() <= 4
    dataset = Dataset.create(tmp_path / "set")
    clip = dataset.add(file)
    assert clip.source["hdr"] == name
    assert dataset.remark(clip) == f"it was HDR ({name}): its colours are tone-mapped to BT.709"
    assert Dataset.open(dataset.path).remark(clip) == dataset.remark(clip)


def test_a_turned_phone_is_upright(film, tmp_path):
    _, file = film
    films.rotated(tmp_path / "turned.mov", file, 90)
    found = read_frames(tmp_path / "turned.mov", [1])[0]
    assert np.array_equal(found, np.rot90(read_frames(file, [1])[0]))


def test_other_clips_are_not_touched(tmp_path):
    file = films.plain(tmp_path / "a.mp4", count=3)
    assert (probe(file).hdr, index_of(file).plain) == ("", True)
    dataset = Dataset.create(tmp_path / "set")
    clip = dataset.add(file)
    assert "hdr" not in clip.source
    assert dataset.remark(clip) == ""
