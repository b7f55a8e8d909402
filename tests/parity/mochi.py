"""Mochi against vectors of Genmo's own classes and trainer. What is compared is always the product's own answer: it
reads the weights from Genmo's files, and the LoRA from Genmo's or diffusers'."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_mochi import FourierFeatures
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from safetensors.torch import save_file

from examples import tiny
from tests.parity import mochi_data
from tests.parity.vectors import Case, Report, Tensors, Vectors
from trainers import lora
from trainers.config import OptimizerConfig
from trainers.families.base import Example, ExportRequest
from trainers.families.mochi import names
from trainers.families.mochi.attention import trimmed
from trainers.families.mochi.checkpoint import read_take
from trainers.families.mochi.config import MochiSampleConfig, MochiTrainConfig
from trainers.families.mochi.export import export
from trainers.families.mochi.model import Mochi
from trainers.families.mochi.schedule import linear_quadratic
from trainers.families.writing import merged
from trainers.loop import due, loss_of
from trainers.noise import Draws
from trainers.optim import make_optimizer, make_schedule

OUTPUT = 1e-4
LOSS = 1e-4  # relative
GRADIENT = 1e-5
TRAJECTORY = 1e-4
EXACT = 1e-12

FACTS, WEIGHTS, INPUTS = "dit.json", "dit_genmo.safetensors", "dit_io.safetensors"
LORA, LORA_DIFFUSERS = "model_200.lora.safetensors", "lora_diffusers.safetensors"
APART, APART_GENMO = "lora_diffusers_independent.safetensors", "lora_genmo_from_independent.safetensors"
LOSSES, STEPS, LATENTS, SCHEDULES = (
    "loss_io.safetensors",
    "trajectory.safetensors",
    "latents.safetensors",
    "schedule.json",
)
#: Facts that say how the vectors were made, and what was measured on the machine that made them.
PROVENANCE = ("config", "seed", "diffusers_version", "torch", "parity")
#: The product's word for the normalisation of latents -> the vectors' words for its loss.
CONVENTIONS = {
    "genmo": "loss_genmo_current",
    "none": "loss_genmo_before_2025_01_08_and_finetrainers",
    "consistent": "loss_consistent_normalised",
}


def check(vectors: Vectors, report: Report) -> None:
    if FACTS in vectors:
        with report.case(FACTS, vectors.json(FACTS)) as facts:
            Network(vectors, facts, report).check()
    if LATENTS in vectors:
        with report.check(LATENTS):
            check_latents(vectors.tensors(LATENTS), vectors.made("latents"), report)
    if SCHEDULES in vectors:
        with report.case(SCHEDULES, vectors.json(SCHEDULES)) as facts:
            check_schedules(facts, report)
    mochi_data.check(vectors, report)


class Network:
    """What is checked with the vectors' transformer, which lies in a folder of Genmo's."""

    def __init__(self, vectors: Vectors, facts: Case, report: Report) -> None:
        self.vectors, self.facts, self.report = vectors, facts, report
        self.base = vectors.made("base")
        tiny.write("mochi-genmo", self.base)
        weights = {key: value.float() for key, value in vectors.tensors(WEIGHTS).take_all().items()}
        save_file(weights, self.base / "dit.safetensors")
        self.inputs = vectors.tensors(INPUTS)

    def check(self) -> None:
        for name in PROVENANCE:
            self.facts.get(name)
        self.check_weights()
        plain = self.sampler()
        for facts in self.facts["cases"]:
            with self.report.case(f"case{facts['case']}", facts) as case:
                self.check_output(case, plain)
        self.check_batch(plain)
        self.check_adapters(plain)
        with self.report.check("losses"):
            self.check_losses()
        with self.report.case("trajectory", self.facts["trajectory"]) as case:
            self.check_trajectory(case)

    def sampler(self, *takes: Path) -> Mochi:
        settings = {"base_model": str(self.base), "prompts": ["-"], "mixed_precision": "no"}
        model = Mochi(MochiSampleConfig(**settings), "sample")
        model.load([(path, 1.0) for path in takes])
        return model

    def trainer(self, kwargs: Mapping[str, Any], space: str, **optimizer: Any) -> Mochi:
        settings = {
            "base_model": str(self.base),
            "method": "lora",
            "mixed_precision": "no",
            "latent_normalisation": space,
            "dataset": {"path": "-", "caption_dropout": 0.5},
            "adapter": {
                "rank": kwargs["qkv_proj_lora_rank"],
                "alpha": kwargs["qkv_proj_lora_alpha"],
                "out_rank": kwargs["out_proj_lora_rank"],
                "out_alpha": kwargs["out_proj_lora_alpha"],
            },
            "optimizer": {"lr_warmup_steps": 0, **optimizer},
        }
        return Mochi(MochiTrainConfig(**settings), "train")

    # --- weights and outputs ---

    def check_weights(self) -> None:
        take = read_take(self.base / "dit.safetensors")
        expected = dict(self.facts["diffusers_config"])
        expected.pop("max_sequence_length", None)  # no weight has that size, and nothing is computed with it
        found = {key: take.config[key] for key in expected}
        self.report.equal("settings", found, expected)
        fingerprints(take.state, self.facts["diffusers_weights_fingerprint"], "weights", self.report)
        adapter = read_take(self.vectors.file(LORA)).lora
        state = merged(take.state, adapter, "the LoRA", "the base")
        fingerprints(state, self.facts["merged_weights_fingerprint_diffusers"], "merged", self.report)
        genmo = names.to_genmo(state, names.transformer_rules(state), "merged")
        fingerprints(genmo, self.facts["merged_weights_fingerprint_genmo"], "merged, Genmo's names", self.report)

    def check_output(self, case: Case, model: Mochi) -> None:
        name = case.name
        sigma, mask = self.inputs.take(f"{name}.sigma"), self.inputs.take(f"{name}.y_mask")
        case["case"], case["genmo_t_embedder_input"], case["max_abs_diff_genmo_vs_diffusers"]
        found = self.output(model, name, name)
        expected = self.inputs.take(f"{name}.out")
        self.report.close(f"{name} output", found, expected, OUTPUT)
        self.report.measured(f"{name} sigma", abs(float(sigma) - case["sigma"]), 1e-6)
        timestep = float(1000 * (1 - sigma))
        self.report.measured(f"{name} timestep", abs(timestep - case["diffusers_timestep"]), 1e-3)
        self.report.equal(f"{name} tokens", int(mask.sum()), case["text_tokens"])
        self.report.measured(f"{name} norm", abs(float(found.norm()) / case["out_l2"] - 1), LOSS)

    def output(self, model: Mochi, name: str, sigma: str) -> torch.Tensor:
        """What the network gives for one case's video and text at the noise level of another."""
        embeds, mask = trimmed(self.inputs.take(f"{name}.y_feat"), self.inputs.take(f"{name}.y_mask"))
        at = 1000 * (1 - self.inputs.take(f"{sigma}.sigma"))
        conditions = {"prompt_embeds": embeds, "prompt_attention_mask": mask}
        with torch.no_grad():
            return model.predict(Example(self.inputs.take(f"{name}.x"), at, None, conditions=conditions))

    def check_batch(self, model: Mochi) -> None:
        """All cases at once, whose texts differ in length."""
        cases = sorted({key.partition(".")[0] for key in self.inputs})

        def together(name: str) -> torch.Tensor:
            return torch.cat([self.inputs.take(f"{case}.{name}") for case in cases])

        embeds, mask = trimmed(together("y_feat"), together("y_mask"))
        conditions = {"prompt_embeds": embeds, "prompt_attention_mask": mask}
        example = Example(together("x"), 1000 * (1 - together("sigma")), None, conditions=conditions)
        with torch.no_grad():
            self.report.close("all cases as a batch", model.predict(example), together("out"), OUTPUT)

    # --- LoRAs ---

    def check_adapters(self, plain: Mochi) -> None:
        made = self.vectors.made("adapters")
        genmo, diffusers = self.vectors.file(LORA), self.vectors.file(LORA_DIFFUSERS)
        apart, fused = self.vectors.file(APART), self.vectors.file(APART_GENMO)
        kwargs, scaling = self.facts["lora_kwargs"], self.facts["lora_scaling"]
        for kind, layer in (("qkv", "to_q"), ("out", "to_out.0")):
            path = f"transformer_blocks.0.attn1.{layer}"
            found = read_take(genmo).lora[path]
            self.report.equal(f"{kind} scale", found.alpha / found.rank, scaling[kind])
        self.report.equal("kwargs", json.loads(header(genmo)["kwargs"]), kwargs)

        self.exported(genmo, "diffusers-lora", made / "a.safetensors", LORA_DIFFUSERS)
        self.exported(apart, "genmo-lora", made / "b.lora.safetensors", APART_GENMO)
        export(ExportRequest(made / "a.safetensors", "genmo-lora", made / "c.lora.safetensors"))
        export(ExportRequest(fused, "diffusers-lora", made / "d.safetensors"))
        with self.report.case("LoRA", self.facts["lora_output"]) as case:
            case["input"]
            with_lora = self.output(self.sampler(genmo), "case0", "case1")
            base = self.output(plain, "case0", "case1")
            self.check_numbers(case, with_lora)
            self.report.measured("LoRA mean", abs(float(with_lora.mean()) - case["mean"]), OUTPUT)
            self.report.measured("LoRA base norm", abs(float(base.norm()) / case["base_l2"] - 1), LOSS)
            for name, file in (("diffusers' form", diffusers), ("written and read again", made / "c.lora.safetensors")):
                found_output = self.output(self.sampler(file), "case0", "case1")
                self.report.close(f"LoRA in {name}", found_output, with_lora, OUTPUT)
        with self.report.case("apart", self.facts["independent_output"]) as case:
            self.report.equal("apart kwargs", json.loads(header(made / "b.lora.safetensors")["kwargs"]),
                              case["lora_kwargs"])  # fmt: skip
            reference = self.output(self.sampler(apart), "case0", "case1")
            self.check_numbers(case, reference)
            for name, file in (("fused", fused), ("fused by us", made / "b.lora.safetensors"),
                               ("fused and apart again", made / "d.safetensors")):  # fmt: skip
                found_output = self.output(self.sampler(file), "case0", "case1")
                self.report.close(f"apart, {name}", found_output, reference, OUTPUT)

    def exported(self, source: Path, format: str, out: Path, expected: str) -> None:
        """A LoRA that the product writes, tensor by tensor against the vectors'."""
        export(ExportRequest(source, format, out))
        close(
            f"{format} of {source.name}",
            Tensors.read(out),
            self.vectors.tensors(expected).take_all(),
            1e-6,
            self.report,
        )

    def check_numbers(self, case: Case, output: torch.Tensor) -> None:
        self.report.measured(f"{case.name} norm", abs(float(output.norm()) / case["l2"] - 1), LOSS)
        flat = output.flatten()
        self.report.close(f"{case.name} first", flat[:8], torch.tensor(case["first8"]), OUTPUT)
        if "last8" in case:
            self.report.close(f"{case.name} last", flat[-8:], torch.tensor(case["last8"]), OUTPUT)

    # --- training ---

    def check_losses(self) -> None:
        tensors = self.vectors.tensors(LOSSES)
        batch = {
            "latents_mean": tensors.take("mean"),
            "latents_logvar": tensors.take("logvar"),
            **prompts(tensors.take("y_feat"), tensors.take("y_mask")),
        }
        self.report.equal("a prompt's tokens", bool(tensors.take("y_mask").any()), True)
        for space, word in CONVENTIONS.items():
            model = self.trainer(self.facts["lora_kwargs"], space)
            model.load([(self.vectors.file(LORA), 1.0)])
            for facts in self.facts["losses"]:
                given = {
                    "posterior": tensors.take("posterior_noise"),
                    "noise": tensors.take("eps"),
                    "sigma": torch.tensor([facts["sigma"]]),
                    "caption_dropout": torch.ones(1),
                }
                example = model.example(batch, Draws(given=given))
                prediction = model.predict(example)
                loss = loss_of(prediction, example)
                name = f"{space} at {facts['sigma']}"
                self.report.measured(f"{name} loss", abs(loss.item() / facts[word] - 1), LOSS)
                self.check_step(space, facts["sigma"], model, example, prediction, loss, tensors)

    def check_step(
        self, space: str, sigma: float, model: Mochi, example: Example, prediction: torch.Tensor,
        loss: torch.Tensor, tensors: Tensors,
    ) -> None:  # fmt: skip
        """Inputs, outputs and gradients, at the noise level for which they are there."""
        z, noise = tensors.take("z"), tensors.take("eps")
        level = float(((tensors.take("z_sigma") - z) / (noise - z)).median())
        if abs(level - sigma) > 1e-3 or space == "none":
            return
        end = "_consistent" if space == "consistent" else ""
        close_to = {f"z_sigma{end}": example.model_input, f"pred{end}": prediction}
        assert example.target is not None
        if space == "consistent":
            close_to["z_normalised"] = example.target + noise
        else:
            close_to |= {"target_current": example.target, "z": (example.model_input - level * noise) / (1 - level)}
        for name, found in close_to.items():
            self.report.close(f"{space} {name}", found, tensors.take(name), OUTPUT)
        loss.backward()
        prefix = "grad_consistent." if space == "consistent" else "grad_current."
        gradients = genmo_halves(model, gradient=True)
        close(f"{space} gradients", gradients, part(tensors, prefix), GRADIENT, self.report)

    def check_trajectory(self, case: Case) -> None:
        """Steps of the product's optimizer and schedule from the same adapter."""
        tensors, kwargs = self.vectors.tensors(STEPS), self.facts["lora_kwargs"]
        start = self.vectors.made("trajectory") / "start.lora.safetensors"
        save_file(part(tensors, "init."), start, metadata={"kwargs": json.dumps(kwargs)})
        total = case["total"]
        model = self.trainer(
            kwargs, "genmo", learning_rate=case["lr"], weight_decay=case["weight_decay"],
            lr_warmup_steps=case["warmup"],
        )  # fmt: skip
        assert isinstance(model.config, MochiTrainConfig)
        model.load([(start, 1.0)])
        parameters = model.trained_parameters()
        optimizer = make_optimizer(model.config.optimizer, parameters)
        schedule = make_schedule(model.config.optimizer, optimizer, total)
        for number, expected in enumerate(case["steps"]):
            with self.report.case(f"step {number}", expected) as facts:
                self.report.equal(f"step {number} number", facts["step"], number)
                latents = tensors.take(f"s{number}.z").float()
                batch = {
                    "latents_mean": latents,
                    "latents_logvar": torch.zeros_like(latents),
                    **prompts(tensors.take(f"s{number}.y_feat").float(), tensors.take(f"s{number}.y_mask")),
                }
                given = {
                    "posterior": torch.zeros_like(latents),
                    "noise": tensors.take(f"s{number}.eps").float(),
                    "sigma": tensors.take(f"s{number}.sigma"),
                    "caption_dropout": torch.zeros(1) if facts["caption_dropped"] else torch.ones(1),
                }
                rate = schedule.get_last_lr()[0]
                example = model.example(batch, Draws(given=given))
                loss = loss_of(model.predict(example), example)
                loss.backward()
                norm = torch.stack([p.grad.norm() for p in parameters if p.grad is not None]).norm().item()
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
                self.report.measured(f"step {number} rate", abs(rate - facts["lr"]), EXACT)
                self.report.measured(f"step {number} loss", abs(loss.item() / facts["loss"] - 1), LOSS)
                self.report.measured(f"step {number} gradient norm", abs(norm / facts["grad_norm"] - 1), LOSS)
        self.report.equal("steps", len(case["steps"]), total)
        close("trajectory end", genmo_halves(model), part(tensors, "final."), TRAJECTORY, self.report)


