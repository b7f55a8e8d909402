"""The wall: clips in rows of prompts and columns of takes, all on the same frame under one transport."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from studio.parts import part

#: A cell of the wall: {"video": FileData, "note": text}, {"error": text}, or None while it is waited for.
Cell = Mapping[str, Any] | None


def wall(**settings: Any) -> Any:
    """The part. It takes the keys Space, comma, full stop and Home while it is in sight and nobody types."""
    return part("wall", empty_wall(""), **settings)


def empty_wall(text: str) -> dict[str, Any]:
    """A wall without clips that says what belongs there."""
    return wall_value("", [], [], [], fps=8, num_frames=1, empty=text)


def wall_value(
    name: str,
    columns: Sequence[Mapping[str, Any]],
    rows: Sequence[Mapping[str, Any]],
    cells: Sequence[Sequence[Cell]],
    *,
    fps: float,
    num_frames: int,
    height: int = 0,
    width: int = 0,
    pending: str = "waiting",
    autoplay: bool = False,
    empty: str = "",
) -> dict[str, Any]:
    """What a `Wall` shows: plain data, every text of it shown literally.

    name: whose clips these are; another name starts at the first frame, the same one goes on playing what stays.
    columns: label, and optionally sub (the second line), mark (a badge) and key (its identity, where columns can come
    between others). rows: prompt, and optionally seed and look (a picture that its clips begin from, as data:). cells:
    one sequence a row, one cell a column. All clips have `fps` frames per second and `num_frames` frames. pending: what
    a cell says that has no clip yet.
    """
    return {
        "name": name,
        "fps": fps,
        "frames": num_frames,
        "height": height,
        "width": width,
        "columns": [dict(column) for column in columns],
        "rows": [dict(row) for row in rows],
        "cells": [[None if cell is None else dict(cell) for cell in row] for row in cells],
        "pending": pending,
        "autoplay": autoplay,
        "empty": empty,
    }
