"""Train one run: python -m trainers.train --config RUN.yaml [--run-dir DIR] [--resume] [--set key.path=value ...]."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from trainers.config import TrainConfig, missing_package
from trainers.data.clips import DatasetError
from trainers.data.facts import Report
from trainers.data.formats import open_dataset
from trainers.data.ledger import ledger, ledger_messages, nothing_to_train, size_hints
from trainers.events import EventLog, Listener, read
from trainers.families import FAMILIES, changed, file_findings, get_family, load_config, parse_config, read_file
from trainers.families.base import Finding
from trainers.runs import RunFolder
from trainers.settings import ConfigError, describe, fields, to_yaml, value_at
from trainers.terminal import (
    EXIT_FAILED,
    Mendable,
    Screen,
    StopSwitch,
    answer,
    carry_out,
    hush_libraries,
    is_main_process,
    run_folder,
    wait_asleep,
)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m trainers.train",
        description="Train one run from a YAML config into a run folder.",
        epilog="\n".join(f"Settings of {f.title}:\n{describe(f.train_config)}" for f in FAMILIES.values()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--config", type=Path, required=True, help="the run: YAML, or a config or command that a family reads"
    )
    parser.add_argument(
        "--run-dir",
        type=Path,
        help="where everything of the run goes; default: the output folder of an upstream config, else runs/NAME-0001",
    )
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint of --run-dir")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting")
    parser.add_argument(
        "--dry-run", action="store_true", help="load nothing: print the effective config and what is found"
    )
    args = parser.parse_args(arguments)
    wait_asleep()
    return answer(lambda: carry(args))


def carry(args: argparse.Namespace) -> int:
    """What the command line asked for; gives the exit code."""
    found = read_file(args.config, "train")
    config = parse_config(changed(found, args.set))
    folder = args.run_dir or (None if found.run_dir is None or found.numbered else Path(found.run_dir).expanduser())
    if args.dry_run:
        return dry_run(config, folder, resume=args.resume, notes=found.notes)
    if args.resume and folder is None:
        raise Mendable("--resume needs --run-dir: the folder of the run to go on with")
    run = run_folder(args.config, args.run_dir, found, resume=args.resume)
    return start(config, run, resume=args.resume, notes=found.notes)


def start(config: TrainConfig, run: RunFolder, *, resume: bool, notes: Sequence[str] = ()) -> int:
    """Begin or go on with a run; gives the exit code. notes: what its log is to say first."""
    obstacle = folder_obstacle(run, resume=resume)
    if obstacle and (resume or is_main_process()):
        raise Mendable(obstacle)
    checkpoint = run.checkpoints()[-1] if resume and run.checkpoints() else None
    if resume and is_finished(run) and checkpoint and checkpoint.step >= config.max_train_steps:
        print(f"{run.path} is finished at step {checkpoint.step}; raise max_train_steps to train on")
        return 0
    if checkpoint and checkpoint.step > config.max_train_steps:
        raise Mendable(
            f"{run.path} is at step {checkpoint.step}, beyond max_train_steps "
            f"{config.max_train_steps}; raise it to go on"
        )
    found = findings(config, measuring_report())
    for finding in found:
        if finding.level == "error":
            raise Mendable(finding.text)

    step = checkpoint.step if checkpoint else config.start_step
    changes_made = changes(run, config) if resume else []
    if is_main_process():
        print(f"run in {run.path}" + (f", going on from step {step}" if checkpoint else ""), flush=True)
    stop = StopSwitch()
    stop.listen()

    def act(log: EventLog) -> str:
        if is_main_process():
            keep_config(config, run)
        for note in notes:
            log.write("message", level="warning", text=note)
        for change in changes_made:
            log.write("message", level="info", text=f"changed since this run began: {change}")
        for finding in found:
            log.write("message", level=finding.level, text=finding.text)
        hush_libraries()
        from trainers.loop import train

        return train(config, run, log, stop, checkpoint)

    started = {"step": step, "max_train_steps": config.max_train_steps, "family": config.family}
    started |= {"method": config.method, "resumed": resume}
    listeners: list[Listener] = [Screen(lambda line: print(line, flush=True))]
    if config.tracking.tracker == "tensorboard" and is_main_process():
        from trainers.tracking import TensorBoard

        listeners.append(TensorBoard(run, step))
    return carry_out(run, started, act, *listeners)


def changes(run: RunFolder, config: TrainConfig) -> list[str]:
    """What is set otherwise than when the run began, such as "adapter.alpha: 8.0, was 16.0"."""
    try:
        before = load_config(run.config)
    except ConfigError:  # of another version, or not there
        return []
    if type(before) is not type(config):
        return [f"family: {config.family}, was {before.family}"]
    values = [(path, value_at(config, path), value_at(before, path)) for path, _ in fields(type(config))]
    return [f"{path}: {now}, was {then}" for path, now, then in values if now != then]


def keep_config(config: TrainConfig, run: RunFolder) -> None:
    """The config of the run, as it goes on now; a full disk leaves the one that was there."""
    text = to_yaml(config)
    if run.config.exists() and run.config.read_text(encoding="utf-8") == text:
        return
    writing = run.path / ".config.yaml"
    writing.write_text(text, encoding="utf-8")
    writing.replace(run.config)


def folder_obstacle(run: RunFolder, *, resume: bool) -> str | None:
    """Why a run cannot begin, or go on, in a folder."""
    if run.exists and not resume:
        return f"{run.path} already holds a run; add --resume to go on with it, or name another --run-dir"
    if resume and not run.exists and not run.config.exists():  # killed before its first word, it begins anew
        return f"there is no run to resume in {run.path}; leave out --resume to start one"
    return None


def is_finished(run: RunFolder) -> bool:
    """Whether the last thing that the run said is that it finished."""
    events, _ = read(run.events)
    return bool(events) and events[-1]["type"] == "run_finished" and events[-1]["status"] == "finished"


def findings(config: TrainConfig, report: Report | None = None) -> list[Finding]:
    """Everything that can be said of a config without loading a model. report: told of videos that are measured."""
    family = get_family(config.family)
    found = file_findings(config)
    package = missing_package(config.optimizer)
    if package:
        found.append(
            Finding("error", f"optimizer {config.optimizer.name} needs the package {package}: pip install {package}")
        )
    if config.optimizer.name == "prodigy" and config.optimizer.learning_rate <= 0.1:
        rate = config.optimizer.learning_rate
        text = f"prodigy multiplies the step that it finds by learning_rate, which is {rate:g}; 1 is usual"
        found.append(Finding("warning", text, "optimizer.learning_rate"))
    try:
        dataset = open_dataset(config.dataset, report=report)
        rows = ledger(dataset, config, family)
    except DatasetError as error:
        return [*found, Finding("error", str(error), error.where)]
    found += [Finding(level, text) for level, text in ledger_messages(rows, config.dataset.repeats)]
    problem = nothing_to_train(dataset, rows, config)
    if problem:
        return [*found, Finding("error", problem[1], problem[0])]
    return [*found, *size_hints(rows, config.dataset), *family.advice(config, rows)]


def measuring_report() -> Report:
    """Prints how many videos have been looked at, every five seconds: so many can be named that it takes its time."""
    told = time.monotonic()

    def report(done: int, total: int) -> None:
        nonlocal told
        if time.monotonic() - told > 5 and is_main_process():
            print(f"looking at the videos: {done} of {total}", flush=True)
            told = time.monotonic()

    return report


def dry_run(config: TrainConfig, run_dir: Path | None, *, resume: bool, notes: Sequence[str] = ()) -> int:
    """Print the effective config, the notes on it, then the findings; 0 if the run would start."""
    print(to_yaml(config))
    for note in notes:
        print(f"# note: {note}")
    found = findings(config)
    obstacle = folder_obstacle(RunFolder(run_dir), resume=resume) if run_dir else None
    if obstacle:
        found.append(Finding("error", obstacle))
    for finding in found:
        print(f"# {finding.level}: {finding.text}")
    stopped = any(finding.level == "error" for finding in found)
    print("# this run would not start" if stopped else "# this run would start")
    return EXIT_FAILED if stopped else 0


if __name__ == "__main__":
    sys.exit(main())
