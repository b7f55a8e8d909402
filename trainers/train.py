"""Train one run: python -m trainers.train --config RUN.yaml [--run-dir DIR] [--resume] [--set key.path=value ...]."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from trainers.config import ConfigError, TrainConfig, describe, fields, missing_package, to_yaml, value_at
from trainers.data.clips import Dataset, DatasetError, ledger, ledger_summary, nothing_to_train
from trainers.events import EventLog, Listener, read
from trainers.families import FAMILIES, get_family, load_config
from trainers.families.base import Finding
from trainers.runs import RunFolder
from trainers.terminal import (
    EXIT_FAILED,
    Mendable,
    Screen,
    StopSwitch,
    answer,
    carry_out,
    hush_libraries,
    is_main_process,
    new_run_folder,
    wait_asleep,
)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m trainers.train",
        description="Train one run from a YAML config into a run folder.",
        epilog="\n".join(f"Settings of {f.title}:\n{describe(f.train_config)}" for f in FAMILIES.values()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", type=Path, required=True, help="the run as YAML")
    parser.add_argument("--run-dir", type=Path, help="where everything of the run goes; default runs/NAME-0001, ...")
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
    config = load_config(args.config, args.set)
    if args.dry_run:
        return dry_run(config, args.run_dir, resume=args.resume)
    if args.resume and args.run_dir is None:
        raise Mendable("--resume needs --run-dir: the folder of the run to go on with")
    run = RunFolder(args.run_dir) if args.run_dir else new_run_folder(args.config)
    return start(config, run, resume=args.resume)


def start(config: TrainConfig, run: RunFolder, *, resume: bool) -> int:
    """Begin or go on with a run; gives the exit code."""
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
    for finding in findings(config):
        if finding.level == "error":
            raise Mendable(finding.text)

    step = checkpoint.step if checkpoint else config.start_step
    changed = changes(run, config) if resume else []
    if is_main_process():
        print(f"run in {run.path}" + (f", going on from step {step}" if checkpoint else ""), flush=True)
    stop = StopSwitch()
    stop.listen()

    def act(log: EventLog) -> str:
        if is_main_process():
            keep_config(config, run)
        for change in changed:
            log.write("message", level="info", text=f"changed since this run began: {change}")
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


def findings(config: TrainConfig) -> list[Finding]:
    """Everything that can be said of a config without loading a model."""
    family = get_family(config.family)
    found = list(family.findings(config))
    package = missing_package(config.optimizer)
    if package:
        found.append(
            Finding("error", f"optimizer {config.optimizer.name} needs the package {package}: pip install {package}")
        )
    try:
        dataset = Dataset.open(Path(config.dataset.path).expanduser())
        rows = ledger(dataset, config, family)
    except DatasetError as error:
        return [*found, Finding("error", str(error), "dataset.path")]
    found += [Finding("warning" if row.status == "dropped" else "info", row.reason) for row in rows if row.reason]
    problem = nothing_to_train(dataset, rows, config)
    if problem:
        found.append(Finding("error", problem[1], problem[0]))
    if rows:
        found.append(Finding("info", f"clips: {ledger_summary(rows)}"))
    return found


def dry_run(config: TrainConfig, run_dir: Path | None, *, resume: bool) -> int:
    """Print the effective config, then the findings; 0 if the run would start."""
    print(to_yaml(config))
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
