"""Pictures that a clip begins from: image files, and the first frames of videos. Pillow and numpy; no torch."""

from __future__ import annotations

import functools
import hashlib
import struct
import uuid
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from trainers.data.video import VideoError, read_frames
from trainers.errors import why

#: What Pillow opens here. The list keeps out formats that are handed on to other programs. AVIF, say, opens as a video.
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
#: The most pixels of a picture, and the fewest of each side.
MOST_PIXELS, SHORTEST_SIDE = 64_000_000, 8
#: What Pillow raises of a file whose head is right and whose data are not.
_DAMAGED = (OSError, SyntaxError, ValueError, LookupError, TypeError, EOFError, struct.error)


def read_image(path: Path) -> np.ndarray:
    """The picture of an image file, or the first frame of a video: (h, w, 3) uint8 RGB, upright.

    What is transparent lies on white. VideoError, one sentence, for a file that is not there, that is neither of the
    two, damaged, too large or too small.
    """
    if not path.exists():
        raise VideoError(f"{path} does not exist; give an image or a video file")
    picture = _still(path)
    if picture is None:
        picture = _first_frame(path)
    height, width = picture.shape[:2]
    if min(height, width) < SHORTEST_SIDE:
        raise VideoError(f"{path.name} has {width} x {height} pixels; each side must have at least {SHORTEST_SIDE}")
    return picture


def images_for(files: Sequence[str], prompts: Sequence[str]) -> list[np.ndarray | None]:
    """The picture for each prompt: one file for each, a single one for all, or no files. Each is read once."""
    if not files:
        return [None] * len(prompts)
    read = {file: read_image(Path(file).expanduser()) for file in dict.fromkeys(files)}
    return [read[file] for file in file_for_each(files, len(prompts))]


def file_for_each(files: Sequence[str], prompts: int) -> list[str]:
    """The file of each prompt: a single one is for all of them."""
    return list(files) * prompts if len(files) == 1 else list(files)


def problem_of_image(path: Path) -> str | None:
    """Why a file cannot be used as a picture, in a sentence; None when it can. Remembered until the file changes."""
    try:
        facts = path.stat()
    except OSError:
        return _problem(path, None)
    return _problem(path, (facts.st_size, facts.st_mtime_ns))


@functools.lru_cache(maxsize=256)
def _problem(path: Path, stamp: tuple[int, int] | None) -> str | None:
    try:
        read_image(path)
    except VideoError as error:
        return str(error)
    return None


def sha256_of_image(picture: np.ndarray) -> str:
    """Identity of a picture, whatever kind of file it came from."""
    height, width = picture.shape[:2]
    return hashlib.sha256(f"{width}x{height};".encode() + np.ascontiguousarray(picture).tobytes()).hexdigest()


def write_image(path: Path, picture: np.ndarray) -> None:
    """Write (h, w, 3) uint8 as PNG, from which `read_image` gives the same; the file appears when it is whole."""
    writing = path.with_name(f".{uuid.uuid4().hex}.png")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(writing, "PNG")
        writing.replace(path)
    except OSError as error:
        raise VideoError(f"{path.name} cannot be written: {why(error)}") from error
    finally:
        writing.unlink(missing_ok=True)


# --- reading ----------------------------------------------------------------------------------------------------------


def _still(path: Path) -> np.ndarray | None:
    """The picture of an image file, of an animated one the first; None when it is no image that is known."""
    too_large = f"{path.name} has more than {MOST_PIXELS // 10**6} million pixels; make it smaller first"
    try:
        with Image.open(path, formats=_FORMATS) as image:
            if image.width * image.height > MOST_PIXELS:
                raise VideoError(too_large)
            return _as_rgb(ImageOps.exif_transpose(image), path.name)
    except UnidentifiedImageError as error:
        if not _begins_as_image(path):
            return None
        raise _damaged(path) from error
    except Image.DecompressionBombError as error:
        raise VideoError(too_large) from error
    except _DAMAGED as error:
        raise _damaged(path, why(error) if getattr(error, "errno", None) else "") from error


def _begins_as_image(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(16)
    known = [accept for accept in (Image.OPEN[form][1] for form in _FORMATS) if accept is not None]
    return any(accept(head) for accept in known)


def _damaged(path: Path, reason: str = "") -> VideoError:
    reason = reason or "it is damaged or cut off; copy or export it again"
    return VideoError(f"{path.name} cannot be read as an image: {reason}")


def _as_rgb(image: Image.Image, name: str) -> np.ndarray:
    """(h, w, 3) uint8, on white where it is transparent."""
    if image.mode.startswith("I;16"):  # 16 bits of grey, which Pillow would cut instead of scale
        grey = np.round(np.asarray(image) / 257).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if image.mode in ("I", "F"):
        raise VideoError(f"{name} has 32 bits a channel, whose range is not known; save it with 8 or 16")
    if image.has_transparency_data:
        coloured = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", coloured.size, "white"), coloured)
    return np.array(image.convert("RGB"))


def _first_frame(path: Path) -> np.ndarray:
    try:
        frame: np.ndarray = read_frames(path, [0])[0]
    except VideoError as error:  # what is no video either was meant as an image
        said = str(error).replace("is not a video", "is neither an image nor a video", 1)
        raise VideoError(said.replace("no known video format", "no known format")) from error
    if frame.shape[0] * frame.shape[1] > MOST_PIXELS:
        raise VideoError(f"{path.name} has frames of more than {MOST_PIXELS // 10**6} million pixels; make it smaller")
    return frame
