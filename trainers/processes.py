"""The processes of a run: how they agree, wait for each other, and end together.

torchrun or accelerate launch starts them; a run of one process is the same code with nobody else to ask. Gradients go
through accelerate's process group (NCCL on GPUs). All else goes through a group of its own on the CPU (gloo): agreeing
does not make a GPU wait, a process may work alone for hours (clips to encode, samples to draw), and the end of another
process is noticed at once.
"""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar

import accelerate
import torch
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs, parse_flag_from_env
from torch import distributed

from trainers.config import TrainConfig
from trainers.layouts import Layout
from trainers.sharding import Sharded
from trainers.terminal import Cancelled, Mendable, sentence
from trainers.zero import Zero

T = TypeVar("T")

#: How long processes wait for one that works alone, and for one that is late with its gradients.
ALONE, LATE = timedelta(days=7), timedelta(minutes=30)


class Processes:
    """This process among the others of its run.

    rank: its number, 0 for the first, which alone writes. count: how many there are. layout: how a model lies in them.
    """

    def __init__(self, config: TrainConfig) -> None:
        """Join the others. Mendable when the run cannot be trained in the layout that the launcher asks for."""
        layout = asked_layout(config)
        accelerate.state.AcceleratorState._reset_state()  # a notebook may train twice, each time in its own precision
        with _ended_at_once():
            accelerator = accelerate.Accelerator(
                mixed_precision=config.mixed_precision,
                cpu=not torch.cuda.is_available(),
                kwargs_handlers=[
                    InitProcessGroupKwargs(timeout=LATE),
                    # Buffers (positions, say) never change, and would be sent around before every step.
                    DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True),
                ],
            )
        self.layout = layout(accelerator, config)
        self.accelerator, self.device = accelerator, accelerator.device
        self.rank, self.count = accelerator.process_index, accelerator.num_processes
        self.first = self.rank == 0
        self._group = distributed.new_group(backend="gloo", timeout=ALONE) if self.count > 1 else None

    # --- agreeing ---

    def sums(self, *numbers: int) -> list[int]:
        """Each number summed over the processes."""
        if self._group is None:
            return list(numbers)
        total = torch.tensor(numbers)
        distributed.all_reduce(total, group=self._group)
        return [int(number) for number in total.tolist()]

    def gather(self, value: T) -> list[T]:
        """What each process gives, by rank."""
        if self._group is None:
            return [value]
        values: list[T] = [value] * self.count
        distributed.all_gather_object(values, value, group=self._group)
        return values

    def wait(self) -> None:
        """Until every process is here."""
        if self._group is not None:
            distributed.barrier(group=self._group)

    # --- ending ---

    @contextmanager
    def ending_together(self) -> Iterator[None]:
        """Whatever ends this process ends the others as well, each knowing why."""
        try:
            yield
        except BaseException as error:
            if self.count > 1:
                if _is_loss_of_another(error):
                    raise self._why() from error
                self._tell(error)
            raise
        if self.count > 1:
            self.wait()
            self.accelerator.end_training()

    def _tell(self, error: BaseException) -> None:
        stopped = isinstance(error, (Cancelled, KeyboardInterrupt))
        words = {"stopped": stopped, "reason": sentence(error)}
        with suppress(RuntimeError):  # the process that keeps the notes may be the one that is gone
            _notes().set(f"dailies/end/{self.rank}", json.dumps(words))

    def _why(self) -> Exception:
        """Why another process is gone, as that process said it."""
        for rank in range(self.count):
            with suppress(RuntimeError):
                if rank != self.rank and _notes().check([f"dailies/end/{rank}"]):
                    words = json.loads(_notes().get(f"dailies/end/{rank}"))
                    if words["stopped"]:
                        return Cancelled(words["reason"])
                    return Mendable(f"process {rank} of {self.count} failed: {words['reason']}")
        return Mendable(
            "another process of this run ended without a word (killed, or out of main memory); resume from the last "
            "checkpoint"
        )


def asked_layout(config: TrainConfig) -> type[Layout]:
    """What the launcher's configuration file asks for. Mendable when this run, or this machine, cannot have it."""
    # accelerate launch speaks through the environment; on a CPU the Accelerator itself would hear of neither
    layout: type[Sharded | Zero]
    if parse_flag_from_env("ACCELERATE_USE_FSDP"):
        name, layout = "FSDP", Sharded
    elif parse_flag_from_env("ACCELERATE_USE_DEEPSPEED"):
        name, layout = "DeepSpeed", Zero
    else:
        return Layout
    layout.check()
    if config.optimizer.name not in ("adamw", "adam"):
        raise Mendable(f"optimizer {config.optimizer.name} cannot work in shards; with {name}, choose adamw or adam")
    if config.memory.offload_optimizer:
        raise Mendable(f"memory.offload_optimizer cannot work in shards; with {name}, turn it off")
    if config.mixed_precision == "fp16":
        raise Mendable(f"mixed_precision fp16 is not supported with {name}; set it to bf16 or no")
    return layout


@contextmanager
def _ended_at_once() -> Iterator[None]:
    """SIGTERM ends this process while it waits for others to join: it may be that one of them never will, and nothing
    is lost yet. Later it is the run's own signal to save."""
    if not distributed.is_torchelastic_launched() or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _notes() -> Any:
    """The store through which the processes found each other."""
    return distributed.distributed_c10d._get_default_store()


def _is_loss_of_another(error: BaseException) -> bool:
    """Whether it tells of a connection to another process that broke."""
    if isinstance(error, distributed.DistError):
        return True
    signs = ("gloo", "Gloo", "NCCL", "Connection closed by peer", "Connection reset by peer")
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)
