"""The index of a video file: every frame by timestamp, whether the file is whole, and how a frame is shown."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.buffer import Buffer
from av.container import InputContainer
from av.filter import Graph
from av.stream import Disposition
from av.video.stream import VideoStream

from trainers.data import hdr

#: FFmpeg's numbers for BT.709 (matrix, primaries and transfer) and for limited range.
BT709, LIMITED = 1, 1
_UNSPECIFIED = 2
#: Rates that a measured rate is taken for when it is nearly one of them.
_USUAL_RATES = [Fraction(n * 1000, 1001) for n in (24, 30, 48, 60, 120)] + [
    Fraction(n) for n in (5, 6, 8, 10, 12, 15, 16, 20, 24, 25, 30, 48, 50, 60, 90, 100, 120, 240)
]
#: Containers that are opened. The list keeps out playlists and the like: those are texts that name further files and
#: addresses, which FFmpeg would follow.
_CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,gif,ogg,asf,ivf,obu,h264,hevc,m4v,mjpeg,mxf,dv,"
    "nut,yuv4mpegpipe,apng,rm,wav,mp3,aac,flac"
)

_decoded = 0
_decoded_lock = threading.Lock()


class VideoError(Exception):
    """A video file that cannot be read or written: one sentence that names the file."""


@dataclass(frozen=True)
class Index:
    """The shown frames of a file by timestamp, and what reading them needs."""

    pts: tuple[int, ...]  # of every shown frame, in display order
    keys: tuple[int, ...]  # of the keyframes
    timed: bool  # the file has timestamps; without them frames can only be counted
    time_base: Fraction
    rate: Fraction
    width: int
    height: int
    codec: str
    rotation: int
    plain: bool  # as `normalise` and `write_video` write it; decord gets no other files
    lost_of: int | None  # of how many frames some are missing, where the data end before the header says
    hdr: str  # PQ or HLG, or empty
    unusual: tuple[str, ...]  # what makes its pictures or its time other than they seem, in words


def index_of(path: Path, name: str | None = None) -> Index:
    """The index of a file; `name` stands for it in errors. VideoError when it is not a video with frames."""
    name = name or path.name
    try:
        facts = path.stat()
    except OSError as error:
        raise VideoError(f"{name} cannot be read: {error.strerror}") from error
    if not path.is_file():
        raise VideoError(f"{name} is not a file")
    if not facts.st_size:
        raise VideoError(f"{name} is empty (0 bytes)")
    return _read_index(path, facts.st_size, facts.st_mtime_ns, name)


@functools.lru_cache(maxsize=512)
def _read_index(path: Path, size: int, mtime_ns: int, name: str) -> Index:
    """Reads every packet and decodes the first frame; remembered until the file's size or time is another."""
    with open_video(path, name) as container:
        stream = picture_track(container, name)
        packets = _read_packets(container, stream)
        shown = [pts for pts, _, hidden in packets.found if not hidden]
        stamps = sorted(pts for pts in shown if pts is not None)
        # AVI has no timestamps; what FFmpeg makes up for it does not fit the frames where they are reordered.
        timed = len(stamps) == len(shown) and container.format.name != "avi"
        rate = _rate(stamps, stream) if timed and stamps else _claimed_rates(stream)[0]
        first = _first_frame(path, name)
        if first is None or not shown:
            raise VideoError(f"{name} has no frames that can be read")
        height, width = upright(first).shape[:2]
        context = stream.codec_context
        return Index(
            pts=tuple(stamps) if timed else tuple(range(_count(path, name))),
            keys=tuple(sorted({pts for pts, key, _ in packets.found if key and pts is not None})),
            timed=timed,
            time_base=Fraction(stream.time_base or 1),
            rate=rate,
            width=width,
            height=height,
            codec=context.codec.canonical_name,
            rotation=int(first.rotation),
            plain=(context.codec.canonical_name, context.pix_fmt) == ("h264", "yuv420p")
            and (first.colorspace, first.color_range, first.rotation) == (BT709, LIMITED, 0)
            and first.color_trc not in hdr.NAMES
            and "mp4" in container.format.name
            and packets.closed
            and not first.interlaced_frame,
            lost_of=_lost_of(container, stream, packets, len(shown), float(rate)),
            hdr=hdr.NAMES.get(first.color_trc, ""),
            unusual=tuple(_unusual(first, stream, timed and not _is_even(stamps, rate, stream))),
        )


@dataclass(frozen=True)
class _Packets:
    found: list[tuple[int | None, bool, bool]]  # timestamp, keyframe, hidden by an edit list
    end: float  # seconds at which the pictures (in matroska: any track) end
    torn: bool  # the last one is cut off
    closed: bool  # H.264 in mp4, in which nothing refers to what stands before a keyframe