# --- latents and schedules -------------------------------------------------------------------------------------------


def check_latents(tensors: Tensors, folder: Path, report: Report) -> None:
    """Posterior, normalisation and the waves of brightness that the video encoder is given."""
    tiny.write("mochi-genmo", folder)
    settings = {"base_model": str(folder), "method": "lora", "mixed_precision": "no", "dataset": {"path": "-"}}
    models = {
        space: Mochi(MochiTrainConfig(**settings, latent_normalisation=space), "train")
        for space in ("none", "consistent")
    }
    mean, logvar, noise = tensors.take("mean"), tensors.take("logvar"), tensors.take("noise")
    clips = len(mean)
    embeds = torch.zeros(clips, 256, 32)
    batch = {
        "latents_mean": mean,
        "latents_logvar": logvar,
        **prompts(embeds, torch.zeros(clips, 256, dtype=torch.bool)),
    }
    given = {
        "posterior": noise,
        "noise": torch.zeros_like(mean),
        "sigma": torch.zeros(clips),
        "caption_dropout": torch.ones(clips),
    }
    for space, name in (("none", "sample_genmo"), ("consistent", "dit_space")):
        found, expected = models[space].example(batch, Draws(given=given)).model_input, tensors.take(name)
        relative(name, found, expected, report)
    model = models["none"]
    relative("roundtrip", model.unnormalised(tensors.take("dit_space")), tensors.take("roundtrip"), report)
    distribution = DiagonalGaussianDistribution(torch.cat([mean, logvar], dim=1))
    clamped = {**batch, "latents_logvar": distribution.logvar}
    found = model.example(clamped, Draws(given=given)).model_input
    relative("sample_diffusers_clamped", found, tensors.take("sample_diffusers_clamped"), report)
    report.close("fourier", FourierFeatures()(tensors.take("fourier_in")), tensors.take("fourier_out"), OUTPUT)


