"""How much each take of a comparison has moved: a row of bars for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from studio.parts import part


def measure_list(**settings: Any) -> Any:
    """The part; it shows nothing while there is nothing."""
    return part("measures", measures_value([]), **settings)


def measures_value(takes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the part shows of each take: label, sub, mark, moves (how much moves in it, as text), and bars.

    A bar: name, colour, value (0 to 1, or None) and text. Every take has the same ones.
    """
    return {"takes": [dict(take) for take in takes]}
