"""The answer at the top of a screen, and lists of short notes: HTML in which every text is escaped."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import Literal

Tone = Literal["", "ok", "bad", "error", "warning", "info"]


def answer(title: str, line: str = "", tone: Tone = "") -> str:
    """A bold line, and a quieter one beneath it."""
    second = f"<span>{escape(line)}</span>" if line else ""
    return f'<div class="answer {tone}" role="status"><b>{escape(title)}</b>{second}</div>'


def notes(items: Iterable[tuple[Tone, str]]) -> str:
    """One line for each (tone, text)."""
    lines = "".join(f'<li class="{tone}">{escape(text)}</li>' for tone, text in items)
    return f'<ul class="notes">{lines}</ul>' if lines else ""
