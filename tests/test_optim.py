"""Optimizers as the config names them, their settings, and what they go on with."""

from __future__ import annotations

import pytest
import torch

from trainers.checkpoints import read_state
from trainers.config import OPTIMIZER_PACKAGES, OptimizerConfig, missing_package
from trainers.families import parse_config
from trainers.optim import make_optimizer, make_schedule
from trainers.runs import Checkpoint
from trainers.settings import ConfigError
from trainers.terminal import Mendable

NAMES = ("adamw", "adam", "adamw8bit", "adam8bit", "prodigy")


def made(**settings):
    """(weight, its optimizer); skipped where its package is not installed."""
    config = OptimizerConfig(**settings)
    if config.name in OPTIMIZER_PACKAGES:
        pytest.importorskip(OPTIMIZER_PACKAGES[config.name])
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(100, 64))  # what is smaller than 4096 numbers has no 8-bit states
    return weight, make_optimizer(config, [weight])


def descend(weight, optimizer, steps: int) -> float:
    """Squared distance from 3 after some steps."""
    for _ in range(steps):
        optimizer.zero_grad()
        (weight - 3).square().sum().backward()
        optimizer.step()
    return (weight - 3).square().sum().item()


@pytest.mark.parametrize("name", NAMES)
def test_every_optimizer_descends_and_goes_on_bit_for_bit(name, tmp_path):
    settings = {"name": name, "learning_rate": 1.0 if name == "prodigy" else 0.05, "weight_decay": 0.01}
    straight, optimizer = made(**settings)
    before = (straight - 3).square().sum().item()
    descend(straight, optimizer, 4)
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    saved = straight.detach().clone()
    assert descend(straight, optimizer, 4) < before

    resumed, optimizer = made(**settings)
    resumed.data.copy_(saved)
    optimizer.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    descend(resumed, optimizer, 4)
    assert torch.equal(straight, resumed)


def test_adam_decays_through_the_gradient_and_adamw_beside_it():
    """Without any other gradient, AdamW shrinks a weight by its share, and Adam takes a full step towards zero."""
    steps = {}
    for name in ("adam", "adamw"):
        weight, optimizer = made(name=name, learning_rate=0.01, weight_decay=0.1)
        start = weight.detach().clone()
        weight.grad = torch.zeros_like(weight)
        optimizer.step()
        steps[name] = start - weight.detach()
    torch.testing.assert_close(steps["adamw"], start * 0.01 * 0.1, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(steps["adam"], start.sign() * 0.01, rtol=1e-3, atol=1e-6)


def test_eight_bits_take_a_quarter_of_the_memory():
    pytest.importorskip("bitsandbytes")
    held = {}
    for name in ("adamw", "adamw8bit"):
        weight, optimizer = made(name=name)
        descend(weight, optimizer, 1)
        held[name] = sum(v.nbytes for v in optimizer.state[weight].values() if torch.is_tensor(v) and v.numel() > 1000)
    assert held["adamw8bit"] == held["adamw"] / 4


def test_prodigy_gets_its_settings_and_finds_its_step():
    weight, optimizer = made(
        name="prodigy", learning_rate=1, beta1=0.9, beta2=0.95, prodigy_beta3=0.8, prodigy_decouple=False,
        prodigy_use_bias_correction=True, prodigy_safeguard_warmup=True, weight_decay=0.02, epsilon=1e-7,
    )  # fmt: skip
    (group,) = optimizer.param_groups
    assert (group["betas"], group["beta3"], group["decouple"]) == ((0.9, 0.95), 0.8, False)
    assert (group["use_bias_correction"], group["safeguard_warmup"]) == (True, True)
    assert (group["weight_decay"], group["eps"]) == (0.02, 1e-7)
    first = group["d"]
    descend(weight, optimizer, 20)
    assert group["d"] > 100 * first


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    needed = {name: missing_package(OptimizerConfig(name=name)) for name in NAMES}
    assert needed == {
        "adamw": None, "adam": None, "adamw8bit": "bitsandbytes", "adam8bit": "bitsandbytes", "prodigy": "prodigyopt",
    }  # fmt: skip


def run_config(**changes):
    data = {"family": "animatediff", "method": "motion_module", "base_model": "x", "dataset": {"path": "x"}}
    return parse_config({**data, **changes})


def test_states_in_8_bits_are_not_offloaded():
    with pytest.raises(ConfigError, match=r"memory\.offload_optimizer: keeps the optimizer's states in 32 bits"):
        run_config(optimizer={"name": "adamw8bit"}, memory={"offload_optimizer": True})


def test_prodigy_at_the_learning_rate_of_another_is_told(tmp_path):
    from trainers.train import findings

    config = run_config(optimizer={"name": "prodigy"}, dataset={"path": str(tmp_path)})
    (told,) = [finding for finding in findings(config) if finding.where == "optimizer.learning_rate"]
    assert told.level == "warning" and "1 is usual" in told.text


def test_the_states_of_one_optimizer_are_not_for_another(tmp_path):
    torch.save({"step": 3, "optimizer_name": "adam"}, tmp_path / "state.pt")
    config = run_config(optimizer={"name": "prodigy"})
    with pytest.raises(Mendable, match=r"saved with optimizer\.name adam, .* set it to adam"):
        read_state(Checkpoint(tmp_path), config, shared=False)


@pytest.mark.parametrize("name", ["linear", "cosine", "constant_with_warmup", "cosine_with_restarts", "polynomial"])
def test_a_schedule_counts_optimizer_steps_and_may_begin_in_the_middle(name):
    config = OptimizerConfig(learning_rate=1.0, lr_scheduler=name, lr_warmup_steps=4, lr_num_cycles=2, lr_power=2.0)
    rates = []
    _, optimizer = made(learning_rate=1.0)
    schedule = make_schedule(config, optimizer, 20)
    for _ in range(20):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert rates[:5] == pytest.approx([0, 0.25, 0.5, 0.75, 1])
    middle = {
        "linear": 0.5, "cosine": 0.5, "constant_with_warmup": 1, "cosine_with_restarts": 1, "polynomial": 0.25,
    }[name]  # fmt: skip
    assert rates[12] == pytest.approx(middle, abs=1e-5)

    _, optimizer = made(learning_rate=1.0)
    assert make_schedule(config, optimizer, 20, start_step=12).get_last_lr()[0] == pytest.approx(rates[12])
