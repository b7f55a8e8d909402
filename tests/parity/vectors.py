"""A folder of reference vectors, of which every number must be used, and the report of what was found."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load

#: The explanation that stands beside vectors.
TEXTS = ("README.md", "README.txt", "README")


class Tensors:
    """The tensors of one file by name; remembers which were taken."""

    def __init__(self, file: str, values: dict[str, torch.Tensor]) -> None:
        self.file, self._values, self._taken = file, values, set[str]()

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    @staticmethod
    def read(file: Path) -> dict[str, torch.Tensor]:
        """The tensors of a file that is no vector."""
        return load(file.read_bytes())

    def take(self, name: str) -> torch.Tensor:
        if name not in self._values:
            raise KeyError(f"{self.file} has no tensor {name}")
        self._taken.add(name)
        return self._values[name]

    def take_all(self) -> dict[str, torch.Tensor]:
        return {name: self.take(name) for name in self}

    def left(self) -> list[str]:
        return [f"{self.file}: {name}" for name in self._values if name not in self._taken]


class Case:
    """The facts of one case of a JSON file; remembers which were taken."""

    def __init__(self, name: str, facts: Mapping[str, Any]) -> None:
        self.name, self._facts, self._taken = name, facts, set[str]()

    def __contains__(self, name: str) -> bool:
        return name in self._facts

    def __iter__(self) -> Iterator[str]:
        return iter(self._facts)

    def __getitem__(self, name: str) -> Any:
        self._taken.add(name)
        return self._facts[name]

    def get(self, name: str) -> Any:
        self._taken.add(name)
        return self._facts.get(name)

    def left(self) -> list[str]:
        return [name for name in self._facts if name not in self._taken]


class Vectors:
    """The files of a folder under their plain names; one that is not there is looked for in `fallback`."""

    def __init__(self, folder: Path, scratch: Path) -> None:
        self.folder, self.scratch = folder, scratch
        found = sorted(file for file in folder.rglob("*") if file.is_file()) if folder.is_dir() else []
        self._files: dict[str, Path] = {}
        for file in found:
            name = file.relative_to(folder).as_posix()
            plain = name.removesuffix(".gz")
            if plain not in TEXTS:
                self._files[name if plain in self._files else plain] = file  # of two alike the second has no check
        self._used: set[str] = set()
        self._tensors: dict[str, Tensors] = {}

    @property
    def names(self) -> list[str]:
        return list(self._files)

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def bytes(self, name: str, fallback: Path | None = None) -> bytes:
        """The content of a file, unpacked. KeyError when it is not there."""
        file = self._files.get(name)
        if file is None and fallback is not None:
            file = next((fallback / n for n in (name, f"{name}.gz") if (fallback / n).is_file()), None)
        if file is None:
            raise KeyError(f"{name} is not among the vectors")
        self._used.add(name)
        data = file.read_bytes()
        return gzip.decompress(data) if file.suffix == ".gz" else data

    def json(self, name: str, fallback: Path | None = None) -> Any:
        return json.loads(self.bytes(name, fallback))

    def tensors(self, name: str, fallback: Path | None = None) -> Tensors:
        if name not in self._tensors:
            self._tensors[name] = Tensors(name, load(self.bytes(name, fallback)))
        return self._tensors[name]

    def file(self, name: str) -> Path:
        """A plain copy of a file, for readers that want a path."""
        plain = self.scratch / name
        if not plain.exists():
            plain.parent.mkdir(parents=True, exist_ok=True)
            plain.write_bytes(self.bytes(name))
        return plain

    def made(self, name: str) -> Path:
        """An empty folder for what a check builds."""
        folder = self.scratch / "made" / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder

    def left(self) -> list[str]:
        """Files, and tensors of files that were read, that no check has used."""
        unread = [name for name in self._files if name not in self._used]
        return unread + [name for tensors in self._tensors.values() for name in tensors.left()]


class Report:
    """Prints one line for each check."""

    def __init__(self) -> None:
        self.checks = 0
        self.failures = 0

    @property
    def passed(self) -> bool:
        return self.checks > 0 and not self.failures

    def close(self, name: str, found: torch.Tensor, expected: torch.Tensor, tolerance: float, unit: str = "") -> None:
        """Largest difference of two tensors, and whether it is within the tolerance."""
        if found.shape != expected.shape:
            return self.failed(name, f"has the shape {tuple(found.shape)} instead of {tuple(expected.shape)}")
        if not expected.numel():
            return self.failed(name, "has no numbers to compare with")
        error = float((found.detach().double() - expected.double()).abs().max())
        return self.measured(name, error, tolerance, unit)

    def measured(self, name: str, error: float, tolerance: float, unit: str = "") -> None:
        good = error <= tolerance  # not a number is not good
        self._line(good, name, f"{error:.2e} of {tolerance:.0e}{unit and ' ' + unit}")

    def equal(self, name: str, found: Any, expected: Any) -> None:
        """Whether two plain values are the same."""
        self._line(found == expected, name, "equal" if found == expected else f"{found} instead of {expected}")

    def failed(self, name: str, reason: str) -> None:
        self._line(False, name, reason)

    @contextmanager
    def check(self, name: str) -> Iterator[None]:
        """Whatever goes wrong inside fails this check and no other; so does an inside that compares nothing."""
        before = self.checks
        try:
            yield
        except Exception as error:  # noqa: BLE001 - the report is the answer to anything
            self.failed(name, f"{type(error).__name__}: {error}")
        if self.checks == before:
            self.failed(name, "holds nothing to compare with")

    @contextmanager
    def case(self, name: str, facts: Mapping[str, Any]) -> Iterator[Case]:
        """The same for a case of a JSON file, of which every fact must be used."""
        with self.check(name):
            case = Case(name, facts)
            yield case
            for fact in case.left():
                self.failed(f"{name} {fact}", "no check uses it")

    def totals(self) -> str:
        passed = self.checks - self.failures
        return f"totals passed={passed} failed={self.failures}"

    def _line(self, good: bool, name: str, what: str) -> None:
        self.checks += 1
        self.failures += not good
        print(f"{'ok  ' if good else 'FAIL'} {name}: {what}", flush=True)