def check_schedules(facts: Case, report: Report) -> None:
    for number, entry in enumerate(facts["lr"]):
        with report.case(f"learning rate {number}", entry) as case:
            steps = case["num_steps"]
            config = OptimizerConfig(
                learning_rate=case["base_lr"], lr_scheduler="cosine", lr_warmup_steps=case["warmup_steps"]
            )
            optimizer = make_optimizer(config, [torch.nn.Parameter(torch.zeros(1))])
            schedule, rates = make_schedule(config, optimizer, steps), []
            for _ in range(steps):
                rates.append(schedule.get_last_lr()[0])
                optimizer.step()
                schedule.step()
            values = case["values"]
            apart = max(abs(rates[int(step)] - rate) for step, rate in values.items())
            report.measured(f"{case.name} values", apart, EXACT)
            report.measured(f"{case.name} total", abs(sum(rates) - case["total"]), EXACT)
    for number, entry in enumerate(facts["sigma_schedules"]):
        with report.case(f"noise levels {number}", entry) as case:
            check_levels(case, report)
    for number, entry in enumerate(facts["save_and_sample_steps"]):
        with report.case(f"steps that are saved {number}", entry) as case:
            steps = range(max(case["start"], 1), case["num_steps"])
            report.equal(case.name, [step for step in steps if due(step, case["interval"])], case["upstream_steps"])


