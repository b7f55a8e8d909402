"""Video files: what they hold, their frames by number, and writing them. numpy and FFmpeg's libraries; no torch.

Every file that Dailies writes is H.264, yuv420p, BT.709 in limited range, at a constant rate, with its index in front:
browsers play it, and each reader gives the same frames for the same numbers.
"""

from __future__ import annotations

import functools
import importlib
import uuid
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np
from av.container import InputContainer
from PIL import Image

from trainers.data import hdr
from trainers.data.index import (
    BT709,
    LIMITED,
    Index,
    VideoError,
    count_decoded,
    counted,
    cut_off,
    damaged,
    frames_decoded,
    index_of,
    matrix,
    open_video,
    orientation,
    picture_track,
    upright,
)

__all__ = [
    "Probe",
    "VideoError",
    "frames_decoded",
    "normalise",
    "probe",
    "read_frames",
    "read_metadata",
    "write_gif",
    "write_grid",
    "write_thumbnail",
    "write_video",
]

Backend = Literal["auto", "decord", "pyav"]

#: Frames between keyframes: of imported clips, and of clips written for watching frame by frame.
_CLIP_GOP, _WATCH_GOP = 24, 12
#: Tags that the container writes itself.
_OWN_TAGS = {"major_brand", "minor_version", "compatible_brands", "encoder", "creation_time"}


@dataclass(frozen=True)
class Probe:
    """What a video file holds. Width and height in pixels as shown, after rotation; duration in seconds; rotation in
    degrees counter-clockwise, already counted in width and height. Uneven rates give their average as fps. unusual:
    what its frames, read by number, do not show as a player would, in clauses. hdr: PQ, HLG or empty."""

    num_frames: int
    fps: float
    width: int
    height: int
    duration: float
    codec: str
    rotation: int
    unusual: tuple[str, ...] = ()
    hdr: str = ""


def probe(path: Path, *, name: str | None = None) -> Probe:
    """What a file holds, from its index and its first frame. `name` stands for the file in errors (an upload's own).

    Raises VideoError for what cannot be used: no video, no frames, cut off. Damage in the middle of a file that is
    whole otherwise shows only when it is decoded: see `normalise`.
    """
    index = index_of(path, name)
    if index.lost_of:
        raise cut_off(path, name, index)
    return Probe(
        num_frames=len(index.pts),
        fps=float(index.rate),
        width=index.width,
        height=index.height,
        duration=float(len(index.pts) / index.rate),
        codec=index.codec,
        rotation=index.rotation,
        unusual=index.unusual,
        hdr=index.hdr,
    )


def normalise(source: Path, target: Path, *, fps: float | None = None, name: str | None = None) -> Probe:
    """Write `source` as a clip: constant rate, upright, square pixels, even sizes (at most a row and a column are cut).

    Rate: `fps`, else the file's own, else (uneven timestamps) its average; each moment shows
    the frame nearest in time. Sound is left out, and HDR is tone-mapped. Decodes everything, so damage is found:
    VideoError says how many frames can be read. `target` appears when it is whole.
    """
    index = index_of(source, name)
    if index.lost_of:
        raise cut_off(source, name, index)
    rate = index.rate if fps is None else _as_rate(fps, target)
    pictures = _at_constant_rate(_clip_pictures(source, name, index), rate)
    _encode(target, pictures, rate, crf=14, preset="veryfast", gop=_CLIP_GOP)
    return probe(target)


def read_frames(
    path: Path, indices: Sequence[int], backend: Backend = "auto", size: tuple[int, int] | None = None
) -> np.ndarray:
    """Frames by number in display order, counted from 0: (f, h, w, 3) uint8 RGB, upright.

    Numbers may repeat and come in any order. auto takes decord where it is installed and agrees about the file, PyAV
    otherwise; both give identical frames of clips that Dailies wrote. size: (h, w) to which PyAV resizes each frame as
    it is decoded, without regard to its shape.
    """
    index = index_of(path)
    count = len(index.pts)
    for number in indices:
        if not 0 <= number < count:
            raise VideoError(f"{path.name} has {count} frames, numbered from 0; there is no frame {number}")
    if not len(indices):
        return np.empty((0, *(size or (index.height, index.width)), 3), np.uint8)
    if size:
        return _read_with_pyav(path, indices, index, size)
    if backend == "decord":
        return _read_with_decord(path, indices, count)
    if backend == "auto" and index.plain and _decord() is not None:
        try:
            return _read_with_decord(path, indices, count)
        except VideoError:  # a file that decord cannot handle (it fails on some narrow sizes); PyAV reads it
            pass
    return _read_with_pyav(path, indices, index)


