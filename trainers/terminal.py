"""What the doors have in common: how a run looks in a terminal, how it stops, and how it ends."""

from __future__ import annotations

import errno
import io
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from tqdm import tqdm

from trainers.errors import named
from trainers.events import EventLog, Listener
from trainers.foreign import Foreign
from trainers.runs import RunFolder
from trainers.settings import ConfigError

EXIT_FAILED, EXIT_BAD_CONFIG = 1, 2


class Mendable(Exception):
    """A problem that the person can mend: told in one sentence, without a traceback."""


class Cancelled(Exception):
    """Somebody asked the run to stop."""


class StopSwitch:
    """Set by SIGTERM or SIGINT; a run looks at it between acts. A second SIGINT interrupts at once."""

    def __init__(self) -> None:
        self.on = False

    def listen(self) -> None:
        def turn_on(number: int, frame: object) -> None:
            if self.on and number == signal.SIGINT:
                raise KeyboardInterrupt
            self.on = True

        signal.signal(signal.SIGTERM, turn_on)
        signal.signal(signal.SIGINT, turn_on)

    def __call__(self) -> None:
        """Raise Cancelled if the switch is on."""
        if self.on:
            raise Cancelled("stopped as asked")


class Screen:
    """Shows events: a tqdm bar where a terminal is attached, plain lines otherwise (a log file)."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._bar: tqdm[Any] | None = None
        self._terminal = sys.stderr.isatty()

    def __call__(self, event: dict[str, Any]) -> None:
        kind = event["type"]
        if kind == "phase":
            self._progress(event["phase"], event["done"], event["total"])
        elif kind == "step":
            loss, rate = event["loss"], event["learning_rate"]
            if self._terminal and self._bar is not None:
                self._bar.set_postfix(loss=_number(loss), refresh=False)
                self._progress("training", event["step"], int(self._bar.total or 0))
            else:
                seconds = event["seconds_per_step"]
                self._line(f"step {event['step']}: loss {_number(loss)}, lr {rate:.2e}, {seconds:.3f} s/step")
        elif kind == "validation":
            self._line(f"step {event['step']}: validation loss {_number(event['validation_loss'])}")
        elif kind == "sample":
            self._line(f"sample {event['path']}: {event['take']}, seed {event['seed']}, {event['prompt']!r}")
        elif kind == "checkpoint":
            self._line(f"saved {event['path']}" + (" (best so far)" if event["best"] else ""))
        elif kind == "message":
            self._line(("" if event["level"] == "info" else f"{event['level']}: ") + event["text"])
        elif kind == "run_finished":
            self.close()
            self._line(f"{event['status']}: {event['reason']}")

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _progress(self, phase: str, done: int, total: int) -> None:
        if not self._terminal:
            self._line(f"{phase} {done} of {total}" if total > 1 else phase)
            return
        if self._bar is None or self._bar.desc != phase:
            self.close()
            self._bar = tqdm(total=total, desc=phase, initial=done)
        self._bar.update(done - self._bar.n)

    def _line(self, text: str) -> None:
        if self._bar is not None:
            self._bar.clear()
        self._write(text)


def _number(value: float | None) -> str:
    return "not a number" if value is None else f"{value:.5f}"


def wait_asleep() -> None:
    """Let idle OpenMP threads sleep instead of spin; to be called before torch is imported.

    Spinning threads and another busy process (a browser that plays clips) stop each other on few cores: a step of the
    demo took 3.6 s instead of 0.16 s on two.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def hush_libraries() -> None:
    """Keep loading bars of libraries, and xformers' words on machines it was not built for, out of the log."""
    logging.getLogger("xformers").setLevel(logging.ERROR)
    import diffusers
    import transformers

    transformers.utils.logging.disable_progress_bar()
    diffusers.utils.logging.disable_progress_bar()


