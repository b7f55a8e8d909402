"""Sample base and checkpoints side by side: python -m trainers.sample --config SAMPLE.yaml [--run-dir DIR].

Every take gets the same prompts and the same noise. Cells are cached by all that they depend on, so asking again, or
adding a checkpoint, costs only what is new.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from trainers.config import SampleConfig
from trainers.data.images import images_for
from trainers.data.video import probe, read_frames, write_gif, write_grid, write_video
from trainers.events import EventLog
from trainers.families import FAMILIES, changed, file_findings, get_family, parse_sample_config, read_file
from trainers.families.base import SampleRequest, VideoModel
from trainers.metrics import Measures
from trainers.runs import Checkpoint, RunFolder
from trainers.settings import describe, to_yaml
from trainers.terminal import (
    Mendable,
    Screen,
    StopSwitch,
    answer,
    carry_out,
    hush_libraries,
    run_folder,
    wait_asleep,
)

if TYPE_CHECKING:
    import numpy as np


def sample_clip(model: VideoModel, request: SampleRequest, seed: int) -> np.ndarray:
    """The clip that a seed gives, (f, h, w, 3) uint8. Validation and comparisons both come through here.

    The initial noise is what `torch.Generator().manual_seed(seed)` gives first, so a pipeline elsewhere can repeat it.
    """
    import torch

    from trainers.noise import Draws

    return model.sample(request, Draws(torch.Generator().manual_seed(seed)))


def write_clip(
    file: Path, frames: np.ndarray, fps: float, request: SampleRequest, seed: int, take: str, strength: float
) -> None:
    """The clip as H.264, with everything that made it in the file's own metadata."""
    facts = {key: str(value) for key, value in request.facts().items()}
    write_video(file, frames, fps, facts | {"seed": str(seed), "take": take, "strength": str(strength)})


# --- a comparison -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Column:
    """One take at one strength; the base has no checkpoint."""

    checkpoint: Path | None
    strength: float

    @property
    def take(self) -> str:
        return "base" if self.checkpoint is None else str(self.checkpoint)

    @property
    def step(self) -> int:
        return Checkpoint(self.checkpoint).step if self.checkpoint and self.checkpoint.is_dir() else 0


@dataclass(frozen=True)
class Cell:
    """One clip of the comparison."""

    column: int
    row: int
    take: Column
    request: SampleRequest
    seed: int
    key: str


#: Settings that change which clips are asked for, not how one looks; prompts and images are in each request.
_NOT_IN_KEY = {"checkpoints", "strengths", "include_base", "prompts", "images", "end_images", "negative_prompt",
               "seeds", "cache_dir"}  # fmt: skip


def columns(config: SampleConfig) -> list[Column]:
    """Base first, then each checkpoint at each strength."""
    base = [Column(None, 1.0)] if config.include_base else []
    return base + [Column(Path(c).expanduser(), s) for c in config.checkpoints for s in config.strengths]


def cells(config: SampleConfig) -> Iterator[Cell]:
    """Every cell, take by take, so that each take is loaded once."""
    from trainers.data.cache import cache_key, path_fingerprint

    settings = config.model_dump(exclude=_NOT_IN_KEY)
    models = {name: path_fingerprint(value) for name, value in settings.items() if isinstance(value, str)}
    takes = columns(config)
    images, ends = (images_for(files, config.prompts) for files in (config.images, config.last_images))
    asked = zip(config.prompts, images, ends, strict=True)
    rows = [(prompt, image, end, seed) for prompt, image, end in asked for seed in config.seeds]
    first = next((take_identity(t.checkpoint) for t in takes if t.checkpoint), "")
    for column, take in enumerate(takes):
        weights = take_identity(take.checkpoint) if take.checkpoint else "base"
        for row, (prompt, image, end, seed) in enumerate(rows):
            request = SampleRequest(
                prompt=prompt,
                negative_prompt=config.negative_prompt,
                height=config.height,
                width=config.width,
                num_frames=config.num_frames,
                num_inference_steps=config.num_inference_steps,
                guidance_scale=config.guidance_scale,
                image=image,
                end_image=end,
            )
            # What a checkpoint says of its base decides how the base column is built, hence `first`.
            key = cache_key(settings=settings, models=models, first=first, take=weights, strength=take.strength,
                            request=request.facts(), seed=seed)  # fmt: skip
            yield Cell(column, row, take, request, seed, key)


def take_identity(checkpoint: Path) -> list[str]:
    """What a take draws with: its own files, and those that it says it was trained on."""
    from trainers.data.cache import path_fingerprint

    below = [value for value in Checkpoint(checkpoint).meta().values() if isinstance(value, str)]
    return [path_fingerprint(value) for value in (str(checkpoint), *below)]


