"""Activations computed again, and an optimizer in main memory: less is kept, and nothing else changes."""

from __future__ import annotations

import shutil
from collections import Counter
from itertools import pairwise

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch.nn.functional import gelu, scaled_dot_product_attention
from torch.utils._python_dispatch import TorchDispatchMode

from trainers.config import OptimizerConfig
from trainers.memory import OffloadedOptimizer, checkpoint_blocks
from trainers.optim import make_optimizer

POLICIES = ("none", "full", "sac")


class Block(torch.nn.Module):
    """Attention and a wide layer, as in any of the transformers that are trained here."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.qkv, self.out = torch.nn.Linear(width, 3 * width), torch.nn.Linear(width, width)
        self.up, self.down = torch.nn.Linear(width, 4 * width), torch.nn.Linear(4 * width, width)
        self.dropout = torch.nn.Dropout(dropout)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        heads = self.qkv(tokens).unflatten(-1, (3, 4, -1)).permute(2, 0, 3, 1, 4)  # (3, b, heads, tokens, width)
        attended = scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
        tokens = tokens + self.dropout(self.out(attended))
        return tokens + self.down(gelu(self.up(tokens)))


class Calls(TorchDispatchMode):
    """Counts the operations that are really computed, forward and backward."""

    def __init__(self) -> None:
        super().__init__()
        self.counted: Counter[str] = Counter()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.counted[operation.name()] += 1
        return operation(*args, **(kwargs or {}))

    def attention(self) -> int:
        forward = [n for name, n in self.counted.items() if "scaled_dot_product" in name and "backward" not in name]
        return sum(forward)

    def linear(self) -> int:
        return self.counted["aten::addmm"]


def computed(policy: str, dropout: float = 0.0, keep_random_state: bool = False):
    """(gradients, calls, numbers kept for the backward pass) of three blocks."""
    torch.manual_seed(0)
    blocks = torch.nn.Sequential(*[Block(32, dropout) for _ in range(3)])
    tokens = torch.randn(2, 50, 32)
    checkpoint_blocks(blocks, policy, keep_random_state)
    kept = []
    with Calls() as calls:
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
            loss = blocks(tokens).square().mean()
        loss.backward()
    return [parameter.grad for parameter in blocks.parameters()], calls, sum(kept)


@pytest.mark.parametrize("policy", POLICIES[1:])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_gradients_are_the_same_bit_for_bit(policy, dropout):
    plain, again = computed("none", dropout)[0], computed(policy, dropout, keep_random_state=dropout > 0)[0]
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))


def test_dropout_needs_its_random_state():
    plain, again = computed("none", 0.3)[0], computed("full", 0.3, keep_random_state=False)[0]
    assert not all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))


def test_sac_computes_all_but_attention_again_and_keeps_little():
    calls = {policy: computed(policy)[1] for policy in POLICIES}
    assert {policy: c.attention() for policy, c in calls.items()} == {"none": 3, "full": 6, "sac": 3}
    assert calls["none"].linear() < calls["sac"].linear() == calls["full"].linear()
    kept = {policy: computed(policy)[2] for policy in POLICIES}
    assert kept["full"] < 0.1 * kept["none"]


def test_without_gradients_nothing_is_kept():
    blocks = torch.nn.Sequential(Block(32, 0.0))
    checkpoint_blocks(blocks, "sac", keep_random_state=False)
    with torch.no_grad(), Calls() as calls:
        assert not blocks(torch.randn(1, 5, 32)).requires_grad
    assert calls.attention() == 1


# --- the optimizer ----------------------------------------------------------------------------------------------------


def weights(dtype: torch.dtype = torch.float32) -> list[torch.nn.Parameter]:
    torch.manual_seed(1)
    return [torch.nn.Parameter(torch.randn(shape).to(dtype)) for shape in [(40, 30), (30,), (7,)]]


def pull(parameters, optimizer, steps: int, first: int = 0, schedule=None) -> None:
    """Steps with gradients that depend on the weights and on the step; the last weight gets none."""
    for step in range(first, first + steps):
        optimizer.zero_grad()
        loss = sum((p.float() * (step + 1)).sin().sum() for p in parameters[:-1])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if schedule is not None:
            schedule.step()


@pytest.mark.parametrize("name", ["adamw", "adam", "prodigy"])
def test_an_offloaded_optimizer_makes_the_same_steps(name):
    if name == "prodigy":
        pytest.importorskip("prodigyopt")
    config = OptimizerConfig(name=name, learning_rate=0.05 if name != "prodigy" else 1.0, weight_decay=0.1)
    ordinary, offloaded = weights(), weights()
    for parameters, offload in ((ordinary, False), (offloaded, True)):
        optimizer = make_optimizer(config, parameters, offload)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
        pull(parameters, optimizer, 6, schedule=schedule)
    torch.testing.assert_close(ordinary, offloaded, rtol=1e-5, atol=1e-6)
    assert not torch.equal(ordinary[0], weights()[0]) and torch.equal(ordinary[-1], weights()[-1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_offloaded_optimizer_goes_on_bit_for_bit(dtype, tmp_path):
    config = OptimizerConfig(learning_rate=0.05)
    straight = weights(dtype)
    optimizer = make_optimizer(config, straight, offload=True)
    pull(straight, optimizer, 3)
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    saved = [parameter.detach().clone() for parameter in straight]
    pull(straight, optimizer, 3, first=3)

    resumed = weights(dtype)
    for parameter, value in zip(resumed, saved, strict=True):
        parameter.data.copy_(value)
    optimizer = make_optimizer(config, resumed, offload=True)
    optimizer.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    pull(resumed, optimizer, 3, first=3)
    assert all(torch.equal(a, b) for a, b in zip(straight, resumed, strict=True))


def test_weights_in_fewer_bits_follow_their_32_bit_copies():
    """A step far below what bfloat16 can tell apart still counts."""
    parameter = torch.nn.Parameter(torch.ones(100, dtype=torch.bfloat16))
    optimizer = make_optimizer(OptimizerConfig(learning_rate=1e-4, weight_decay=0), [parameter], offload=True)
    seen = []
    for _ in range(100):
        parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        seen.append(parameter[0].item())
    assert seen[0] == 1 and seen[-1] == pytest.approx(0.99, abs=0.003)
    assert all(before >= after for before, after in pairwise(seen))


def test_a_run_may_go_on_with_or_without_offloading():
    config = OptimizerConfig(learning_rate=0.05)
    for first, second in ((False, True), (True, False)):
        parameters, straight = weights(), weights()
        before = make_optimizer(config, parameters, first)
        pull(parameters, before, 3)
        after = make_optimizer(config, parameters, second)
        after.load_state_dict(before.state_dict())
        pull(parameters, after, 3, first=3)
        pull(straight, make_optimizer(config, straight), 6)
        torch.testing.assert_close(parameters, straight, rtol=1e-5, atol=1e-6)


def test_the_scaler_of_fp16_unscales_and_skips_steps():
    parameters = weights()
    optimizer = make_optimizer(OptimizerConfig(learning_rate=0.05), parameters, offload=True)
    assert isinstance(optimizer, OffloadedOptimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    plain = weights()
    ordinary = make_optimizer(OptimizerConfig(learning_rate=0.05), plain)

    def losses(of):
        return sum(parameter.square().sum() for parameter in of)

    scaler.scale(losses(parameters)).backward()
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()
    losses(plain).backward()
    ordinary.step()
    torch.testing.assert_close(parameters, plain, rtol=1e-5, atol=1e-6)

    before = [parameter.detach().clone() for parameter in parameters]
    optimizer.zero_grad()
    scaler.scale(losses(parameters)).backward()
    parameters[0].grad[0, 0] = float("inf")
    scaler.step(optimizer)
    scaler.update()
    assert all(torch.equal(a, b) for a, b in zip(parameters, before, strict=True)), "a step that overflowed is skipped"
    assert scaler.get_scale() < 1024


def test_a_run_with_its_optimizer_in_main_memory_goes_on_bit_for_bit(tiny_base, tiny_dataset, tmp_path):
    from trainers.runs import RunFolder
    from trainers.train import main

    config = {
        "family": "animatediff",
        "method": "motion_module",
        "base_model": str(tiny_base),
        "motion_adapter": str(tiny_base / "motion_adapter"),
        "max_train_steps": 4,
        "mixed_precision": "no",
        "dataset": {"path": str(tiny_dataset), "num_frames": 4, "height": 64, "width": 64},
        "validation": {"every_steps": None},
        "checkpoint": {"every_steps": 2},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    offload = ("--set", "memory.offload_optimizer=true", "--set", f"dataset.cache_dir={tmp_path / 'cache'}")

    def train(run: str, *more: str) -> dict[str, torch.Tensor]:
        assert main(["--config", str(tmp_path / "run.yaml"), "--run-dir", str(tmp_path / run), *more]) == 0
        (file,) = RunFolder(tmp_path / run).checkpoints()[-1].path.glob("*.safetensors")
        return load_file(file)

    plain, straight = train("plain", *offload[2:]), train("straight", *offload)
    shutil.copytree(tmp_path / "straight", tmp_path / "resumed")
    shutil.rmtree(tmp_path / "resumed" / "checkpoints" / "step-000004")
    resumed = train("resumed", "--resume", *offload)
    for name, weight in straight.items():
        assert torch.equal(weight, resumed[name]), name
        torch.testing.assert_close(weight, plain[name], rtol=1e-4, atol=1e-5, msg=name)