def answer(act: Callable[[], int]) -> int:
    """What a door was asked to do, as its exit code. What a person can mend ends in a sentence on stderr."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # an emoji in a prompt is no reason to end on an old terminal
    try:
        return act()
    except ConfigError as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_BAD_CONFIG
    except OSError as error:  # a folder that cannot be made or written, say
        sys.stderr.write(f"{named(error)}\n")
    except Exception as error:
        if not mendable(error):
            raise
        sys.stderr.write(f"{sentence(error)}\n")
    return EXIT_FAILED


def new_run_folder(config: Path, parent: Path = Path("runs")) -> RunFolder:
    """RUNS/NAME-0001 and so on: the first that is free."""
    number = 1
    while (parent / f"{config.stem}-{number:04d}").exists():
        number += 1
    return RunFolder(parent / f"{config.stem}-{number:04d}")


def run_folder(config: Path, asked: Path | None, found: Foreign, *, resume: bool = False) -> RunFolder:
    """Where a run goes: into the folder that was asked for; into the one that an upstream config names, as upstream
    would; else into a new one.

    Mendable when that is a folder of an upstream run: its config.yaml is nobody's to overwrite.
    """
    if asked is not None:
        return RunFolder(asked)
    if found.run_dir is None:
        return new_run_folder(config)
    place = Path(found.run_dir).expanduser()
    if found.numbered:
        return new_run_folder(config, place)
    folder = RunFolder(place)
    if folder.config.exists() and not folder.exists and not resume:
        raise Mendable(f"{folder.config} is there already, and of another trainer; name a --run-dir for this run")
    return folder


def carry_out(run: RunFolder, started: dict[str, Any], act: Callable[[EventLog], str], *listeners: Listener) -> int:
    """Do `act` as a run of its own: locked, logged from `run_started` to `run_finished`. Gives the exit code.

    Of a distributed run only the first process locks and logs.
    """
    if not is_main_process():
        return _carry_out(EventLog(None), started, act)
    run.path.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(run.lock, timeout=0):
            return _carry_out(EventLog(run.events, listeners), started, act)
    except Timeout:
        raise Mendable(f"another process is working in {run.path}; wait for it or stop it") from None


def is_main_process() -> bool:
    """Whether this is the first, or the only, process of a run (torchrun and accelerate launch number them)."""
    return os.environ.get("RANK", "0") == "0"


def _carry_out(log: EventLog, started: dict[str, Any], act: Callable[[EventLog], str]) -> int:
    """One of the two doors where every exception is caught: what a person can mend ends in a sentence, the rest in a
    traceback in the log, and both in `run_finished`."""
    code = EXIT_FAILED
    try:
        log.write("run_started", **started, pid=os.getpid())
        status, reason, code = "finished", act(log), 0
    except Cancelled as cancelled:
        status, reason, code = "cancelled", str(cancelled), 0
    except KeyboardInterrupt:
        status, reason = "cancelled", "interrupted at once; nothing was saved after the last checkpoint"
    except Exception as error:  # noqa: BLE001 - the end of a trainer's main
        status, reason = "failed", sentence(error)
        if not mendable(error):
            traceback.print_exc()
    with suppress(OSError):  # the disk may be what failed
        log.write("run_finished", status=status, reason=reason)
    log.close()
    return code


def mendable(error: BaseException) -> bool:
    """Whether the error's own text says what a person can do."""
    from trainers.data.clips import DatasetError
    from trainers.data.video import VideoError
    from trainers.families.base import ModelError

    known = (Mendable, ConfigError, DatasetError, VideoError, ModelError)
    return isinstance(error, known) or _out_of_memory(error) or _disk_full(error)


def sentence(error: BaseException) -> str:
    """An exception in one sentence."""
    if _out_of_memory(error):
        return (
            "the device has not enough memory: set memory.gradient_checkpointing to full, or lower dataset.batch_size, "
            "dataset.num_frames, or the size"
        )
    if isinstance(error, OSError) and _disk_full(error):
        return f"no space is left on the disk, to write {error.filename or 'a file of the run'}; make room and resume"
    if _disk_full(error):
        return "no space is left on the disk to write encoded clips or weights; make room and resume"
    if mendable(error):
        return str(error)
    return named(error) if isinstance(error, OSError) else f"{type(error).__name__}: {error}"


def _disk_full(error: BaseException) -> bool:
    """Whatever library says it: safetensors has an error of its own."""
    return (isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)) or (
        type(error).__name__ == "SafetensorError" and "No space left on device" in str(error)
    )


def _out_of_memory(error: BaseException) -> bool:
    return type(error).__name__ == "OutOfMemoryError"
