"""Write a checkpoint in a format of the field: python -m trainers.export CHECKPOINT --format NAME --out PATH."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from trainers.families import FAMILIES, get_family
from trainers.families.base import ExportRequest, ModelError, ModelFamily
from trainers.runs import Checkpoint
from trainers.terminal import answer


def main(arguments: Sequence[str] | None = None) -> int:
    formats = "\n".join(
        f"{family.title}:\n" + "\n".join(f"  {name}  {what}" for name, what in family.export_formats.items())
        for family in FAMILIES.values()
    )
    commands = [
        f"  {name} --help  for {family.title}" for family in FAMILIES.values() for name in family.export_commands
    ]
    if commands:
        formats += "\n\nCommands of their own, in place of a checkpoint:\n" + "\n".join(commands)
    parser = argparse.ArgumentParser(
        prog="python -m trainers.export",
        description="Write a checkpoint in a format of the field, load it again, compare it, and say what was matched.",
        epilog=formats,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "checkpoint", type=Path, help="a checkpoint folder of a run; with --family, a file or folder from elsewhere too"
    )
    parser.add_argument("--format", required=True, help="one of the formats below")
    parser.add_argument("--out", type=Path, required=True, help="the file or folder to write; must not exist")
    parser.add_argument(
        "--family", help=f"whose weights they are, where no meta.json says it; known: {', '.join(FAMILIES)}"
    )
    parser.add_argument(
        "--dtype", choices=("fp32", "fp16", "bf16"), default="fp32", help="of the weights; default: fp32"
    )
    parser.add_argument("--strength", type=float, default=1.0, help="of a LoRA, as it is merged or written; default: 1")
    parser.add_argument("--onto", help="what a LoRA is merged into; default: what it was trained on")
    given = sys.argv[1:] if arguments is None else list(arguments)
    for family in FAMILIES.values():
        if given and given[0] in family.export_commands:
            return answer(partial(_carry_out, family, given))
    args = parser.parse_args(given)
    request = ExportRequest(args.checkpoint, args.format, args.out, args.dtype, args.strength, args.onto)
    return answer(lambda: tell(export(request, args.family)))


def _carry_out(family: ModelFamily, given: Sequence[str]) -> int:
    return tell(family.export_command(given[0], given[1:]))


def tell(report: str) -> int:
    print(report)
    return 0


def export(request: ExportRequest, family_name: str | None = None) -> str:
    """Write what is asked for; a sentence on what was written. Raises ModelError, ConfigError.

    family_name: whose weights they are, for a file or folder without a meta.json that says it.
    """
    if not request.checkpoint.exists():
        raise ModelError(f"{request.checkpoint} does not exist")
    own = Checkpoint(request.checkpoint).meta().get("family")
    name = family_name if own is None else own
    if name is None:
        raise ModelError(
            f"{request.checkpoint} is not a checkpoint folder: it has no meta.json that names a family; for weights "
            f"from elsewhere, say --family ({', '.join(FAMILIES)})"
        )
    if family_name not in (None, name):
        raise ModelError(f"{request.checkpoint} is a checkpoint of family {own}, not of {family_name}")
    family = get_family(name)
    if request.format not in family.export_formats:
        known = ", ".join(family.export_formats)
        raise ModelError(f"{family.title} has no export format {request.format!r}; known: {known}")
    if not math.isfinite(request.strength):
        raise ModelError(f"--strength is {request.strength}, but must be a number")
    if request.out.exists() or request.out.is_symlink():
        raise ModelError(f"{request.out} exists already; name another --out or remove it")
    return family.export(request)


if __name__ == "__main__":
    sys.exit(main())
