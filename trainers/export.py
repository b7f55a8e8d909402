"""Write a checkpoint in a format of the field: python -m trainers.export CHECKPOINT --format NAME --out PATH."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from trainers.families import FAMILIES, get_family
from trainers.families.base import ModelError
from trainers.runs import Checkpoint
from trainers.terminal import answer


def main(arguments: Sequence[str] | None = None) -> int:
    formats = "\n".join(
        f"{family.title}:\n" + "\n".join(f"  {name}  {what}" for name, what in family.export_formats.items())
        for family in FAMILIES.values()
    )
    parser = argparse.ArgumentParser(
        prog="python -m trainers.export",
        description="Write a checkpoint in a format of the field, load it again, and say what was matched.",
        epilog=formats,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoint", type=Path, help="a checkpoint folder of a run")
    parser.add_argument("--format", required=True, help="one of the formats below")
    parser.add_argument("--out", type=Path, required=True, help="the file or folder to write; must not exist")
    args = parser.parse_args(arguments)
    return answer(lambda: tell(export(args.checkpoint, args.format, args.out)))


def tell(report: str) -> int:
    print(report)
    return 0


def export(checkpoint: Path, format: str, out: Path) -> str:
    """Write `checkpoint` as `format` to `out`; a sentence on what was written. Raises ModelError, ConfigError."""
    meta = Checkpoint(checkpoint).meta()
    if "family" not in meta:
        raise ModelError(f"{checkpoint} is not a checkpoint folder: it has no meta.json that names a family")
    family = get_family(meta["family"])
    if format not in family.export_formats:
        known = ", ".join(family.export_formats)
        raise ModelError(f"{family.title} has no export format {format!r}; known: {known}")
    if out.exists():
        raise ModelError(f"{out} exists already; name another --out or remove it")
    return family.export(checkpoint, format, out)


if __name__ == "__main__":
    sys.exit(main())