def check_levels(case: Case, report: Report) -> None:
    steps, threshold, linear = case["num_steps"], case["threshold_noise"], case["linear_steps"]
    levels = linear_quadratic(steps, threshold, linear)
    expected = case["sigmas"]
    apart = max(abs(found - there) for found, there in zip([*levels, 0.0], expected, strict=True))
    report.measured(f"{case.name} values", apart, EXACT)
    report.measured(f"{case.name} sum", abs(levels[0] - case["dsigmas_sum"]), EXACT)
    settings = {"base_model": "-", "prompts": ["-"], "num_inference_steps": steps}
    model = Mochi.__new__(Mochi)  # its schedule needs no weights
    model.config = MochiSampleConfig(**settings, threshold_noise=threshold, linear_steps=linear)
    model._scheduler_config = {"invert_sigmas": True}
    timesteps = model._scheduler(steps).timesteps
    report.close(f"{case.name} timesteps", timesteps, torch.tensor(case["diffusers_timesteps"]), 1e-3)


# --- comparing -------------------------------------------------------------------------------------------------------


def prompts(embeds: torch.Tensor, mask: torch.Tensor) -> dict[str, torch.Tensor]:
    """What the loop gives of prompts: theirs, and true zeros for those that are dropped."""
    return {
        "prompt_embeds": embeds,
        "prompt_attention_mask": mask,
        "null_prompt_embeds": torch.zeros_like(embeds),
        "null_prompt_attention_mask": torch.zeros_like(mask),
    }