def compare(config: SampleConfig, run: RunFolder, log: EventLog, stop: StopSwitch) -> str:
    """Sample what is not in the cache yet; every cell ends as RUN/samples/KEY.mp4 and an event."""
    family = get_family(config.family)
    cache = Path(config.cache_dir).expanduser() / "clips" if config.cache_dir else run.cache / "clips"
    wanted = list(cells(config))
    measures = Measures(log)
    bases = {cell.row: run.samples / f"{cell.key}.mp4" for cell in wanted if cell.take.checkpoint is None}
    model: VideoModel | None = None
    loaded: Column | None = None
    first = next((cell.take.checkpoint for cell in wanted if cell.take.checkpoint), None)
    new = 0
    for done, cell in enumerate(wanted):
        stop()
        log.write("phase", phase="sampling", done=done, total=len(wanted))
        began = time.monotonic()
        cached = cache / f"{cell.key}.mp4"
        if not cached.exists():
            if model is None:
                log.write("phase", phase="loading", done=0, total=1)
                hush_libraries()
                model = family.load(config, "sample")
            if loaded != cell.take:
                model.load([(cell.take.checkpoint, cell.take.strength)] if cell.take.checkpoint else [])
                loaded = cell.take
            frames = sample_clip(model, cell.request, cell.seed)
            cache.mkdir(parents=True, exist_ok=True)
            write_clip(cached, frames, config.fps, cell.request, cell.seed, cell.take.take, cell.take.strength)
            new += 1
        file = run.samples / f"{cell.key}.mp4"
        file.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(cached, file)
        log.write(
            "sample",
            step=cell.take.step,
            path=file.relative_to(run.path).as_posix(),
            prompt=cell.request.prompt,
            seed=cell.seed,
            take=cell.take.take,
            strength=cell.take.strength,
            column=cell.column,
            row=cell.row,
            seconds=time.monotonic() - began,
        )
        measures.write(
            file,
            bases.get(cell.row),
            training_motion(cell.take.checkpoint or first),
            step=cell.take.step,
            take=cell.take.take,
            strength=cell.take.strength,
            prompt=cell.request.prompt,
            seed=cell.seed,
            column=cell.column,
            row=cell.row,
        )
    log.write("phase", phase="sampling", done=len(wanted), total=len(wanted))
    write_grids(run, wanted, config.fps)
    return f"{len(wanted)} clips, {new} new and {len(wanted) - new} from the cache"


def training_motion(checkpoint: Path | None) -> Path | None:
    """What a checkpoint's own run kept of how its training clips move; the file may not exist."""
    return RunFolder(checkpoint.parent.parent).training_motion if checkpoint else None


def write_grids(run: RunFolder, cells: Sequence[Cell], fps: float) -> None:
    """The whole comparison as one clip and one GIF, to pass on: a row for each prompt and seed, a column a take."""
    rows: dict[int, list[Path]] = {}
    for cell in sorted(cells, key=lambda cell: (cell.row, cell.column)):
        rows.setdefault(cell.row, []).append(run.samples / f"{cell.key}.mp4")
    write_grid(run.grid, list(rows.values()))
    write_gif(run.grid.with_suffix(".gif"), read_frames(run.grid, range(probe(run.grid).num_frames)), fps)


# --- the door ---------------------------------------------------------------------------------------------------------


def problems(config: SampleConfig) -> list[str]:
    """Why a comparison would not start, from the files that it names."""
    found = [finding.text for finding in file_findings(config) if finding.level == "error"]
    for checkpoint in config.checkpoints:
        if not Path(checkpoint).expanduser().exists():
            found.append(f"checkpoint {checkpoint} does not exist")
    if not columns(config):
        found.append("nothing to sample: name checkpoints or set include_base to true")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m trainers.sample",
        description="Sample the base model and checkpoints side by side, with the same prompts and the same noise.",
        epilog="\n".join(f"Settings of {f.title}:\n{describe(f.sample_config)}" for f in FAMILIES.values()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--config", type=Path, required=True, help="the comparison: YAML, or a command that a family reads"
    )
    parser.add_argument(
        "--run-dir",
        type=Path,
        help="where clips and the event log go; default: in the output folder of an upstream command, else runs/",
    )
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting")
    args = parser.parse_args(arguments)
    wait_asleep()
    return answer(lambda: start(args))


def start(args: argparse.Namespace) -> int:
    """Begin a comparison; gives the exit code."""
    found = read_file(args.config, "sample")
    config = parse_sample_config(changed(found, args.set))
    for problem in problems(config):
        raise Mendable(problem)
    run = run_folder(args.config, args.run_dir, found)
    if run.exists:
        raise Mendable(f"{run.path} already holds a run; name another --run-dir")
    run.path.mkdir(parents=True, exist_ok=True)
    if not run.config.exists():
        run.config.write_text(to_yaml(config), encoding="utf-8")
    stop = StopSwitch()
    stop.listen()
    print(f"comparison in {run.path}", flush=True)
    started = {"step": 0, "max_train_steps": 0, "family": config.family, "method": "sample", "resumed": False}
    screen = Screen(lambda line: print(line, flush=True))

    def act(log: EventLog) -> str:
        for note in found.notes:
            log.write("message", level="warning", text=note)
        for finding in file_findings(config):
            log.write("message", level=finding.level, text=finding.text)
        return compare(config, run, log, stop)

    return carry_out(run, started, act, screen)


if __name__ == "__main__":
    sys.exit(main())
