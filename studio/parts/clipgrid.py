"""The grid of a dataset's clips: thumbnails that play, captions edited in place, what training makes of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from studio.parts import part
from trainers.data.clips import Clip
from trainers.data.ledger import LedgerRow

Ask = Callable[..., dict[str, Any]]


def clip_grid(save_caption: Ask, remove_clip: Ask) -> Any:
    """Shows `grid_value`; tells of a stored caption by event `saved`, of a removed clip by event `removed`.

    Both functions are called by the page under these very names, with {"dataset": name, "id": file name in the
    dataset, and "text"} and the request. They give {} or {"error": sentence}.
    """
    return part("clipgrid", grid_value("", []), elem_id="clips", server_functions=[save_caption, remove_clip])


def grid_value(dataset: str, clips: Sequence[dict[str, Any]], empty: str = "") -> dict[str, Any]:
    """What the grid shows: plain data, every text of it shown literally. empty: said when there are no clips."""
    return {"dataset": dataset, "clips": list(clips), "empty": empty}


def card(
    clip: Clip, row: LedgerRow | None, thumbnail: dict[str, Any] | None, video: dict[str, Any] | None
) -> dict[str, Any]:
    """One clip of the grid. row: what training makes of it, where that is known. Media are Gradio file values."""
    return {
        "id": clip.file_name,
        "name": str(clip.source.get("name") or clip.name),
        "text": clip.text,
        "facts": f"{timecode(clip.duration)}  {clip.fps:.4g} fps",
        "size": f"{clip.width} x {clip.height}",
        "status": row.status if row else "",
        "verdict": verdict(row) if row else "",
        "thumb": thumbnail,
        "video": video,
    }


def verdict(row: LedgerRow) -> str:
    """What training makes of a clip, in a sentence."""
    if row.status == "dropped":
        return f"Left out: {row.reason}"
    word = "Used" if row.status == "used" else "Trimmed"
    taken = f"{word}: {row.num_frames} frame{'' if row.num_frames == 1 else 's'} at {row.width} x {row.height}"
    return f"{taken}; {row.reason}" if row.reason else taken


def timecode(seconds: float) -> str:
    """``00:04.1``: minutes and seconds."""
    tenths = round(seconds * 10)
    return f"{tenths // 600:02d}:{tenths % 600 // 10:02d}.{tenths % 10}"