def write_video(path: Path, frames: np.ndarray, fps: float, metadata: Mapping[str, str] | None = None) -> None:
    """Write (f, h, w, 3) uint8 RGB as a clip to watch: a keyframe at least every 12 frames, near lossless.

    `metadata` goes into the file's own tags; `read_metadata` gives it back. Sizes must be even. The file appears when
    it is whole.
    """
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or not len(frames):
        raise VideoError(f"{path.name} needs frames as (f, h, w, 3) uint8, not {frames.shape} {frames.dtype}")
    height, width = frames.shape[1:3]
    if height % 2 or width % 2:
        raise VideoError(f"{path.name} would be {width} x {height} pixels, but H.264 needs even sizes")
    pictures = (_from_rgb(frame) for frame in frames)
    _encode(path, pictures, _as_rate(fps, path), crf=12, preset="fast", gop=_WATCH_GOP, metadata=metadata or {})


def read_metadata(path: Path) -> dict[str, str]:
    """The tags of a file, without those that the container writes itself."""
    with open_video(path, path.name) as container:
        return {key: value for key, value in container.metadata.items() if key not in _OWN_TAGS}


def write_thumbnail(source: np.ndarray | Path, target: Path, width: int = 320) -> None:
    """Write a frame (h, w, 3), or the middle frame of a video file, as a WebP picture of that width."""
    if isinstance(source, Path):
        frame = read_frames(source, [len(index_of(source).pts) // 2])[0]
    else:
        frame = source
    height = max(1, round(frame.shape[0] * width / frame.shape[1]))
    with _beside(target) as writing:
        Image.fromarray(frame).resize((width, height), Image.Resampling.LANCZOS).save(writing, "WEBP", quality=80)


def write_gif(path: Path, frames: np.ndarray, fps: float) -> None:
    """Write (f, h, w, 3) uint8 as an endless GIF. GIFs count in hundredths of a second, so other rates are rounded."""
    with _beside(path) as writing:
        _film(frames, fps).write_gif(str(writing), fps=fps, logger=None)


def write_grid(path: Path, rows: Sequence[Sequence[Path]]) -> None:
    """Write rows of clips as one clip, at the highest rate among them.

    Every cell is as large as the largest clip, smaller ones stand in its middle; a shorter clip holds its last frame.
    """
    files = [file for row in rows for file in row]
    if not files:
        raise VideoError(f"{path.name} needs at least one clip")
    probes = {file: probe(file) for file in files}
    fps = max(found.fps for found in probes.values())
    seconds = max(found.duration for found in probes.values())
    height = max(found.height + found.height % 2 for found in probes.values())
    width = max(found.width + found.width % 2 for found in probes.values())

    def cell(file: Path | None) -> Any:
        if file is None:
            return _film(np.zeros((1, height, width, 3), np.uint8), fps, seconds)
        frames = read_frames(file, range(probes[file].num_frames))
        return _film(_centred(frames, height, width), probes[file].fps, seconds)

    columns = max(len(row) for row in rows)
    moviepy = importlib.import_module("moviepy")
    grid = moviepy.clips_array([[cell(file) for file in [*row, *[None] * (columns - len(row))]] for row in rows])
    # The middle of each frame's time: at its edges, rounding decides which frame is shown.
    pictures = (_from_rgb(grid.get_frame((k + 0.5) / fps).astype(np.uint8)) for k in range(round(seconds * fps)))
    _encode(path, pictures, _as_rate(fps, path), crf=12, preset="fast", gop=_WATCH_GOP)


# --- Reading frames --------------------------------------------------------------------------------------------------


def _read_with_pyav(
    path: Path, indices: Sequence[int], index: Index, size: tuple[int, int] | None = None
) -> np.ndarray:
    out = np.empty((len(indices), *(size or (index.height, index.width)), 3), np.uint8)
    slots: dict[int, list[int]] = {}  # timestamp (or number) of a frame -> where it goes
    for slot, number in enumerate(indices):
        slots.setdefault(index.pts[number], []).append(slot)
    try:
        # Some containers jump inexactly; what is then not found is decoded from the start.
        for jump in (True, False) if index.timed else (False,):
            if not slots:
                break
            with open_video(path, path.name) as container:
                for stamp, frame in _wanted_frames(container, sorted(slots), index, jump):
                    picture = upright(frame, size)
                    if picture.shape != out.shape[1:]:
                        raise VideoError(f"{path.name} changes its size on the way; import it as a clip first")
                    out[slots.pop(stamp)] = picture
    except av.FFmpegError as error:
        raise VideoError(f"{path.name} is damaged: {error.strerror}") from error
    if slots:
        missing = sorted(index.pts.index(stamp) for stamp in slots)
        raise VideoError(f"{path.name} is damaged: frame {missing[0]} of {len(index.pts)} cannot be read")
    return out


def _wanted_frames(
    container: InputContainer, wanted: list[int], index: Index, jump: bool
) -> Iterator[tuple[int, av.VideoFrame]]:
    """The frames at `wanted` timestamps (ascending), on the way jumping to a keyframe where that saves decoding.

    Ends early when one is not there.
    """
    stream = picture_track(container, Path(container.name).name)
    # Numbers asked for are few: decoding on several threads would begin frames that nobody wants.
    stream.thread_type = "SLICE"
    frames = enumerate(counted(container.decode(stream)))
    position = index.pts[0]  # timestamp of the last decoded frame
    for stamp in wanted:
        start = index.keys[max(0, bisect_right(index.keys, stamp) - 1)] if jump and index.keys else position
        # A jump throws away what the decoder has begun, so it must save more than that.
        if bisect_left(index.pts, start) - bisect_right(index.pts, position) > 4:
            container.seek(start, stream=stream, backward=True)
            frames = enumerate(counted(container.decode(stream)))
        for number, frame in frames:
            position = (frame.pts if index.timed else number) or 0
            if position >= stamp:
                break
        else:
            return
        if position > stamp:
            return
        yield stamp, frame


def _read_with_decord(path: Path, indices: Sequence[int], count: int) -> np.ndarray:
    decord = _decord()
    if decord is None:
        raise VideoError(f"{path.name} cannot be read with decord: it is not installed")
    try:
        reader = decord.VideoReader(str(path), num_threads=1)
        if len(reader) != count:
            raise VideoError(f"decord finds {len(reader)} frames in {path.name} where there are {count}")
        frames: np.ndarray = reader.get_batch(list(indices)).asnumpy()
    except (decord.DECORDError, RuntimeError) as error:
        raise VideoError(f"{path.name} cannot be read with decord") from error
    count_decoded(len(set(indices)))
    return frames


@functools.cache
def _decord() -> Any:
    """The decord module, or None where it has no wheel."""
    try:
        decord = importlib.import_module("decord")
    except (ImportError, OSError):
        return None
    decord.logging.set_level(decord.logging.QUIET)
    return decord


# --- Writing ---------------------------------------------------------------------------------------------------------


def _from_rgb(picture: np.ndarray) -> av.VideoFrame:
    """(h, w, 3) uint8 RGB as a frame to encode."""
    return _to_encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24"))


def _to_encode(frame: av.VideoFrame) -> av.VideoFrame:
    return frame.reformat(
        format="yuv420p", src_colorspace=matrix(frame), dst_colorspace="ITU709", dst_color_range="MPEG"
    )


def _clip_pictures(path: Path, name: str | None, index: Index) -> Iterator[tuple[float, av.VideoFrame]]:
    """Every frame of a file with its time in seconds, made ready to be encoded. VideoError on damage."""
    name = name or path.name
    readable, last, size = 0, index.pts[0], None
    origin: int | None = None
    try:
        with open_video(path, name) as container:
            stream = picture_track(container, name)
            stream.thread_type = "AUTO"
            aspect = Fraction(stream.sample_aspect_ratio or 1)
            for frame in counted(container.decode(stream)):
                if frame.is_corrupt and not readable:  # what stands before the first keyframe of a cut
                    continue
                picture = _clip_picture(frame, aspect)
                size = size or (picture.width, picture.height)
                if (picture.width, picture.height) != size:  # a stream that changes its size
                    picture = picture.reformat(*size)
                if index.timed and frame.pts is not None:
                    last = frame.pts
                    origin = last if origin is None else origin
                    yield float((last - origin) * index.time_base), picture
                else:
                    yield readable / float(index.rate), picture
                readable += 1
    except av.FFmpegError as error:
        raise damaged(name, readable, index) from error
    # Two timestamps may belong to the fields of one picture; more than two unseen ones are lost frames.
    if not readable or (index.timed and len(index.pts) - bisect_right(index.pts, last) > 2):
        raise damaged(name, readable, index)


def _clip_picture(frame: av.VideoFrame, aspect: Fraction) -> av.VideoFrame:
    """Upright, with square pixels and even sizes. `aspect` is width / height of the file's pixels."""
    width = max(2, round(frame.width * aspect))
    if not any(orientation(frame)) and not width % 2 and not frame.height % 2 and frame.color_trc not in hdr.NAMES:
        return _to_encode(frame if width == frame.width else frame.reformat(width=width, interpolation="BICUBIC"))
    picture = upright(frame)
    if aspect != 1:
        transposed = orientation(frame)[0]
        size = (picture.shape[1], width) if transposed else (width, picture.shape[0])
        picture = np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC))
    height, width = (side - side % 2 if side > 1 else side for side in picture.shape[:2])
    return _from_rgb(picture[:height, :width])


