"""DeepSpeed's ZeRO, stages 1 and 2: the model whole in each process, gradients and the optimizer's states in shards.

Not accelerate's way of it, which exists on GPUs only: this one runs, and was tried, on CPUs as well. The optimizer's
state is kept in the format of one process, so that a run can go on without DeepSpeed.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from accelerate.utils import DeepSpeedPlugin

from trainers.families.base import VideoModel
from trainers.layouts import Layout
from trainers.terminal import Mendable


class Zero(Layout):
    """A DeepSpeed engine around the network: it scales, exchanges and clips gradients, and steps."""

    @staticmethod
    def check() -> None:
        """Mendable when what the launcher's configuration file asks for is not to be had here."""
        if importlib.util.find_spec("deepspeed") is None:
            raise Mendable(
                "the launcher's configuration file asks for DeepSpeed, which is missing: pip install deepspeed"
            )
        stage = _asked()["stage"]
        if stage not in (1, 2):
            raise Mendable(f"ZeRO stage {stage} is not supported; set zero_stage to 2, or shard weights with FSDP2")

    def prepare(self, model: VideoModel, optimizer: torch.optim.Optimizer) -> Any:
        import deepspeed
        from accelerate.utils.deepspeed import DeepSpeedOptimizerWrapper

        if len(model.denoiser) > 1:
            raise Mendable("DeepSpeed trains one network, and this model has several; shard weights with FSDP2")
        precision = {"fp16": "float16", "bf16": "bfloat16"}.get(self.config.mixed_precision)
        settings = {
            "train_micro_batch_size_per_gpu": self.config.dataset.batch_size,
            "gradient_accumulation_steps": self.accumulation,
            "gradient_clipping": self.config.optimizer.max_grad_norm or 0.0,
            "zero_optimization": _asked(),
            "zero_allow_untested_optimizer": True,  # the config's, not one of DeepSpeed's own
            "zero_force_ds_cpu_optimizer": False,
            "steps_per_print": 2**31,
            "torch_autocast": {
                "enabled": precision is not None,
                "dtype": precision or "bfloat16",
                "lower_precision_safe_modules": [],  # gradients are exchanged in 32 bits
            },
        }
        ((name, module),) = model.denoiser.items()
        self.parameters = model.trained_parameters()
        # DeepSpeed casts all weights or none; computing in fewer bits is left to autocast.
        self.engine, self.optimizer, _, _ = deepspeed.initialize(
            model=module.float(), optimizer=optimizer, config=settings
        )
        model.denoiser[name] = self.engine
        return DeepSpeedOptimizerWrapper(self.optimizer)

    def micro_batch(self, network: torch.nn.Module, *, last: bool) -> AbstractContextManager[None]:
        self.engine.set_gradient_accumulation_boundary(is_boundary=last)
        return nullcontext()

    def backward(self, loss: torch.Tensor, *, last: bool) -> None:
        self.engine.backward(loss)
        if last:
            self.engine.step()

    def clip(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        """Done by the engine's step."""

    def unwrapped(self, module: torch.nn.Module) -> torch.nn.Module:
        return module.module  # type: ignore[return-value]

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        from deepspeed.utils import safe_get_full_optimizer_state

        base = self.optimizer.optimizer
        states: dict[int, dict[str, Any]] = {}
        for index, parameter in enumerate(self.parameters):
            for name, value in next(iter(base.state.values()), {}).items():
                whole = value.clone() if name == "step" else safe_get_full_optimizer_state(parameter, name)
                states.setdefault(index, {})[name] = whole.cpu() if self.accelerator.is_main_process else None
        (group,) = base.state_dict()["param_groups"]
        return {"state": states, "param_groups": [{**group, "params": list(range(len(self.parameters)))}]}

    def load_optimizer_state(self, optimizer: Any, state: dict[str, Any]) -> None:
        from deepspeed.utils import safe_set_full_optimizer_state

        base = self.optimizer.optimizer
        (group,), (given,) = base.param_groups, state["param_groups"]
        if len(given["params"]) != len(self.parameters):
            raise ValueError("the state is of another number of weights")
        group.update({name: value for name, value in given.items() if name != "params"})
        for partition in group["params"]:
            base.state[partition] = {
                name: value.clone() if name == "step" else torch.zeros_like(partition)
                for name, value in next(iter(state["state"].values()), {}).items()
            }
        self.optimizer._lazy_init_hp_params_optimizer_state()
        for parameter, values in zip(self.parameters, state["state"].values(), strict=bool(state["state"])):
            for name, value in values.items():
                if name != "step":
                    safe_set_full_optimizer_state(parameter, value.to(parameter.device, torch.float32), name)


def _asked() -> dict[str, Any]:
    """DeepSpeed's zero_optimization, as the launcher's configuration file has it."""
    asked: dict[str, Any] = DeepSpeedPlugin().deepspeed_config["zero_optimization"]
    return asked
