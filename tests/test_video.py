"""Video files: probing, normalising, reading by number, writing."""

from __future__ import annotations

import random
from pathlib import Path

import av
import films
import numpy as np
import pytest
from PIL import Image

from trainers.data import video
from trainers.data.video import (
    VideoError,
    frames_decoded,
    normalise,
    probe,
    read_frames,
    read_metadata,
    write_gif,
    write_grid,
    write_thumbnail,
    write_video,
)

needs_decord = pytest.mark.skipif(video._decord() is None, reason="decord has no wheel for this machine")
BACKENDS = ["pyav", pytest.param("decord", marks=needs_decord)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("films")


@pytest.fixture(scope="module")
def clip(folder) -> Path:
    """30 frames at 8 fps, 64 x 64, several keyframes."""
    return films.plain(folder / "plain.mp4")


@pytest.fixture(scope="module")
def wide(folder) -> Path:
    """30 frames, 96 x 64."""
    return films.plain(folder / "wide.mp4", width=96)


def stamps(path: Path) -> list[float]:
    with av.open(str(path)) as container:
        return [float(frame.time) for frame in container.decode(video=0)]


# --- What a file holds -----------------------------------------------------------------------------------------------


def test_probe_of_a_plain_clip(clip):
    found = probe(clip)
    assert (found.num_frames, found.fps, found.width, found.height) == (30, 8.0, 64, 64)
    assert found.duration == pytest.approx(30 / 8)
    assert (found.codec, found.rotation) == ("h264", 0)


def test_probe_counts_what_an_edit_list_leaves_to_see(folder, clip):
    cut = folder / "cut.mp4"
    films.ffmpeg("-ss", "1", "-i", clip, "-c", "copy", cut)
    found = probe(cut)
    assert found.num_frames == 22
    assert films.numbers(read_frames(cut, range(22))) == list(range(8, 30))


def test_probe_notices_that_a_file_has_changed(tmp_path):
    path = films.plain(tmp_path / "a.mp4", count=5)
    assert probe(path).num_frames == 5
    films.plain(path, count=9)
    assert probe(path).num_frames == 9


def text_as_video(path: Path) -> None:
    path.write_text("not a video, but a letter\n" * 40)


def page_as_video(path: Path) -> None:
    path.write_text("<!doctype html><html><body>404 not found</body></html>")


def playlist_as_video(path: Path) -> None:
    """FFmpeg itself would open this, and with it the file that it names."""
    films.plain(path.parent / "x.mp4", count=2)
    path.write_text("ffconcat version 1.0\nfile x.mp4\n")


BAD = {
    "text": (text_as_video, "bad.mp4 is not a video (it holds text)"),
    "html": (page_as_video, "bad.mp4 is not a video (it holds text)"),
    "playlist": (playlist_as_video, "bad.mp4 is not a video (it holds text)"),
    "bytes": (lambda path: path.write_bytes(bytes(range(256)) * 8), "bad.mp4 is not a video (no known video format)"),
    "empty": (lambda path: path.write_bytes(b""), "bad.mp4 is empty"),
    "sound": (films.sound, "bad.mp4 is not a video (only sound)"),
    "absent": (lambda path: None, "bad.mp4 cannot be read: No such file"),
    "folder": (lambda path: path.mkdir(), "bad.mp4 is not a file"),
}


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("act", ["probe", "normalise", "read"])
def test_what_is_no_video_is_refused_in_a_sentence(tmp_path, kind, act):
    make, words = BAD[kind]
    path = tmp_path / "bad.mp4"
    make(path)
    with pytest.raises(VideoError) as error:
        if act == "probe":
            probe(path)
        elif act == "normalise":
            normalise(path, tmp_path / "out.mp4")
        else:
            read_frames(path, [0])
    assert str(error.value).startswith(words)
    assert not list(tmp_path.glob("*out*"))


def test_an_error_can_name_the_file_as_the_person_knows_it(tmp_path):
    path = tmp_path / "upload-17"
    path.write_text("no")
    for act in (lambda: probe(path, name="dog.mp4"), lambda: normalise(path, tmp_path / "o.mp4", name="dog.mp4")):
        with pytest.raises(VideoError, match=r"^dog\.mp4 is not a video"):
            act()


@pytest.mark.parametrize("container", ["mp4", "mkv"])
def test_a_cut_off_file_says_how_much_is_left(tmp_path, clip, container):
    whole = tmp_path / f"whole.{container}"
    films.ffmpeg("-i", clip, "-c", "copy", "-movflags", "+faststart", whole)
    part = films.truncated(tmp_path / f"part.{container}", whole)
    for act in (lambda: probe(part), lambda: normalise(part, tmp_path / "out.mp4")):
        with pytest.raises(VideoError) as error:
            act()
        words = str(error.value).split()
        assert words[:5] == [part.name, "is", "cut", "off", "or"]
        readable, total = int(words[6]), int(words[8])
        assert 0 < readable < 30
        assert abs(total - 30) <= 1
    assert not (tmp_path / "out.mp4").exists()


def test_a_cut_exactly_between_two_frames_is_found(tmp_path, clip):
    with av.open(str(clip)) as container:
        ends = sorted(packet.pos + packet.size for packet in container.demux(video=0) if packet.size)
    part = tmp_path / "part.mp4"
    part.write_bytes(clip.read_bytes()[: ends[19]])
    with pytest.raises(VideoError, match=r"part\.mp4 is cut off or damaged: \d+ of 30 frames"):
        probe(part)


def test_a_cut_within_the_last_frame_is_found(tmp_path, clip):
    part = tmp_path / "part.mp4"
    part.write_bytes(clip.read_bytes()[:-10])
    with pytest.raises(VideoError, match=r"part\.mp4 is cut off or damaged: \d+ of 30 frames"):
        probe(part)


def test_a_file_without_its_index_is_called_cut_off(tmp_path, clip):
    whole = tmp_path / "whole.mp4"
    films.ffmpeg("-i", clip, "-c", "copy", whole)  # the index at the end
    with pytest.raises(VideoError, match=r"part\.mp4 is cut off: its index is missing"):
        probe(films.truncated(tmp_path / "part.mp4", whole))


def test_damage_in_the_middle_is_found_by_normalising(tmp_path, clip):
    with av.open(str(clip)) as container:
        packet = [p for p in container.demux(video=0) if p.size][20]
        start, size = packet.pos, packet.size
    data = bytearray(clip.read_bytes())
    data[start : start + size] = b"\xff" * size
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(data)
    with pytest.raises(VideoError, match=r"bad\.mp4 is cut off or damaged: \d+ of 30 frames can be read"):
        normalise(bad, tmp_path / "out.mp4")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.mp4"]


# --- Normalising -----------------------------------------------------------------------------------------------------


def test_normalised_clips_play_everywhere(tmp_path, wide):
    found = normalise(wide, tmp_path / "out.mp4")
    assert (found.num_frames, found.fps, found.width, found.height) == (30, 8.0, 96, 64)
    with av.open(str(tmp_path / "out.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert stream.codec_context.profile == "High"
    data = (tmp_path / "out.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    assert films.numbers(read_frames(tmp_path / "out.mp4", range(30))) == list(range(30))


def test_keyframes_of_the_source_are_not_copied(tmp_path, clip):
    source = tmp_path / "intra.mp4"
    films.ffmpeg("-i", clip, "-g", "1", "-pix_fmt", "yuv420p", source)
    normalise(source, tmp_path / "out.mp4")
    with av.open(str(tmp_path / "out.mp4")) as container:
        keys = [packet.pts for packet in container.demux(video=0) if packet.is_keyframe and packet.size]
    assert len(keys) == 2  # one at least every 24 frames


def test_an_uneven_rate_becomes_constant_by_time(tmp_path, clip):
    source = films.uneven(tmp_path / "uneven.mp4", clip)
    times = np.array(stamps(source))
    found = normalise(source, tmp_path / "out.mp4")
    average = 29 / (times[-1] - times[0])
    assert found.fps == pytest.approx(average, rel=0.01)
    assert np.allclose(np.diff(stamps(tmp_path / "out.mp4")), 1 / found.fps, atol=1e-4)
    assert found.duration == pytest.approx(times[-1] - times[0], abs=2 / found.fps)
    seen = films.numbers(read_frames(tmp_path / "out.mp4", range(found.num_frames)))
    for k, number in enumerate(seen):
        assert number == np.abs(times - times[0] - k / found.fps).argmin(), k


def test_a_wanted_rate_takes_and_repeats_frames_by_time(tmp_path, clip):
    half = normalise(clip, tmp_path / "half.mp4", fps=4)
    assert half.fps == 4.0
    seen = films.numbers(read_frames(tmp_path / "half.mp4", range(half.num_frames)))
    assert seen == list(range(0, 30, 2))
    double = normalise(clip, tmp_path / "double.mp4", fps=16)
    seen = films.numbers(read_frames(tmp_path / "double.mp4", range(double.num_frames)))
    assert seen[:6] == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize(("rate", "fps"), [("30000/1001", 30000 / 1001), ("24000/1001", 24000 / 1001), ("25", 25.0)])
@pytest.mark.parametrize("container", ["mp4", "mkv"])  # matroska rounds its times to milliseconds
def test_broadcast_rates_stay_exact(tmp_path, clip, rate, fps, container):
    source = tmp_path / f"source.{container}"
    films.ffmpeg("-r", rate, "-i", clip, source)
    found = normalise(source, tmp_path / "out.mp4")
    assert found.fps == pytest.approx(fps, rel=1e-9)
    assert films.numbers(read_frames(tmp_path / "out.mp4", range(found.num_frames))) == list(range(30))


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_rotation_is_baked_in(tmp_path, wide, degrees):
    source = films.rotated(tmp_path / "phone.mp4", wide, degrees)
    found = probe(source)
    size = (96, 64) if degrees == 180 else (64, 96)
    assert (found.width, found.height) == size
    assert found.rotation % 360 == degrees
    expected = np.rot90(read_frames(wide, range(30), "pyav"), degrees // 90, axes=(1, 2))
    assert np.array_equal(read_frames(source, range(30)), expected)
    made = normalise(source, tmp_path / "out.mp4")
    assert (made.width, made.height, made.rotation) == (*size, 0)
    difference = read_frames(tmp_path / "out.mp4", range(30)).astype(int) - expected
    assert np.abs(difference).mean() < 4


def test_a_mirrored_phone_clip_is_mirrored(tmp_path, wide):
    source = tmp_path / "mirrored.mp4"
    films.ffmpeg("-display_hflip", "-i", wide, "-c", "copy", source)
    assert np.array_equal(read_frames(source, [3]), read_frames(wide, [3], "pyav")[:, :, ::-1])


def test_odd_sizes_lose_one_row_and_column(tmp_path):
    source = tmp_path / "odd.mkv"
    even = films.plain(tmp_path / "even.mp4", count=4, width=66)
    films.ffmpeg("-i", even, "-vf", "format=yuv444p,crop=65:63:0:0", source)
    assert (probe(source).width, probe(source).height) == (65, 63)
    made = normalise(source, tmp_path / "out.mp4")
    assert (made.width, made.height) == (64, 62)
    before, after = read_frames(source, [0])[0], read_frames(tmp_path / "out.mp4", [0])[0]
    assert np.abs(before[:62, :64].astype(int) - after).mean() < 4


def test_oblong_pixels_become_square(tmp_path, clip):
    source = tmp_path / "anamorphic.mp4"
    films.ffmpeg("-i", clip, "-vf", "setsar=3/2", source)
    assert normalise(source, tmp_path / "out.mp4").width == 96


def test_ten_bits_become_eight(tmp_path, clip):
    source = tmp_path / "ten.mp4"
    films.ffmpeg("-i", clip, "-pix_fmt", "yuv420p10le", "-colorspace", "bt709", source)
    assert films.numbers(read_frames(source, range(30))) == list(range(30))
    made = normalise(source, tmp_path / "out.mp4")
    assert made.num_frames == 30
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert container.streams.video[0].codec_context.pix_fmt == "yuv420p"


@pytest.mark.parametrize("suffix", ["gif", "webm", "avi", "ts", "h264"])
def test_other_containers_come_in_whole(tmp_path, clip, suffix):
    source = tmp_path / f"source.{suffix}"
    films.ffmpeg("-i", clip, source)
    made = normalise(source, tmp_path / "out.mp4")
    assert films.numbers(read_frames(tmp_path / "out.mp4", range(made.num_frames))) == list(range(30))
    if suffix != "h264":  # a bare stream has no times
        assert made.fps == pytest.approx(8, rel=0.05)


def test_one_frame_is_a_video(tmp_path):
    source = films.plain(tmp_path / "one.mp4", count=1, fps=24)
    assert probe(source).num_frames == 1
    made = normalise(source, tmp_path / "out.mp4")
    assert (made.num_frames, made.fps) == (1, 24.0)
    assert read_frames(tmp_path / "out.mp4", [0, 0]).shape == (2, 64, 64, 3)


# --- Reading ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_frames_come_by_number_in_the_order_asked_for(clip, backend):
    rng = random.Random(3)
    for wanted in ([29], [0, 29, 0], [5, 4, 3], [7, 7, 7], [11, 12, 13, 25], [rng.randrange(30) for _ in range(40)]):
        assert films.numbers(read_frames(clip, wanted, backend)) == wanted
    assert read_frames(clip, [], backend).shape == (0, 64, 64, 3)


@needs_decord
def test_both_readers_give_identical_frames(tmp_path, wide):
    sources = {"plain": wide, "uneven": films.uneven(tmp_path / "u.mp4", wide)}
    sources["rotated"] = films.rotated(tmp_path / "r.mp4", wide, 90)
    rng = random.Random(5)
    for name, source in sources.items():
        clip = tmp_path / f"{name}-clip.mp4"
        count = normalise(source, clip).num_frames
        for wanted in (list(range(count)), [rng.randrange(count) for _ in range(25)], [count - 1, 0, 0, count // 2]):
            ours, theirs = read_frames(clip, wanted, "pyav"), read_frames(clip, wanted, "decord")
            assert np.array_equal(ours, theirs), (name, wanted)
            assert np.array_equal(read_frames(clip, wanted), ours)


@pytest.mark.parametrize("suffix", ["mkv", "ts", "mpg", "avi", "gif", "h264"])
def test_files_that_are_not_clips_are_read_by_number_as_well(tmp_path, clip, suffix):
    source = tmp_path / f"source.{suffix}"
    films.ffmpeg("-i", clip, *(["-c:v", "mpeg2video", "-q:v", "2"] if suffix == "mpg" else []), source)
    for wanted in ([7, 3, 29], [29], [0, 15], [28, 29, 28]):
        assert films.numbers(read_frames(source, wanted)) == wanted


def test_a_size_that_decord_cannot_handle_is_read_all_the_same(tmp_path):
    source = films.plain(tmp_path / "narrow.mp4", count=6, width=48)
    assert np.array_equal(read_frames(source, [5, 0]), read_frames(source, [5, 0], "pyav"))


def test_without_decord_frames_are_the_same(clip, monkeypatch):
    expected = read_frames(clip, [3, 20, 9])
    monkeypatch.setattr(video, "_decord", lambda: None)
    assert np.array_equal(read_frames(clip, [3, 20, 9]), expected)
    with pytest.raises(VideoError, match="not installed"):
        read_frames(clip, [0], "decord")


@pytest.mark.parametrize("number", [-1, 30])
def test_a_frame_that_is_not_there(clip, number):
    with pytest.raises(VideoError, match=f"plain.mp4 has 30 frames, numbered from 0; there is no frame {number}"):
        read_frames(clip, [0, number])


def test_decoding_is_counted_and_sparse_reading_decodes_little(clip):
    probe(clip)
    before = frames_decoded()
    probe(clip)
    assert frames_decoded() == before
    read_frames(clip, [28], "pyav")
    assert 1 <= frames_decoded() - before <= 12  # from the keyframe before it
    for backend in ("auto", "pyav"):
        before = frames_decoded()
        read_frames(clip, range(30), backend)
        assert frames_decoded() - before == 30


# --- Writing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(64, 64), (1280, 720)], ids=["small", "large"])  # where players assume other matrices
def test_colours_survive(tmp_path, size):
    width, height = size
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (128, 64, 200)]
    frames = np.stack([np.full((height, width, 3), colour, np.uint8) for colour in colours])
    write_video(tmp_path / "colours.mp4", frames, 8)
    normalise(tmp_path / "colours.mp4", tmp_path / "again.mp4")
    for name in ("colours.mp4", "again.mp4"):
        for backend in ("pyav", "decord") if video._decord() else ("pyav",):
            back = read_frames(tmp_path / name, range(len(colours)), backend).astype(int)
            assert np.abs(back - frames).max() <= 4, (name, backend)


@pytest.mark.parametrize("size", ["64x64", "1280x720"])
@pytest.mark.parametrize("matrix", ["bt601", "bt709", "unsaid"])
def test_imported_colours_are_what_a_player_shows(tmp_path, matrix, size):
    """BT.601 or BT.709 as the file says; where it does not, BT.709 for large pictures and BT.601 for small ones."""
    actual = matrix if matrix != "unsaid" else ("bt601" if size == "64x64" else "bt709")
    convert = f"scale=out_color_matrix={actual}:out_range=tv,format=yuv420p"
    tags = {"bt601": "smpte170m", "bt709": "bt709", "unsaid": "unknown"}[matrix]
    source = tmp_path / "red.mp4"
    films.ffmpeg(
        "-f", "lavfi", "-i", f"color=0xDD2010:size={size}:rate=8:duration=0.5,format=rgb24",
        "-vf", f"{convert},setparams=colorspace={tags}", source,
    )  # fmt: skip
    normalise(source, tmp_path / "out.mp4")
    for path in (source, tmp_path / "out.mp4"):
        assert np.abs(read_frames(path, [0])[0].reshape(-1, 3).mean(0) - (0xDD, 0x20, 0x10)).max() < 5, path.name


def test_written_clips_keep_their_pictures(tmp_path):
    frames = films.numbered(20)
    write_video(tmp_path / "a.mp4", frames, 8)
    back = read_frames(tmp_path / "a.mp4", range(20))
    assert films.numbers(back) == list(range(20))
    assert np.abs(back.astype(int) - frames).mean() < 4


@pytest.mark.parametrize("fps", [8, 7.5, 23.976, 29.97, 30000 / 1001, 0.5, 120])
def test_any_rate_can_be_written(tmp_path, fps):
    write_video(tmp_path / "a.mp4", films.numbered(6), fps)
    found = probe(tmp_path / "a.mp4")
    assert found.num_frames == 6
    assert found.fps == pytest.approx(fps, rel=1e-4)
    assert np.allclose(np.diff(stamps(tmp_path / "a.mp4")), 1 / found.fps, atol=1e-4)


def test_keyframes_stand_close_together(clip):
    with av.open(str(clip)) as container:
        keys = [k for k, packet in enumerate(p for p in container.demux(video=0) if p.size) if packet.is_keyframe]
    assert max(np.diff([*keys, 30])) <= 12


def test_metadata_survives(tmp_path):
    tags = {
        "prompt": 'a "cat" \\ ${alert(1)} <img onerror> 😀',
        "seed": "42",
        "comment": "two\nlines",
        "checkpoint": "a/b",
    }
    write_video(tmp_path / "a.mp4", films.numbered(3), 8, tags)
    assert read_metadata(tmp_path / "a.mp4") == tags
    write_video(tmp_path / "b.mp4", films.numbered(3), 8)
    assert read_metadata(tmp_path / "b.mp4") == {}


def test_metadata_of_what_is_no_video(tmp_path):
    with pytest.raises(VideoError, match=r"^a\.mp4 cannot be read: No such file"):
        read_metadata(tmp_path / "a.mp4")
    text_as_video(tmp_path / "a.mp4")
    with pytest.raises(VideoError, match=r"^a\.mp4 is not a video"):
        read_metadata(tmp_path / "a.mp4")


@pytest.mark.parametrize(
    ("frames", "fps", "words"),
    [
        (np.zeros((2, 63, 64, 3), np.uint8), 8, "64 x 63 pixels, but H.264 needs even sizes"),
        (np.zeros((0, 64, 64, 3), np.uint8), 8, "needs frames as"),
        (np.zeros((2, 64, 64, 3), np.float32), 8, "needs frames as"),
        (np.zeros((2, 64, 64, 3), np.uint8), 0, "at 0 frames per second"),
    ],
)
def test_what_cannot_be_written_is_refused(tmp_path, frames, fps, words):
    with pytest.raises(VideoError, match=rf"^a\.mp4 .*{words}"):
        write_video(tmp_path / "a.mp4", frames, fps)
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = films.plain(tmp_path / "a.mp4", count=4)
    before = path.read_bytes()

    def full(self, target):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", full)
        with pytest.raises(VideoError, match=r"^a\.mp4 cannot be written: No space left on device"):
            films.plain(path, count=9)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_a_sentence(tmp_path, monkeypatch):
    real = video.av.open
    monkeypatch.setattr(video.av, "open", lambda path, *a, **k: real("/dev/full" if a else path, *a, **k))
    with pytest.raises(VideoError, match=r"^a\.mp4 cannot be written: No space left on device"):
        write_video(tmp_path / "a.mp4", films.numbered(12), 8)


# --- Pictures for people ---------------------------------------------------------------------------------------------


def test_thumbnails(tmp_path, wide):
    write_thumbnail(wide, tmp_path / "thumbs" / "a.webp")
    write_thumbnail(read_frames(wide, [0])[0], tmp_path / "b.webp", width=48)
    with Image.open(tmp_path / "thumbs" / "a.webp") as picture:
        assert (picture.format, picture.size) == ("WEBP", (320, 213))
        middle = np.asarray(picture.convert("RGB").resize((96, 64)))
    assert films.numbers(middle[None]) == [15]
    with Image.open(tmp_path / "b.webp") as picture:
        assert picture.size == (48, 32)


def test_gif(tmp_path, clip):
    write_gif(tmp_path / "a.gif", read_frames(clip, range(12)), 10)
    with Image.open(tmp_path / "a.gif") as picture:
        assert (picture.format, picture.n_frames, picture.info["duration"], picture.info["loop"]) == ("GIF", 12, 100, 0)
    assert films.numbers(read_frames(tmp_path / "a.gif", range(12))) == list(range(12))


def test_grid(tmp_path, clip, wide):
    short = films.plain(tmp_path / "short.mp4", count=10)
    write_grid(tmp_path / "grid.mp4", [[clip, wide], [short]])
    found = probe(tmp_path / "grid.mp4")
    assert (found.num_frames, found.fps, found.width, found.height) == (30, 8.0, 192, 128)
    frames = read_frames(tmp_path / "grid.mp4", range(30))
    assert films.numbers(frames[:, :64, 16:80]) == list(range(30))
    assert films.numbers(frames[:, :64, 96:]) == list(range(30))
    assert films.numbers(frames[:, 64:, 16:80]) == [*range(10), *[9] * 20]
    assert frames[:, 70:122, 100:188].max() < 8
    with pytest.raises(VideoError, match="at least one clip"):
        write_grid(tmp_path / "none.mp4", [])