def _at_constant_rate(pictures: Iterable[tuple[float, av.VideoFrame]], rate: Fraction) -> Iterator[av.VideoFrame]:
    """For each tick of the rate the frame nearest in time, up to the last frame."""
    held: av.VideoFrame | None = None
    tick, at = 0, 0.0  # `at`: the time of the held frame, in ticks
    for seconds, picture in pictures:
        moment = seconds * float(rate)
        while held is not None and tick - at <= moment - tick:
            yield held
            tick += 1
        held, at = picture, moment
    while held is not None and (tick - at < 0.5 or tick == 0):
        yield held
        tick += 1


def _as_rate(fps: float, path: Path) -> Fraction:
    rate = Fraction(fps).limit_denominator(1001)
    if rate <= 0:
        raise VideoError(f"{path.name} cannot be written at {fps} frames per second; at least 0.001 is needed")
    return rate


def _encode(
    path: Path,
    pictures: Iterable[av.VideoFrame],
    rate: Fraction,
    *,
    crf: int,
    preset: str,
    gop: int,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """H.264 from frames of one size that `_to_encode` made."""
    # faststart: the index stands in front, so that a browser plays before it has everything.
    options = {"movflags": "faststart+use_metadata_tags"}
    try:
        with (
            _beside(path) as writing,
            av.open(str(writing.absolute()), "w", format="mp4", options=options) as container,
        ):
            container.metadata.update(metadata or {})
            stream: Any = None
            for number, picture in enumerate(pictures):
                if stream is None:
                    stream = container.add_stream("libx264", rate=rate)
                    stream.width, stream.height, stream.pix_fmt = picture.width, picture.height, "yuv420p"
                    stream.gop_size = gop
                    # Otherwise x264 chooses its routines by where memory happens to lie, and the same frames give now
                    # one file, now another: two equal takes would not compare as equal.
                    same = "cpu-independent=1"
                    stream.options = {"crf": str(crf), "preset": preset, "profile": "high", "x264-params": same}
                    context = stream.codec_context
                    context.colorspace = context.color_primaries = context.color_trc = BT709
                    context.color_range = LIMITED
                picture.pts, picture.time_base = number, 1 / rate
                picture.pict_type = 0  # or the encoder would repeat the source's keyframes
                container.mux(stream.encode(picture))
            container.mux(stream.encode())
    except av.FFmpegError as error:
        raise VideoError(f"{path.name} cannot be written: {error.strerror}") from error


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """A name beside `path` to write under; it becomes `path` only if nothing went wrong."""
    writing = path.with_name(f".{uuid.uuid4().hex}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield writing
        writing.replace(path)
    except OSError as error:
        raise VideoError(f"{path.name} cannot be written: {error.strerror or error}") from error
    finally:
        writing.unlink(missing_ok=True)


def _film(frames: np.ndarray, fps: float, seconds: float | None = None) -> Any:
    """Frames as a moviepy clip. moviepy never opens a video file here: it miscounts damaged and uneven ones."""
    moviepy = importlib.import_module("moviepy")
    last = len(frames) - 1
    return moviepy.VideoClip(
        lambda t: frames[min(last, int(t * fps + 1e-6))], duration=len(frames) / fps if seconds is None else seconds
    )


def _centred(frames: np.ndarray, height: int, width: int) -> np.ndarray:
    """(f, h, w, 3) on a black ground of that size."""
    out = np.zeros((len(frames), height, width, 3), np.uint8)
    top, left = (height - frames.shape[1]) // 2, (width - frames.shape[2]) // 2
    out[:, top : top + frames.shape[1], left : left + frames.shape[2]] = frames
    return out
