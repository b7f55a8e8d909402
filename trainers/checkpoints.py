"""What a checkpoint holds besides the weights, and how a run goes on from it as if it had never stopped."""

from __future__ import annotations

import json
import pickle
import random
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch
from safetensors import SafetensorError

from trainers.config import TrainConfig
from trainers.errors import why
from trainers.families.base import ModelError, VideoModel
from trainers.processes import Processes
from trainers.runs import Checkpoint, RunFolder
from trainers.terminal import Mendable

#: What an optimizer's parameter groups take from the config and the machine, beside the learning rate of the moment.
SETTINGS = (
    "initial_lr", "betas", "eps", "weight_decay", "fused", "beta3", "decouple", "use_bias_correction",
    "safeguard_warmup",
)  # fmt: skip

WAY_OUT = "remove this folder to resume from the checkpoint before it"


def save_checkpoint(
    run: RunFolder,
    step: int,
    loss: float | None,
    config: TrainConfig,
    model: VideoModel,
    state: dict[str, Any],
) -> None:
    """Weights, meta.json and state.pt; a full disk costs this checkpoint and no other."""
    try:
        with run.new_checkpoint(step) as folder:
            meta = model.save(folder)
            meta |= {"step": step, "validation_loss": loss, "run": run.id, "seed": config.seed, "time": time.time()}
            (folder / "meta.json").write_text(json.dumps(meta, indent=2, ensure_ascii=False), encoding="utf-8")
            torch.save(state, folder / "state.pt")
    except (OSError, RuntimeError, SafetensorError) as error:
        kept = run.checkpoints()
        last = f"step {kept[-1].step}, the last whole checkpoint" if kept else "the beginning"
        free = shutil.disk_usage(run.path).free / 1024**3
        raise Mendable(
            f"step {step} could not be saved to {run.path}, where {free:.1f} GiB are free: {why(error)}; then --resume "
            f"goes on from {last}"
        ) from error


def read_state(checkpoint: Checkpoint, config: TrainConfig, shared: bool) -> dict[str, Any]:
    """What a checkpoint holds besides the weights. Mendable when it cannot be resumed with this config.

    shared: several processes read it, and keep what they do not need on the disk.
    """
    try:
        state: dict[str, Any] = torch.load(checkpoint.state, map_location="cpu", weights_only=True, mmap=shared)
    except FileNotFoundError:
        raise Mendable(f"{checkpoint.path} has no state.pt, so it cannot be resumed; {WAY_OUT}") from None
    except (OSError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
        raise Mendable(f"state.pt in {checkpoint.path} is damaged and cannot be resumed; {WAY_OUT}") from error
    saved, wanted = state.get("optimizer_name", config.optimizer.name), config.optimizer.name
    if saved != wanted:
        raise Mendable(
            f"{checkpoint.path} was saved with optimizer.name {saved}, whose states {wanted} cannot go on with; set it "
            f"to {saved}, or start a new run"
        )
    return state


def load_weights(model: VideoModel, checkpoint: Checkpoint) -> None:
    """The trained weights of a checkpoint, to go on from. Mendable when they are damaged, or of another kind."""
    try:
        model.load([(checkpoint.path, 1.0)])
    except ModelError as error:
        raise Mendable(
            f"{error}; set method and adapter as they were when the run began or, if the file is damaged, {WAY_OUT}: "
            f"{checkpoint.path}"
        ) from error


def restore(
    checkpoint: Checkpoint,
    state: dict[str, Any],
    optimizer: Any,
    schedule: torch.optim.lr_scheduler.LambdaLR,
    processes: Processes,
) -> int:
    """Optimizer, schedule, scaler and generators as they were after the checkpoint's step, which is given. The weights
    must be in place already.

    Learning rate, betas, epsilon and weight decay are the config's, which may have been changed in between.
    """
    groups = [{key: group[key] for key in SETTINGS if key in group} for group in optimizer.param_groups]
    base_rates = list(schedule.base_lrs)
    try:
        processes.layout.load_optimizer_state(optimizer, state["optimizer"])
    except ValueError as error:
        raise Mendable(
            f"{checkpoint.path} was saved while other weights were trained, so it cannot be resumed with this config; "
            "set method and the modules to train as they were, or start a new run"
        ) from error
    schedule.load_state_dict(state["schedule"])
    schedule.base_lrs = base_rates
    schedule._last_lr = [b * rate(schedule.last_epoch) for b, rate in zip(base_rates, schedule.lr_lambdas, strict=True)]
    for group, settings, rate in zip(optimizer.param_groups, groups, schedule._last_lr, strict=True):
        group.update(settings, lr=rate)
    scaler = processes.accelerator.scaler
    if scaler and state["scaler"]:
        scaler.load_state_dict(state["scaler"])
    states = state["rng"]
    set_random_state(states[processes.rank % len(states)])
    return int(state["step"])


def random_state() -> dict[str, Any]:
    """The state of every global generator, in plain types."""
    version, numbers, gauss = random.getstate()
    name, keys, position, has_gauss, cached = cast(
        tuple[str, np.ndarray, int, int, float], np.random.get_state(legacy=True)
    )
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        "python": [version, list(numbers), gauss],
        "numpy": [name, torch.from_numpy(keys.astype(np.int64)), int(position), int(has_gauss), float(cached)],
    }


def set_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Whatever is drawn inside leaves the run's generators as they were."""
    state = random_state()
    try:
        yield
    finally:
        set_random_state(state)
