"""Measure the trainers on this machine: python -m trainers.bench loop [--size tiny|mid|full] [--json FILE].

loop: our training step against a bare PyTorch loop (forward, backward, AdamW) on the same model and data, interleaved
in one process. CPU: processor time of one thread. CUDA: wall time between two points at which the device is waited for.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trainers.config import TrainConfig
from trainers.data.clips import Dataset
from trainers.data.formats import open_dataset
from trainers.data.ledger import ledger
from trainers.data.loader import Batches
from trainers.data.video import frames_decoded, write_video
from trainers.events import EventLog
from trainers.families import FAMILIES, get_family, parse_config
from trainers.loop import loss_of, train
from trainers.noise import Draws
from trainers.optim import make_optimizer
from trainers.precompute import Encoded
from trainers.runs import RunFolder
from trainers.terminal import StopSwitch, answer

#: size -> (frames, height and width, the overhead that is allowed: share of the bare step, and milliseconds on top)
SIZES = {"tiny": (8, 64, 0.10, 0.0), "mid": (8, 128, 0.03, 2.0), "full": (16, 256, 0.03, 2.0)}


@dataclass(frozen=True)
class Result:
    """One measured number, and the bound that it must keep."""

    name: str
    value: float
    unit: str
    bound: float | None
    note: str = ""

    @property
    def passed(self) -> bool:
        return self.bound is None or self.value <= self.bound

    def line(self) -> str:
        bound = "" if self.bound is None else f"  at most {self.bound:.3f}: {'pass' if self.passed else 'FAIL'}"
        return f"{self.name:38} {self.value:10.3f} {self.unit:8}{bound}  {self.note}".rstrip()


def bench_loop(
    family: str, size: str, rounds: int, steps: int, method: str, folder: Path, changes: dict[str, Any]
) -> list[Result]:
    """Overhead of our loop over the bare one, and what a warm epoch decodes."""
    config = bench_config(family, size, method, steps, folder, changes)
    on_cuda = torch.cuda.is_available()
    clock = time.perf_counter if on_cuda else time.process_time
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        if on_cuda:
            torch.cuda.reset_peak_memory_stats()
        our_seconds(config, folder / "warm-up", clock)  # fills the cache
        peak = (torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()) if on_cuda else (0, 0)
        decoded = frames_decoded()
        bare = BareLoop(config, folder)
        bare.seconds(2, clock)
        ours: list[float] = []
        theirs: list[float] = []
        for number in range(rounds):
            pair: list[tuple[list[float], Callable[[], float]]] = [
                (theirs, lambda: bare.seconds(steps, clock)),
                (ours, lambda: our_seconds(config, folder / f"round-{number}", clock)),  # noqa: B023 - called below
            ]
            for times, measure in pair if number % 2 else reversed(pair):
                times.append(measure() / steps)
    finally:
        torch.set_num_threads(threads)
    ratios = sorted(a / b for a, b in zip(ours, theirs, strict=True))
    share, milliseconds = SIZES[size][2:]
    step = statistics.median(theirs)
    allowed = 1 + share + milliseconds / 1000 / step
    spread = f"quartiles {ratios[len(ratios) // 4]:.3f} to {ratios[-1 - len(ratios) // 4]:.3f}, {rounds} rounds"
    results = [
        Result(f"loop-overhead.{config.family}.{size}", statistics.median(ratios), "x bare", allowed, spread),
        Result(f"bare-step.{config.family}.{size}", 1000 * step, "ms", None, f"{method}, {config.mixed_precision}"),
        Result(f"our-step.{config.family}.{size}", 1000 * statistics.median(ours), "ms", None),
        Result("warm-epoch.decoded", frames_decoded() - decoded, "frames", 0.0, f"{rounds} warm runs"),
    ]
    if on_cuda:
        results += [
            Result(f"memory-allocated.{config.family}.{size}", peak[0] / 1024**3, "GiB", None, "peak of one run"),
            Result(f"memory-reserved.{config.family}.{size}", peak[1] / 1024**3, "GiB", None),
        ]
    return results


def bench_config(family: str, size: str, method: str, steps: int, folder: Path, changes: dict[str, Any]) -> TrainConfig:
    """A run over two random clips on a random model of the size, that logs only its first and its last step."""
    from examples import tiny

    frames, pixels = get_family(family).frames_within(SIZES[size][0]), SIZES[size][1]
    models = tiny.write(family, folder / "base", size=size)
    data = Dataset.create(folder / "dataset")
    random = np.random.default_rng(0)
    for index in range(2):
        file = folder / f"{index}.mp4"
        write_video(file, random.integers(0, 255, (frames, pixels, pixels, 3), dtype=np.uint8), 8)
        data.add(file, f"clip {index}")
    settings: dict[str, Any] = {
        "family": family,
        "method": method,
        **models,
        "max_train_steps": steps + 1,
        "mixed_precision": "bf16" if torch.cuda.is_available() else "no",
        "dataset": {
            "path": str(data.path),
            "num_frames": frames,
            "height": pixels,
            "width": pixels,
            "cache_dir": str(folder / "cache"),
        },
        "validation": {"every_steps": None},
        "checkpoint": {"every_steps": None},
        "tracking": {"every_steps": steps + 1},
    }
    for section, values in changes.items():
        settings[section] = {**settings.get(section, {}), **values} if isinstance(values, dict) else values
    return parse_config(settings)


def our_seconds(config: TrainConfig, run: Path, clock: Callable[[], float]) -> float:
    """Seconds from the end of the first to the end of the last step of a whole run."""
    marks: list[float] = []
    log = EventLog(RunFolder(run).events, [lambda event: marks.append(clock()) if event["type"] == "step" else None])
    train(config, RunFolder(run), log, StopSwitch())
    log.close()
    return marks[-1] - marks[0]


class BareLoop:
    """What a PyTorch user would write: the same model and cached batches, nothing else."""

    def __init__(self, config: TrainConfig, folder: Path) -> None:
        family = get_family(config.family)
        self.model = family.load(config, "train")
        self.optimizer = make_optimizer(config.optimizer, self.model.trained_parameters())
        dataset = open_dataset(config.dataset)
        batches = Batches(dataset, ledger(dataset, config, family), config.dataset, config.seed)
        encoded = Encoded(self.model, family.name, folder / "cache", config.seed)
        self.device = self.model.trained_parameters()[0].device
        self.batches = [
            {name: tensor.to(self.device) for name, tensor in encoded.batch(batches[number]).items()}
            for number in range(batches.per_epoch)
        ]
        self.autocast = torch.autocast(
            self.device.type, torch.bfloat16, enabled=config.mixed_precision == "bf16", cache_enabled=True
        )
        self.generator = torch.Generator().manual_seed(0)

    def seconds(self, steps: int, clock: Callable[[], float]) -> float:
        draws = Draws(self.generator)
        began = clock()
        for step in range(steps):
            example = self.model.example(self.batches[step % len(self.batches)], draws)
            with self.autocast:
                prediction = self.model.predict(example)
            loss = loss_of(prediction, example)
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        loss.item()
        return clock() - began


def machine() -> dict[str, str]:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    packages = {name: version(name) for name in ("torch", "diffusers", "peft", "accelerate")}
    return {"device": device, "python": platform.python_version(), **packages}


def settings(pairs: Sequence[str]) -> Iterator[tuple[str, Any]]:
    from trainers.settings import apply_overrides

    yield from apply_overrides({}, pairs).items()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m trainers.bench", description=__doc__)
    parser.add_argument("what", choices=["loop"], help="what to measure")
    parser.add_argument("--family", choices=list(FAMILIES), default=next(iter(FAMILIES)), help="default %(default)s")
    parser.add_argument("--size", choices=list(SIZES), default="tiny", help="size of the random model (default tiny)")
    parser.add_argument("--method", default="lora", help="what is trained (default lora)")
    parser.add_argument("--rounds", type=int, default=7, help="interleaved rounds (default 7)")
    parser.add_argument("--steps", type=int, default=20, help="steps of each loop in a round (default 20)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting of the run")
    parser.add_argument("--json", type=Path, help="write the results here as well")
    args = parser.parse_args(arguments)
    return answer(lambda: carry(args))


def carry(args: argparse.Namespace) -> int:
    """Measure and show; 0 when every bound is kept."""
    with tempfile.TemporaryDirectory(prefix="dailies-bench-") as folder:
        results = bench_loop(
            args.family, args.size, args.rounds, args.steps, args.method, Path(folder), dict(settings(args.set))
        )
    for name, value in machine().items():
        print(f"{name}: {value}")
    for result in results:
        print(result.line())
    if args.json:
        args.json.write_text(json.dumps({"machine": machine(), "results": [asdict(r) for r in results]}, indent=2))
    return 0 if all(result.passed for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