def _read_packets(container: InputContainer, stream: VideoStream) -> _Packets:
    found: list[tuple[int | None, bool, bool]] = []
    end, torn, closed = 0.0, False, True
    extra = stream.codec_context.extradata or b""
    length = (extra[4] & 3) + 1 if len(extra) > 4 else 4  # bytes of each unit's length
    indexed = "mp4" in container.format.name  # a transport stream may end anywhere, and does
    tracks = list(container.streams) if "matroska" in container.format.name else [stream]
    seconds = {track.index: float(track.time_base or 0) for track in tracks}  # of a tick, for every packet of a track
    try:
        for packet in container.demux(*tracks):
            if not packet.size:  # the mark at the end of a track
                continue
            track = packet.stream.index
            if packet.pts is not None:
                end = max(end, (packet.pts + (packet.duration or 0)) * seconds[track])
            if track == stream.index:
                found.append((packet.pts, packet.is_keyframe, packet.is_discard))
                torn = packet.is_corrupt and indexed
                closed = closed and (not packet.is_keyframe or _starts_afresh(bytes(packet), length))
    except av.FFmpegError:
        torn = True
    return _Packets(found, end, torn, closed)


def _starts_afresh(packet: bytes, length: int) -> bool:
    """Whether an H.264 keyframe is an IDR picture (unit type 5). decord takes every keyframe for one and then gives
    other frames than it was asked for: of open groups of pictures, and of those that are refreshed bit by bit."""
    place = 0
    while place + length < len(packet):
        if packet[place + length] & 31 == 5:
            return True
        place += length + int.from_bytes(packet[place : place + length])
    return False


def _lost_of(container: InputContainer, stream: VideoStream, packets: _Packets, shown: int, rate: float) -> int | None:
    """How many frames there should be, where some are missing; of containers whose header is known to be right."""
    start, seconds, slack = 0.0, 0.0, 1.5 / rate
    if "mp4" in container.format.name and stream.duration is not None and stream.time_base is not None:
        start = float((stream.start_time or 0) * stream.time_base)
        seconds = float(stream.duration * stream.time_base)
    elif "matroska" in container.format.name and container.duration is not None:
        seconds = container.duration / av.time_base
        slack = 0.5 + 0.02 * seconds  # writers round, and hidden tracks may be longer
    if start + seconds - packets.end > slack:
        return max(shown + 1, stream.frames or round(seconds * rate))
    return shown if packets.torn else None


def _rate(stamps: Sequence[int], stream: VideoStream) -> Fraction:
    """The rate at which frame k is nearest to time k / rate for every k; where there is none, the average, rounded."""
    claimed = _claimed_rates(stream)
    time_base = Fraction(stream.time_base or 1)
    span = (stamps[-1] - stamps[0]) * time_base
    if not span:
        return claimed[0]
    average = (len(stamps) - 1) / span
    rounded = max(Fraction(1, 100), Fraction(round(average * 100), 100))
    usual = min(_USUAL_RATES, key=lambda rate: abs(rate - average))
    for rate in (*claimed, usual, rounded, average.limit_denominator(1_000_000)):
        if _is_even(stamps, rate, stream):
            return rate
    return usual if abs(usual - average) <= average / 200 else rounded


def _is_even(stamps: Sequence[int], rate: Fraction, stream: VideoStream) -> bool:
    """Whether frame k is nearest to time k / rate for every k."""
    ticks = np.array(stamps, np.float64) - stamps[0]
    places = np.floor(ticks * float(Fraction(stream.time_base or 1) * rate) + 0.5)
    return np.array_equal(places, np.arange(len(stamps)))


def _claimed_rates(stream: VideoStream) -> list[Fraction]:
    """What the file says of its own rate; 25 where it says nothing."""
    return [Fraction(rate) for rate in (stream.average_rate, stream.guessed_rate) if rate] or [Fraction(25)]


def _unusual(first: av.VideoFrame, stream: VideoStream, uneven: bool) -> Iterator[str]:
    """What a reader by number does not mend, where `normalise` would; and of HDR, which both mend, that it is."""
    if uneven:
        yield "its frames stand for different times, but are taken by number"
    aspect = Fraction(stream.sample_aspect_ratio or 1)
    if aspect != 1:
        yield f"its pixels are not square ({aspect.numerator}:{aspect.denominator}), but are taken as if they were"
    if first.interlaced_frame:
        yield "it is interlaced: movement has comb-like edges"
    if first.color_trc in hdr.NAMES:
        yield f"it is HDR ({hdr.NAMES[first.color_trc]}): its colours are tone-mapped to BT.709"


@contextmanager
def open_video(path: Path, name: str) -> Iterator[InputContainer]:
    """The container, closed afterwards. VideoError in words when it is not one."""
    options = {"format_whitelist": _CONTAINERS, "protocol_whitelist": "file"}
    try:
        container = av.open(str(path.absolute()), container_options=options)
    except av.FFmpegError as error:
        try:
            with path.open("rb") as file:
                head = file.read(512)
        except OSError as unreadable:
            raise VideoError(f"{name} cannot be read: {unreadable.strerror}") from unreadable
        if head[4:8] == b"ftyp":
            raise VideoError(
                f"{name} is cut off: its index is missing, so no frame can be read; copy it again"
            ) from error
        what = "it holds text" if _is_text(head) else "no known video format"
        raise VideoError(f"{name} is not a video ({what})") from error
    with container:
        yield container


