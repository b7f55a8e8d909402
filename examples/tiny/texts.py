"""What the tiny models' tokenizers know, and how their settings are written."""

from __future__ import annotations

import json
from pathlib import Path

#: Words that are one token each; every other text is spelt in letters and bytes.
_WORDS = """
a an and at away back ball bird black blue bounces car cat circle clip cloud cube dark dog down drifts falls
fast from front glides grass green grey grows in into is jumps left light line man moves moving night of on
orange out over pink purple red right ring rises road rolls round runs sea shape shrinks sky slides slow slowly
small snow spins square star still sun swings the through to towards tree triangle turns up video walks water
waves white wind with woman yellow
"""
WORDS = _WORDS.split()


def write_json(path: Path, data: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
