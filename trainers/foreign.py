"""Configs and command lines of other trainers: what a family's ``compat.py`` makes of them. No torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Foreign:
    """An upstream config or command in our words.

    kind: whether it trains or samples. settings: nested, as in our YAML, `family` included. notes: what is said of
    keys that mean something else here, or nothing. run_dir: where upstream would write, or None.
    """

    kind: Literal["train", "sample"]
    settings: dict[str, Any]
    notes: list[str] = field(default_factory=list)
    run_dir: str | None = None
