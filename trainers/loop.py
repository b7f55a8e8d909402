"""The training loop, top to bottom. It names no family."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Generic, TypeVar

import accelerate
import numpy as np
import torch
from torch.nn.functional import mse_loss

from trainers.checkpoints import load_weights, random_state, random_state_kept, read_state, restore, save_checkpoint
from trainers.config import TrainConfig, ValidationConfig
from trainers.data.clips import DatasetError, ReadableDataset
from trainers.data.formats import open_dataset
from trainers.data.images import images_for
from trainers.data.ledger import LedgerRow, ledger, nothing_to_train
from trainers.data.loader import Batches, Sample, read_pixels
from trainers.events import EventLog
from trainers.families import get_family
from trainers.families.base import Example, SampleRequest, VideoModel
from trainers.metrics import TRAINING_CLIPS, Measures, spread
from trainers.noise import Draws
from trainers.optim import make_optimizer, make_schedule
from trainers.precompute import Encoded, Read
from trainers.processes import Processes
from trainers.runs import Checkpoint, RunFolder
from trainers.sample import sample_clip, write_clip
from trainers.terminal import Cancelled, Mendable, StopSwitch

T = TypeVar("T")


def train(
    config: TrainConfig, run: RunFolder, log: EventLog, stop: StopSwitch, resume: Checkpoint | None = None
) -> str:
    """Train as the config says, into the run folder, with whatever processes were started for it. Gives the reason for
    the end, one sentence.

    Raises Cancelled (after saving), Mendable, ModelError, DatasetError, VideoError.
    """
    config = computable(config, log)
    stop()
    processes = Processes(config)
    with processes.ending_together():
        chosen = processes.gather(str(run.path.resolve()))[0]
        if not processes.first:  # where no folder was asked for, each process would take the next that is free
            run = RunFolder(Path(chosen))
        return train_with(processes, config, run, log, stop, resume)


def train_with(
    processes: Processes,
    config: TrainConfig,
    run: RunFolder,
    log: EventLog,
    stop: StopSwitch,
    resume: Checkpoint | None = None,
) -> str:
    """What each of the processes does. All but the first write no file of the run and no event."""
    device, rank, world, layout = processes.device, processes.rank, processes.count, processes.layout

    # --- what there is to learn from ----------------------------------------------------------------------------------
    family = get_family(config.family)
    dataset = open_dataset(config.dataset)
    rows = ledger(dataset, config, family)
    problem = nothing_to_train(dataset, rows, config)
    if problem:
        raise DatasetError(problem[1])
    images = images_for(config.validation.images, config.validation.prompts)
    trained_rows, held_rows = hold_out(rows, config)
    wishes_seen = run.wishes()[1]

    # --- the model ----------------------------------------------------------------------------------------------------
    log.write("phase", phase="loading", done=0, total=1)
    # numpy takes no more than 32 bits; dropout alone draws from these, and differs from process to process
    accelerate.utils.set_seed((config.seed + rank) % 2**32)
    model = family.load(config, "train")
    log.write("message", level="info", text=trainable_sentence(model))
    stop()

    # --- clips and captions, encoded ----------------------------------------------------------------------------------
    batches = Batches(dataset, trained_rows, config.dataset, config.seed)
    held = held_samples(dataset, batches, held_rows, config)
    cache_dir = Path(config.dataset.cache_dir).expanduser() if config.dataset.cache_dir else run.cache
    kept = cache_dir if config.dataset.cache else None
    encoded = Encoded(model, family.name, kept, config.seed, prepared=config.dataset.prepared)
    to_encode = [sample for variant in batches.variants() for sample in variant] + held
    captions = [row.clip.text for row in [*trained_rows, *held_rows]]
    report = encoding_report(log, stop)
    if world > 1 and config.dataset.cache:  # each its share; then what lies on no disk that this machine sees
        mine = list(dict.fromkeys(to_encode))[rank::world], list(dict.fromkeys(captions))[rank::world]
        encoded.prepare(*mine, report)
        processes.wait()
    encoded.prepare(to_encode, captions, report)

    # --- optimizer, schedule, and what a checkpoint brings back -------------------------------------------------------
    if len(set(processes.gather(resume.step if resume else None))) > 1:
        raise Mendable(f"the processes see different checkpoints in {run.path}; put it on a disk that all machines see")
    state = read_state(resume, config, shared=world > 1) if resume else None
    if resume:
        load_weights(model, resume)
    layout.share(model)
    parameters = model.trained_parameters()
    optimizer = make_optimizer(config.optimizer, parameters, config.memory.offload_optimizer)
    schedule = make_schedule(config.optimizer, optimizer, config.max_train_steps, config.start_step)
    optimizer = layout.prepare(model, optimizer)
    first_step = config.start_step
    if resume and state:
        first_step = restore(resume, state, optimizer, schedule, processes)

    # --- what samples are measured against ----------------------------------------------------------------------------
    measures = Measures(log)
    if processes.first and config.validation.prompts:
        measures.keep_training_motion(some_clips(batches.variants()[0], config.validation.prompts), run.training_motion)

    # --- acts of the loop ---------------------------------------------------------------------------------------------
    validation, checkpoint = config.validation, config.checkpoint
    accumulation = config.optimizer.gradient_accumulation_steps

    def validate(step: int) -> float | None:
        loss = None
        with layout.alone(model):
            if processes.first:
                loss = validation_loss(model, encoded, held, config, device)
                log.write("validation", step=step, validation_loss=loss)
                refuse_bad_validation(loss, step, run)
            processes.wait()
        return loss

    def draw(step: int) -> None:
        if not validation.prompts:
            return
        with layout.alone(model):
            if processes.first:
                start = starting_clip(encoded, batches.variants()[0], config) if model.starts_from_clip else None
                with random_state_kept():
                    draw_samples(model, config, run, log, step, stop, measures, images, start)
                model.release("decoder")
                if config.dataset.cache:
                    model.release("encoders")
            processes.wait()

    def save(step: int, loss: float | None) -> None:
        whole_state = {
            "step": step,
            "optimizer_name": config.optimizer.name,
            "optimizer": layout.optimizer_state(optimizer),
            "schedule": schedule.state_dict(),
            "scaler": processes.accelerator.scaler.state_dict() if processes.accelerator.scaler else None,
            "rng": processes.gather(random_state()),
        }
        with layout.savable(model):
            if processes.first:
                log.write("phase", phase="saving", done=step, total=config.max_train_steps)
                save_checkpoint(run, step, loss, config, model, whole_state)
                run.prune(checkpoint.keep_last)
                best = run.best()
                path = f"checkpoints/step-{step:06d}"
                log.write("checkpoint", step=step, path=path, best=best is not None and best.step == step)
            processes.wait()

    def read_batch(number: int) -> tuple[list[Sample], list[Read]]:
        samples = batches[number * world + rank]
        return samples, encoded.read(samples)

    # --- the loop -----------------------------------------------------------------------------------------------------
    if first_step == config.start_step and validation.every_steps:
        validate(first_step)
        draw(first_step)
    elif any(processes.gather(sampled_at(first_step, config) and lacks_samples(run, first_step, validation))):
        draw(first_step)  # the run ended between this checkpoint and its samples
    log.write("phase", phase="training", done=first_step, total=config.max_train_steps)
    set_mode(model, training=True)
    loss_sum = torch.zeros((), device=device)  # since the last log
    first_bad = torch.full((), -1, device=device, dtype=torch.int64)  # the first batch whose loss is not finite
    logged_step, logged_at = first_step, time.monotonic()
    saved_step = first_step if resume else None
    stop_after = config.max_train_steps + 1
    reader = ReadAhead(read_batch, first_step * accumulation)

    for step in range(first_step + 1, config.max_train_steps + 1):
        for micro in range(accumulation):
            number = (step - 1) * accumulation + micro
            batch = on_device(encoded.batch(*reader.take(number)), device)
            # The draws are those of the batch, whichever process has it; the 0 is from when they were not.
            example = model.example(batch, Draws.seeded(config.seed, "train", number * world + rank, 0))
            network, last = model.denoiser[example.denoiser], micro == accumulation - 1
            with layout.micro_batch(network, last=last):
                loss = loss_of(model.predict(example), example)
                layout.backward(loss, last=last)
            loss_sum += loss.detach() / accumulation
            first_bad = torch.where((first_bad < 0) & ~torch.isfinite(loss.detach()), number, first_bad)
        layout.clip(parameters)
        rate = schedule.get_last_lr()[0]
        optimizer.step()
        if not optimizer.step_was_skipped:  # the fp16 scaler skips a step whose gradients overflowed
            schedule.step()
        optimizer.zero_grad(set_to_none=True)

        if processes.first:
            asked, wishes_seen = run.wishes(wishes_seen)
            acts = {wish.get("act") for wish in asked}
            stop_after = min([stop_after, *(int(w.get("step", step)) for w in asked if w.get("act") == "stop_after")])
            wished = [int("save" in acts), int("sample" in acts), int(step >= stop_after)]
        else:
            wished = [0, 0, 0]
        stopping, saving_asked, sampling_asked, stopping_here = map(bool, processes.sums(int(stop.on), *wished))
        stopping_here |= stopping
        at_end = step == config.max_train_steps
        saving = at_end or stopping_here or due(step, checkpoint.every_steps) or saving_asked
        validating = not stopping and bool(validation.every_steps) and (at_end or due(step, validation.every_steps))
        logging = saving or validating or due(step, config.tracking.every_steps) or step == first_step + 1

        if logging or device.type == "cpu":  # reading a number makes a GPU wait, so only now and then
            refuse_bad_loss(processes.gather(int(first_bad)), batches, accumulation, run)
        if logging:
            elapsed = time.monotonic() - logged_at
            log.write(
                "step",
                step=step,
                loss=sum(processes.gather(float(loss_sum))) / world / (step - logged_step),
                learning_rate=rate,
                seconds_per_step=elapsed / (step - logged_step),
            )
            loss_sum.zero_()
            logged_step = step
        scored = None
        if validating or (saving and validation.every_steps and not stopping):
            scored = validate(step)
        if saving:
            save(step, scored)
            saved_step = step
        if (validating or sampling_asked) and not stopping:
            draw(step)
        if logging:
            logged_at = time.monotonic()  # sampling and saving are not the step's time
        if stopping_here:
            raise Cancelled(f"stopped as asked at step {step}; the checkpoint is saved")

    reader.close()
    return f"all {config.max_train_steps} steps done; last checkpoint at step {saved_step}"


def computable(config: TrainConfig, log: EventLog) -> TrainConfig:
    """The config in a precision that this machine computes: training in fp16 needs a GPU."""
    if config.mixed_precision != "fp16" or torch.cuda.is_available():
        return config
    text = "mixed_precision fp16 needs a CUDA device to train on; this machine has none and computes in bf16"
    log.write("message", level="warning", text=text)
    return config.model_copy(update={"mixed_precision": "bf16"})


# --- data -------------------------------------------------------------------------------------------------------------


def hold_out(rows: Sequence[LedgerRow], config: TrainConfig) -> tuple[list[LedgerRow], list[LedgerRow]]:
    """(rows to train on, rows kept for validation): the same choice for the same seed. Copies of a clip go together."""
    usable = [row for row in rows if row.status != "dropped"]
    clips: dict[str, LedgerRow] = {}
    for row in usable:
        clips.setdefault(row.clip.sha256, row)
    chosen = random.Random(f"{config.validation.seed}/holdout").sample(range(len(clips)), config.validation.holdout)
    held = {sha256: row for place, (sha256, row) in enumerate(clips.items()) if place in set(chosen)}
    return [row for row in usable if row.clip.sha256 not in held], list(held.values())


def held_samples(
    dataset: ReadableDataset, batches: Batches, held_rows: Sequence[LedgerRow], config: TrainConfig
) -> list[Sample]:
    """The samples on which the validation loss is measured; at most one for each of its draws."""
    if not config.validation.every_steps:
        return []
    if held_rows:
        first = Batches(dataset, held_rows, config.dataset, config.validation.seed).variants()[0]
    else:
        first = batches.variants()[0]
    return first[: config.validation.loss_draws]


def some_clips(samples: Sequence[Sample], prompts: Sequence[str]) -> Iterator[tuple[str, np.ndarray]]:
    """Caption and frames, (f, h, w, 3) uint8, of a few training clips: at first of such as have a prompt as caption."""
    samples = list(dict.fromkeys(samples))  # repeats tell nothing new
    each = max(1, TRAINING_CLIPS // len(prompts))
    asked = [s for prompt in dict.fromkeys(prompts) for s in [s for s in samples if s.clip.text == prompt][:each]]
    asked = asked[:TRAINING_CLIPS]
    others = [sample for sample in samples if sample not in asked]
    for sample in asked + [others[k] for k in spread(len(others), TRAINING_CLIPS - len(asked))]:
        yield sample.clip.text, read_pixels(sample).permute(0, 2, 3, 1).numpy()


def encoding_report(log: EventLog, stop: StopSwitch) -> Callable[[int, int], None]:
    """Writes how far encoding is, at most twice a second."""
    written = 0.0

    def report(done: int, total: int) -> None:
        nonlocal written
        stop()
        if done == total or time.monotonic() - written > 0.5:
            log.write("phase", phase="encoding", done=done, total=total)
            written = time.monotonic()

    return report


class ReadAhead(Generic[T]):
    """What `read` gives, by number and in order; the next is read in a thread while this one is worked on."""

    def __init__(self, read: Callable[[int], T], first: int) -> None:
        self._read = read
        self._thread = ThreadPoolExecutor(1)
        self._next = self._thread.submit(read, first)

    def take(self, number: int) -> T:
        value = self._next.result()
        self._next = self._thread.submit(self._read, number + 1)
        return value

    def close(self) -> None:
        self._thread.shutdown(cancel_futures=True)


def on_device(batch: dict[str, torch.Tensor], device: torch.device) -> dict[str, torch.Tensor]:
    """The batch on the device, without waiting for it."""
    if device.type != "cuda":
        return batch
    return {name: tensor.pin_memory().to(device, non_blocking=True) for name, tensor in batch.items()}


# --- the step ---------------------------------------------------------------------------------------------------------


def loss_of(prediction: torch.Tensor, example: Example) -> torch.Tensor:
    """Mean squared error in 32 bits, weighted where the example says so."""
    if example.target is None:
        raise ValueError("an example without a target cannot be trained on")
    if example.weight is None:
        return mse_loss(prediction.float(), example.target.float())
    error = (prediction.float() - example.target.float()) ** 2 * example.weight
    return error.mean()


def due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0


def refuse_bad_loss(first_bad: Sequence[int], batches: Batches, accumulation: int, run: RunFolder) -> None:
    """End the run at a loss that is not finite, naming the batch and what is left.

    first_bad: for each process the number of its first such micro-batch, or -1.
    """
    bad = [(number, rank) for rank, number in enumerate(first_bad) if number >= 0]
    if not bad:
        return
    number, rank = min(bad)
    clips = ", ".join(sample.describe() for sample in batches[number * len(first_bad) + rank])
    raise Mendable(
        f"the loss stopped being a number at step {number // accumulation + 1}, on {clips}; {last_good(run)}. Lower "
        "optimizer.learning_rate, set mixed_precision to bf16 or no, or remove the clip"
    )


def refuse_bad_validation(loss: float, step: int, run: RunFolder) -> None:
    """End the run before a checkpoint is saved that gives no numbers."""
    if not math.isfinite(loss):
        raise Mendable(
            f"the validation loss is not a number at step {step}; {last_good(run)}. Lower optimizer.learning_rate or "
            "set mixed_precision to bf16 or no"
        )


def last_good(run: RunFolder) -> str:
    kept = run.checkpoints()
    return f"the last good checkpoint is step {kept[-1].step}" if kept else "no checkpoint was saved yet"


def set_mode(model: VideoModel, *, training: bool) -> None:
    for module in model.denoiser.values():
        module.train(training)


def trainable_sentence(model: VideoModel) -> str:
    trained = sum(p.numel() for p in model.trained_parameters())
    total = sum(p.numel() for module in model.denoiser.values() for p in module.parameters())
    if not trained:
        raise Mendable("no weight would be trained; check method and trainable modules")
    return f"training {trained:,} of {total:,} weights of the denoiser"


# --- validation -------------------------------------------------------------------------------------------------------


@torch.no_grad()
def validation_loss(
    model: VideoModel,
    encoded: Encoded,
    held: Sequence[Sample],
    config: TrainConfig,
    device: torch.device,
) -> float:
    """The mean loss over fixed samples, noise and timesteps: comparable from step to step and between runs."""
    set_mode(model, training=False)
    total = torch.zeros((), device=device)
    for index in range(config.validation.loss_draws):
        batch = on_device(encoded.batch([held[index % len(held)]]), device)
        example = model.example(batch, Draws.seeded(config.validation.seed, "validation", index))
        total += loss_of(model.predict(example), example)
    set_mode(model, training=True)
    return float(total) / config.validation.loss_draws


def draw_samples(
    model: VideoModel,
    config: TrainConfig,
    run: RunFolder,
    log: EventLog,
    step: int,
    stop: StopSwitch,
    measures: Measures,
    images: Sequence[np.ndarray | None],
    start: dict[str, torch.Tensor] | None = None,
) -> None:
    """Each validation prompt with each seed, through the function that a comparison uses. images: for each prompt what
    it begins from, or None. start: an encoded clip to begin from, instead of noise."""
    ends = images_for(config.validation.last_images, config.validation.prompts)
    asked = zip(config.validation.prompts, images, ends, strict=True)
    wanted = [(prompt, image, end, seed) for prompt, image, end in asked for seed in config.validation.seeds]
    height, width = config.drawn_size
    set_mode(model, training=False)
    for index, (prompt, image, end, seed) in enumerate(wanted):
        if stop.on:
            break
        log.write("phase", phase="sampling", done=index, total=len(wanted))
        began = time.monotonic()
        request = SampleRequest(
            prompt=prompt,
            negative_prompt=config.validation.negative_prompt,
            height=height,
            width=width,
            num_frames=config.drawn_frames,
            num_inference_steps=config.validation.num_inference_steps,
            guidance_scale=config.validation.guidance_scale,
            start=start,
            image=image,
            end_image=end,
        )
        file = run.sample_dir(step) / f"{index:03d}.mp4"
        take = f"step-{step:06d}" if step > config.start_step else "base"
        frames = sample_clip(model, request, seed)
        write_clip(file, frames, config.validation.fps, request, seed, take, 1.0)
        log.write(
            "sample",
            step=step,
            path=file.relative_to(run.path).as_posix(),
            prompt=prompt,
            seed=seed,
            take=take,
            strength=1.0,
            row=index,
            seconds=time.monotonic() - began,
        )
        base = run.sample_dir(config.start_step) / file.name
        measures.write(file, base, run.training_motion, step=step, take=take, prompt=prompt, seed=seed, row=index)
    log.write("phase", phase="training", done=step, total=config.max_train_steps)
    set_mode(model, training=True)


def starting_clip(encoded: Encoded, samples: Sequence[Sample], config: TrainConfig) -> dict[str, torch.Tensor]:
    """The first training clip that has the frames and the size of a validation sample, as it was encoded."""
    shape = (config.dataset.num_frames, config.dataset.height, config.dataset.width)
    for sample in samples:
        if sample.shape == shape:
            return encoded.video(sample)
    raise Mendable(f"no clip trains with {shape[0]} frames at {shape[1]} x {shape[2]}, so no sample can begin from one")


def sampled_at(step: int, config: TrainConfig) -> bool:
    """Whether a run that goes on draws samples at this step."""
    every = config.validation.every_steps
    return every is not None and (step == config.max_train_steps or due(step, every))


def lacks_samples(run: RunFolder, step: int, validation: ValidationConfig) -> bool:
    count = len(validation.prompts) * validation.samples_per_prompt
    return any(not (run.sample_dir(step) / f"{index:03d}.mp4").exists() for index in range(count))
