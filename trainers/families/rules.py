"""Rules of size and length that families of video transformers share. No torch."""

from __future__ import annotations

from trainers.settings import FieldError

_NUMBERS = {4: "fours", 6: "sixes", 8: "eights"}


def check_size(height: int, width: int, multiple: int, prefix: str) -> None:
    """FieldError, with the nearest sizes, where a side is no multiple. prefix: of the fields height and width."""
    for name, size in (("height", height), ("width", width)):
        if size % multiple:
            down = max(multiple, size // multiple * multiple)
            up = (size // multiple + 1) * multiple
            ways = f"set {up}" if down > size else f"set {down} or {up}"
            raise FieldError(prefix + name, f"is {size}, but must be a multiple of {multiple}: {ways}")


def frames_within(available: int, multiple: int) -> int:
    """The most frames of so many where each latent frame is `multiple` frames, but the first, which is one."""
    return (available - 1) // multiple * multiple + 1 if available > 0 else 0


def check_frames(frames: int, multiple: int, title: str, where: str) -> None:
    """FieldError, with the nearest counts, where frames are not the first and whole latent frames."""
    down = frames_within(frames, multiple)
    if frames != down:
        raise FieldError(
            where,
            f"is {frames}, but {title} takes {multiple}k + 1 frames, of which all but the first become latents by "
            f"{_NUMBERS[multiple]}: set {down} or {down + multiple}",
        )