def _is_text(head: bytes) -> bool:
    return not any(byte < 9 or 13 < byte < 27 for byte in head)


def picture_track(container: InputContainer, name: str) -> VideoStream:
    """The video track; VideoError says what there is instead."""
    for stream in container.streams.video:
        if not stream.disposition & Disposition.attached_pic:  # the cover of a song
            return stream
    what = "only sound" if container.streams.audio else "no picture track"
    raise VideoError(f"{name} is not a video ({what})")


def cut_off(path: Path, name: str | None, index: Index) -> VideoError:
    """The error for a file that ends early, after counting what can still be read."""
    name = name or path.name
    return damaged(name, _count(path, name), index)


def damaged(name: str, readable: int, index: Index) -> VideoError:
    """The error for a file of which only so many frames can be read."""
    total = max(index.lost_of or len(index.pts), readable + 1)
    return VideoError(
        f"{name} is cut off or damaged: {readable} of {total} frames can be read; copy or export it again, or trim it"
    )


def _count(path: Path, name: str) -> int:
    """Frames of a file that can only be counted by decoding it."""
    frames = 0
    try:
        with open_video(path, name) as container:
            for _ in counted(container.decode(picture_track(container, name))):
                frames += 1
    except av.FFmpegError:
        pass
    return frames


def _first_frame(path: Path, name: str) -> av.VideoFrame | None:
    try:
        with open_video(path, name) as container:
            return next(iter(counted(container.decode(picture_track(container, name)))), None)
    except av.FFmpegError:
        return None


def counted(frames: Iterable[av.VideoFrame]) -> Iterator[av.VideoFrame]:
    """Decoded frames as they come, each counted."""
    for frame in frames:
        count_decoded(1)
        yield frame


def frames_decoded() -> int:
    """Frames that this process has decoded so far. A warm epoch adds none."""
    return _decoded


def count_decoded(frames: int) -> None:
    global _decoded
    with _decoded_lock:
        _decoded += frames


# --- One frame -------------------------------------------------------------------------------------------------------


def matrix(frame: av.VideoFrame) -> str | None:
    """The colour matrix that players assume for a frame that does not say: BT.709 when it is large, else BT.601."""
    large = frame.width >= 1280 or frame.height > 576
    return "ITU709" if large and frame.colorspace == _UNSPECIFIED and "yuv" in frame.format.name else None


def upright(frame: av.VideoFrame, size: tuple[int, int] | None = None) -> np.ndarray:
    """(h, w, 3) uint8 RGB, turned and mirrored as the file's display matrix says. size: (h, w) to resize to, whatever
    the shape was, before the picture becomes RGB. HDR is tone-mapped first."""
    transpose, mirror, flip = orientation(frame)
    if frame.color_trc in hdr.NAMES:
        frame = _without_hdr(frame)
    if size:
        picture = _resized(frame, *(size[::-1] if transpose else size))
    else:
        rgb = frame.reformat(format="rgb24", src_colorspace=matrix(frame), interpolation="BILINEAR")
        picture = rgb.to_ndarray()
    if transpose:
        picture = picture.transpose(1, 0, 2)
    return picture[:: -1 if flip else 1, :: -1 if mirror else 1]


def _without_hdr(frame: av.VideoFrame) -> av.VideoFrame:
    """The picture as a screen without HDR shows it, in rgb24. A frame that does not name its matrix has BT.2020's."""
    unnamed = frame.colorspace == _UNSPECIFIED and "yuv" in frame.format.name
    wide = frame.reformat(
        format="rgb48le", src_colorspace="BT2020" if unnamed else None, dst_color_range="JPEG", interpolation="BILINEAR"
    )
    return av.VideoFrame.from_ndarray(hdr.tone_mapped(wide.to_ndarray(), int(frame.color_trc)), format="rgb24")


def _resized(frame: av.VideoFrame, height: int, width: int) -> np.ndarray:
    """(h, w, 3) uint8 RGB from FFmpeg's own filters, as decord resizes: bit for bit, where `reformat` takes colour to
    stand elsewhere between the pixels and differs by up to 28 levels."""
    colours = ":in_color_matrix=bt709" if matrix(frame) else ""
    graph = Graph()
    graph.link_nodes(
        graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1)),
        graph.add("scale", f"{width}:{height}:flags=bilinear{colours}"),
        graph.add("format", "rgb24"),
        graph.add("buffersink"),
    ).configure()
    graph.push(frame)
    found = graph.pull()
    assert isinstance(found, av.VideoFrame)
    return found.to_ndarray()


def orientation(frame: av.VideoFrame) -> tuple[bool, bool, bool]:
    """Whether to swap the axes, then mirror left to right, then upside down.

    The matrix (a b u, c d v, x y w) sends a point to x' = ax + cy, y' = bx + dy.
    """
    data = frame.side_data.get("DISPLAYMATRIX")
    if not isinstance(data, Buffer):
        return False, False, False
    a, b, _, c, d = (int(value) for value in np.frombuffer(bytes(data), np.int32)[:5])
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return False, a < 0, d < 0
    return True, c < 0, b < 0