def genmo_halves(model: Mochi, gradient: bool = False) -> dict[str, torch.Tensor]:
    """The trained LoRA, or its gradient, in Genmo's layers: one lower half for three, their upper halves as one."""
    found: dict[str, torch.Tensor] = {}
    own = {
        key: (parameter.grad if gradient else parameter.detach())
        for key, parameter in lora.parameters(model.transformer)
    }
    for block in range(len(model.transformer.transformer_blocks)):
        for layer, parts in names.LAYERS.items():
            paths = [f"transformer_blocks.{block}.attn1.{part}" for part in parts]
            if f"{paths[0]}.lora_A.weight" in own:
                lower, upper = ([own[f"{path}.lora_{half}.weight"] for path in paths] for half in "AB")
                assert all(half is lower[0] or torch.equal(half, lower[0]) for half in lower)  # type: ignore[arg-type]
                found[f"blocks.{block}.attn.{layer}.lora_A"] = lower[0]  # type: ignore[assignment]
                found[f"blocks.{block}.attn.{layer}.lora_B"] = torch.cat(upper)  # type: ignore[arg-type]
    return found


def close(
    name: str,
    found: Mapping[str, torch.Tensor],
    expected: Mapping[str, torch.Tensor],
    tolerance: float,
    report: Report,
) -> None:
    """The largest difference of tensors by name."""
    report.equal(f"{name} names", sorted(found), sorted(expected))
    apart = max(float((found[key] - value).abs().max()) for key, value in expected.items())
    report.measured(name, apart, tolerance)


