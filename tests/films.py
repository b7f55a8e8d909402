"""Small videos for tests, each frame with its number painted in: eight black or white squares, lowest bit left."""

from __future__ import annotations

import subprocess
from pathlib import Path

import imageio_ffmpeg
import numpy as np

from trainers.data.video import write_video


def numbered(count: int, height: int = 64, width: int = 64) -> np.ndarray:
    """(f, h, w, 3) uint8: the number across the top, below it a colour ramp and a red square that moves."""
    y, x = np.mgrid[0:height, 0:width]
    ramp = np.stack([255 * x // width, 255 * y // height, np.full_like(x, 90)], -1).astype(np.uint8)
    frames = np.repeat(ramp[None], count, 0)
    side = width // 8
    for k, frame in enumerate(frames):
        for bit in range(8):
            frame[: height // 4, bit * side : (bit + 1) * side] = 255 * (k >> bit & 1)
        left = k * 3 % (width - side)
        frame[height // 2 : height // 2 + side, left : left + side] = (230, 20, 20)
    return frames


def numbers(frames: np.ndarray) -> list[int]:
    """The painted numbers of upright frames."""
    _, height, width, _ = frames.shape
    side = width // 8
    strip = frames[:, height // 16 : height // 4 - height // 16].mean(axis=(1, 3))  # (f, w)
    found = []
    for row in strip:
        bits = [row[bit * side + side // 4 : (bit + 1) * side - side // 4].mean() > 127 for bit in range(8)]
        found.append(sum(1 << bit for bit in range(8) if bits[bit]))
    return found


def ffmpeg(*arguments: str | Path) -> None:
    """Run the ffmpeg program that comes with moviepy."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-v", "error", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def plain(path: Path, count: int = 30, fps: float = 8, height: int = 64, width: int = 64) -> Path:
    """A well-formed clip."""
    write_video(path, numbered(count, height, width), fps)
    return path


def uneven(path: Path, source: Path) -> Path:
    """The frames of an 8 fps `source` at changing times: from frame 10 on, each stands three times as long."""
    ffmpeg("-i", source, "-vf", "setpts='if(lt(N,10),N,10+(N-10)*3)/8/TB'", "-fps_mode", "passthrough", path)
    return path


def rotated(path: Path, source: Path, degrees: int) -> Path:
    """`source` with a note that players are to turn it by so many degrees counter-clockwise, as phones write it."""
    ffmpeg("-display_rotation", str(degrees), "-i", source, "-c", "copy", path)
    return path


def truncated(path: Path, source: Path, share: float = 0.6) -> Path:
    """The first part of a file's bytes."""
    data = source.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


def sound(path: Path) -> Path:
    """A file with a tone and no picture."""
    ffmpeg("-f", "lavfi", "-i", "sine=duration=1", path)
    return path
