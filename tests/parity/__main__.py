"""The door: python -m tests.parity FAMILY DIR. Exits 0 when every number of DIR was checked and fits, else 1."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

FAMILIES = ("animatediff", "cogvideox", "mochi", "dynamicrafter")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.parity",
        description="Compare what Dailies computes with reference vectors: a line for each check, then the totals.",
    )
    parser.add_argument("family", choices=FAMILIES)
    parser.add_argument("folder", type=Path, help="vectors laid out like tests/data/FAMILY; files may be gzipped")
    args = parser.parse_args(arguments)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")

    import torch

    from tests.parity.vectors import Report, Vectors

    torch.use_deterministic_algorithms(True)
    with tempfile.TemporaryDirectory(prefix="parity-") as scratch:
        vectors, report = Vectors(args.folder, Path(scratch)), Report()
        if vectors.names:
            importlib.import_module(f"tests.parity.{args.family}").check(vectors, report)
            for name in vectors.left():
                report.failed(name, "no check uses it")
        else:
            report.failed(str(args.folder), "holds no vectors")
    print(report.totals())
    return 0 if report.passed else 1


if __name__ == "__main__":
    sys.exit(main())