def relative(name: str, found: torch.Tensor, expected: torch.Tensor, report: Report) -> None:
    """Numbers of very different sizes, each by its own; those below 1 as they are."""
    size = expected.abs().clamp(min=1)
    report.close(name, found / size, expected / size, 1e-6)


def fingerprints(
    state: Mapping[str, torch.Tensor], expected: Mapping[str, Mapping[str, Any]], name: str, report: Report
) -> None:
    """Shape, sum, norm, and the ends of weights."""
    with report.check(f"{name} fingerprints"):
        apart = 0.0
        shapes: dict[str, Sequence[int]] = {}
        for key, facts in expected.items():
            value = state[key].double()
            shapes[key] = list(value.shape)
            ends = torch.cat([value.flatten()[:4], value.flatten()[-4:]])
            there = torch.tensor([*facts["first4"], *facts["last4"]], dtype=torch.float64)
            size = float(value.norm()) or 1.0
            apart = max(
                apart,
                float((ends - there).abs().max()),
                abs(float(value.norm()) - facts["l2"]) / size,
                abs(float(value.sum()) - facts["sum"]) / size,
            )
        report.equal(f"{name} shapes", shapes, {key: facts["shape"] for key, facts in expected.items()})
        report.measured(f"{name} sums, norms and ends", apart, 1e-5)


def part(tensors: Tensors, prefix: str) -> dict[str, torch.Tensor]:
    """The tensors whose name begins so, without that."""
    return {name.removeprefix(prefix): tensors.take(name) for name in tensors if name.startswith(prefix)}


def header(file: Path) -> dict[str, str]:
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        return opened.metadata() or {}
