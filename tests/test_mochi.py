"""Mochi: equal to the pipeline's frames, an objective in three conventions, attention over trimmed text, and rules that
are told before a run."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLMochi, MochiPipeline, MochiTransformer3DModel

from trainers import lora
from trainers.families import FAMILIES
from trainers.families.base import ModelError, SampleRequest
from trainers.families.mochi import config as mochi_config
from trainers.families.mochi.attention import trimmed, use_trimmed_text
from trainers.families.mochi.config import MochiAdapterConfig, MochiSampleConfig, MochiTrainConfig, advice, findings
from trainers.families.mochi.facts import is_base
from trainers.families.mochi.model import Mochi
from trainers.loop import loss_of
from trainers.noise import Draws
from trainers.settings import FieldError

CONVENTIONS = ("consistent", "genmo", "none")
Base = dict[str, str]


def train_model(base: Base, method: str = "lora", *, dataset=None, **changes) -> Mochi:
    settings = {
        "method": method,
        **base,
        "mixed_precision": "no",
        "adapter": {"rank": 4, "alpha": 8},
        "dataset": {"path": "clips", "num_frames": 7, "height": 64, "width": 64} | (dataset or {}),
        **changes,
    }
    return Mochi(MochiTrainConfig(**settings), "train")


def sample_model(base: Base, **changes) -> Mochi:
    settings = {**base, "prompts": ["-"], "mixed_precision": "no", "vae_tiling": False, "num_inference_steps": 3}
    return Mochi(MochiSampleConfig(**(settings | changes)), "sample")


def batch(model: Mochi, texts: tuple[str, ...] = ("a red circle",)) -> dict[str, torch.Tensor]:
    """Encoded noise with these captions."""
    shape = (len(texts), 12, 2, 8, 8)
    nulls = {f"null_{name}": value for name, value in model.encode_prompt([""] * len(texts)).items()}
    return {
        "latents_mean": torch.randn(shape, generator=seeded(1)),
        "latents_logvar": torch.full(shape, -2.0),
        **model.encode_prompt(texts),
        **nulls,
    }


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def request_for(frames: int = 7, size: tuple[int, int] = (64, 64), steps: int = 3, guidance: float = 5.0,
                negative: str = "blue") -> SampleRequest:  # fmt: skip
    return SampleRequest("a red circle moves", negative, *size, frames, steps, guidance)


def pipeline(base: Base, **parts) -> MochiPipeline:
    """diffusers' own, in 32 bits."""
    made = MochiPipeline.from_pretrained(base["base_model"], torch_dtype=torch.float32, **parts)
    made.set_progress_bar_config(disable=True)
    return made


def pipeline_frames(made: MochiPipeline, request: SampleRequest, seed: int, output: str = "np") -> np.ndarray:
    found = made(
        prompt=request.prompt,
        negative_prompt=request.negative_prompt,
        height=request.height,
        width=request.width,
        num_frames=request.num_frames,
        num_inference_steps=request.num_inference_steps,
        guidance_scale=request.guidance_scale,
        generator=seeded(seed),
        output_type=output,
    ).frames
    return found if output == "latent" else (found[0] * 255).round().astype(np.uint8)


def our_frames(model: Mochi, request: SampleRequest, seed: int) -> np.ndarray:
    return model.sample(request, Draws(seeded(seed)))


def our_latents(model: Mochi, request: SampleRequest, seed: int) -> torch.Tensor:
    with torch.no_grad():
        return model._draw(request, Draws(seeded(seed)))


def fill_upper(model: Mochi, size: float = 0.05) -> None:
    """An effect for a LoRA that has none yet."""
    with torch.no_grad():
        for number, (key, parameter) in enumerate(lora.parameters(model.transformer)):
            if ".lora_B." in key:
                parameter.copy_(size * torch.randn(parameter.shape, generator=seeded(number)))


def gradients(model: Mochi, texts: tuple[str, ...] = ("a red circle", "a blue square moves left")):
    """Of every parameter of the adapter, by its key in a file."""
    example = model.example(batch(model, texts), Draws.seeded(2))
    loss_of(model.predict(example), example).backward()
    return {key: parameter.grad for key, parameter in lora.parameters(model.transformer)}


# --- samples ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "request_",
    [
        request_for(),
        request_for(frames=13, size=(64, 96), negative=""),
        request_for(frames=1, steps=2, guidance=1.0, negative=""),
    ],
    ids=["negative prompt", "true zeros", "one frame, no guidance"],
)
def test_samples_are_the_pipelines(mochi_bases, request_):
    """Seed for seed, in 32 bits; where there is no negative prompt, with the zeros that dropout trained."""
    base = mochi_bases("mochi")
    made, model = pipeline(base), sample_model(base)
    torch.testing.assert_close(
        our_latents(model, request_, 3), pipeline_frames(made, request_, 3, "latent"), atol=1e-5, rtol=1e-5
    )
    ours, theirs = our_frames(model, request_, 3), pipeline_frames(made, request_, 3)
    assert ours.shape == (request_.num_frames, request_.height, request_.width, 3)
    assert ours.dtype == np.uint8
    assert ours.std() > 1
    assert np.abs(ours.astype(int) - theirs).max() <= 1


def test_genmos_files_draw_the_same(mochi_bases):
    """The same random weights under Genmo's names, with the text encoder from elsewhere."""
    ours = our_frames(sample_model(mochi_bases("mochi")), request_for(), 3)
    assert np.array_equal(ours, our_frames(sample_model(mochi_bases("mochi-genmo")), request_for(), 3))


def test_tiles_are_the_pipelines(mochi_bases):
    base, request = mochi_bases("mochi"), request_for(frames=1, size=(272, 64), steps=2)
    made = pipeline(base)
    made.vae.enable_tiling()
    ours = our_frames(sample_model(base, vae_tiling=True), request, 3)
    assert np.abs(ours.astype(int) - pipeline_frames(made, request, 3)).max() <= 1
    assert not np.array_equal(ours, our_frames(sample_model(base), request, 3))


def test_guidance_can_be_told_step_by_step(mochi_bases):
    base, request = mochi_bases("mochi"), request_for()
    plain = our_latents(sample_model(base), request, 3)
    assert torch.equal(our_latents(sample_model(base, guidance_schedule=[5.0] * 3), request, 3), plain)
    changed = our_latents(sample_model(base, guidance_schedule=[5.0, 1.0, 2.0]), request, 3)
    assert (changed - plain).abs().max() > 1e-3
    alone = our_latents(sample_model(base, guidance_schedule=[1.0] * 3), request, 3)
    assert torch.equal(alone, our_latents(sample_model(base), request_for(guidance=1.0), 3))


def test_the_schedule_can_be_changed(mochi_bases):
    base, request = mochi_bases("mochi"), request_for()
    plain = our_latents(sample_model(base), request, 3)
    assert torch.equal(our_latents(sample_model(base, linear_steps=1), request, 3), plain)  # half of three
    assert not torch.equal(our_latents(sample_model(base, linear_steps=2), request, 3), plain)
    assert not torch.equal(our_latents(sample_model(base, threshold_noise=0.1), request, 3), plain)
    assert our_latents(sample_model(base), request_for(steps=1), 3).isfinite().all()


@pytest.mark.parametrize("precision", ["bf16", "no"])
def test_a_run_samples_as_a_comparison_does(mochi_bases, precision):
    """One code path: a fresh LoRA has no effect, so that a run's first sample is the base's."""
    base, request = mochi_bases("mochi"), request_for()
    training = train_model(base, mixed_precision=precision, memory={"vae_tiling": False})
    ours = our_frames(training, request, 5)
    assert np.array_equal(ours, our_frames(sample_model(base, mixed_precision=precision), request, 5))
    assert training.transformer.training
    assert training._text is None, "sampling while training leaves no text encoder behind"


def test_with_cpu_offload_one_model_is_on_the_device_at_a_time(mochi_bases, monkeypatch):
    base, request = mochi_bases("mochi"), request_for()
    expected = our_frames(sample_model(base), request, 3)
    model = sample_model(base, cpu_offload=True)
    model.device = torch.device("cpu", 0)  # told apart from "cpu", and the same
    moved, plain = [], torch.nn.Module.to

    def watched(module, *args, **kwargs):
        moved.append((type(module).__name__, str(args[0])))
        return plain(module, *args, **kwargs)

    monkeypatch.setattr(torch.nn.Module, "to", watched)
    assert np.array_equal(our_frames(model, request, 3), expected)
    names = ("T5EncoderModel", "T5EncoderModel", "MochiTransformer3DModel", "AutoencoderKLMochi")  # two prompts
    assert [step for step in moved if step[1].startswith("cpu")] == [
        (name, where) for name in names for where in ("cpu:0", "cpu")
    ]


def test_sampling_while_training_leaves_the_transformer_where_it_is(mochi_bases, monkeypatch):
    """To move a model in shards means to gather it anew, for which the other processes would be waited for."""
    model = train_model(mochi_bases("mochi"))
    model.release("encoders")
    moved, plain = set(), torch.nn.Module.to

    def watched(module, *args, **kwargs):
        moved.add(type(module).__name__)
        return plain(module, *args, **kwargs)

    monkeypatch.setattr(torch.nn.Module, "to", watched)
    our_frames(model, request_for(), 3)
    assert "AutoencoderKLMochi" in moved
    assert "MochiTransformer3DModel" not in moved


def test_a_sample_takes_no_image(mochi_bases):
    request = SampleRequest(**{**vars(request_for()), "image": np.zeros((8, 8, 3), np.uint8)})
    with pytest.raises(ModelError, match="takes no image"):
        our_frames(sample_model(mochi_bases("mochi")), request, 0)


# --- the objective ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("space", CONVENTIONS)
def test_an_example_is_the_papers(mochi_bases, space):
    """From noise at sigma 1 to the clip at 0; the network is told 1000 * (1 - sigma)."""
    model = train_model(mochi_bases("mochi"), latent_normalisation=space, dataset={"caption_dropout": 0.5})
    data = batch(model, ("a red circle", "a blue square moves left"))
    shape = data["latents_mean"].shape
    given = {
        "posterior": torch.randn(shape, generator=seeded(3)),
        "noise": torch.randn(shape, generator=seeded(4)),
        "sigma": torch.tensor([0.25, 0.9]),
        "caption_dropout": torch.tensor([0.49, 0.5]),
    }
    example = model.example(data, Draws(given=given))
    defaults = AutoencoderKLMochi.from_config(AutoencoderKLMochi.load_config(
        mochi_bases("mochi")["base_model"], subfolder="vae"
    )).config  # fmt: skip
    mean = torch.tensor(defaults.latents_mean).view(1, 12, 1, 1, 1)
    std = torch.tensor(defaults.latents_std).view(1, 12, 1, 1, 1)
    assert abs(float(std[0, 7]) - 1.3720942357788521) < 1e-6
    z = data["latents_mean"] + (data["latents_logvar"] / 2).exp() * given["posterior"]
    sigma, noise = given["sigma"].view(2, 1, 1, 1, 1), given["noise"]
    expected = {
        "consistent": ((1 - sigma) * (z - mean) / std + sigma * noise, (z - mean) / std - noise),
        "genmo": ((1 - sigma) * z + sigma * noise, (z - noise - mean) / std),
        "none": ((1 - sigma) * z + sigma * noise, z - noise),
    }[space]
    torch.testing.assert_close(example.model_input, expected[0])
    torch.testing.assert_close(example.target, expected[1])
    torch.testing.assert_close(example.timesteps, torch.tensor([750.0, 100.0]))
    assert example.conditions["prompt_attention_mask"].sum(dim=1).tolist() == [0, 6]  # five words and an end
    torch.testing.assert_close(example.conditions["prompt_embeds"][1], data["prompt_embeds"][1, :6])


def test_the_empty_caption_is_true_zeros(mochi_bases):
    model = train_model(mochi_bases("mochi"))
    found = model.encode_prompt(["", "  \n", "a red circle"])
    assert not found["prompt_embeds"][:2].any()
    assert found["prompt_attention_mask"].sum(dim=1).tolist() == [0, 0, 4]
    assert found["prompt_embeds"].shape == (3, 256, 32)
    theirs, mask, *_ = pipeline(mochi_bases("mochi")).encode_prompt(["a red circle"], do_classifier_free_guidance=False)
    torch.testing.assert_close(found["prompt_embeds"][2:], theirs.detach())
    assert torch.equal(found["prompt_attention_mask"][2:], mask)


def test_clips_are_encoded_as_the_vae_does(mochi_bases):
    model = train_model(mochi_bases("mochi"), memory={"vae_tiling": False})
    pixels = torch.randint(0, 256, (2, 7, 3, 64, 64), dtype=torch.uint8, generator=seeded(0))
    encoded = model.encode_video(pixels, Draws())
    vae = AutoencoderKLMochi.from_pretrained(mochi_bases("mochi")["base_model"], subfolder="vae")
    with torch.no_grad():
        posterior = vae.encode(pixels[1:].float().transpose(1, 2) / 127.5 - 1).latent_dist
    assert encoded.keys() == {"latents_mean", "latents_logvar"}
    assert encoded["latents_mean"].shape == encoded["latents_logvar"].shape == (2, 12, 2, 8, 8)
    torch.testing.assert_close(encoded["latents_mean"][1:], posterior.mean, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(encoded["latents_logvar"][1:], posterior.logvar, atol=1e-4, rtol=1e-4)
    other = train_model(mochi_bases("mochi-genmo"), memory={"vae_tiling": False}).encode_video(pixels, Draws())
    assert all(torch.equal(other[name], value) for name, value in encoded.items())


def test_the_cache_knows_what_encoded(mochi_bases):
    plain = train_model(mochi_bases("mochi"))
    assert plain.fingerprint("video") == train_model(mochi_bases("mochi")).fingerprint("video")
    untiled = train_model(mochi_bases("mochi"), memory={"vae_tiling": False})
    genmo = train_model(mochi_bases("mochi-genmo"))
    for encoder, others in (("video", (untiled, genmo)), ("prompt", (genmo,))):
        assert all(other.fingerprint(encoder) for other in others)
    assert plain.fingerprint("video") not in (untiled.fingerprint("video"), genmo.fingerprint("video"))
    assert plain.fingerprint("prompt") == untiled.fingerprint("prompt")


def test_the_loss_falls_and_only_the_lora_learns(mochi_bases):
    model = train_model(mochi_bases("mochi"))
    before = {key: value.clone() for key, value in model.transformer.state_dict().items()}
    example = model.example(batch(model), Draws.seeded(1))
    optimizer = torch.optim.AdamW(model.trained_parameters(), 1e-2)
    losses = []
    for _ in range(15):
        loss = loss_of(model.predict(example), example)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    changed = {key for key, value in model.transformer.state_dict().items() if not torch.equal(value, before[key])}
    assert changed
    assert all(".lora_" in key for key in changed)
    assert not any("pooler" in key for key in changed)


# --- attention -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def networks(mochi_bases):
    """The same transformer with diffusers' own attention, and with ours."""
    made = [
        MochiTransformer3DModel.from_pretrained(mochi_bases("mochi")["base_model"], subfolder="transformer").float()
        for _ in range(2)
    ]
    use_trimmed_text(made[1])
    return made


@pytest.mark.parametrize("lengths", [(9,), (1,), (0,), (256,), (7, 7), (4, 0, 256, 1)], ids=str)
def test_trimmed_text_gives_what_the_stock_processor_gives(networks, lengths):
    """Alone and in batches of unequal lengths; without any mask where all have the same."""
    count = len(lengths)
    mask = torch.arange(256) < torch.tensor(lengths)[:, None]
    embeds = torch.randn(count, 256, 32, generator=seeded(1))
    video = torch.randn(count, 12, 2, 4, 6, generator=seeded(2))
    given = {"hidden_states": video, "timestep": torch.full((count,), 300.0), "return_dict": False}
    short, among = trimmed(embeds, mask)
    assert short.shape[1] == max(2 if max(lengths) == 1 else 0, *lengths)
    assert (among is None) == (len(set(lengths)) == 1 and lengths[0] != 1)
    with torch.no_grad():
        stock = networks[0](encoder_hidden_states=embeds, encoder_attention_mask=mask, **given)[0]
        ours = networks[1](encoder_hidden_states=short, encoder_attention_mask=among, **given)[0]
    torch.testing.assert_close(ours, stock, atol=1e-5, rtol=1e-5)


def test_valid_tokens_may_stand_anywhere():
    mask = torch.tensor([[False, True, False, True], [True, False, False, False]])
    embeds = torch.arange(8.0).view(2, 4, 1)
    short, among = trimmed(embeds, mask)
    assert short[0, :, 0].tolist() == [1.0, 3.0]
    assert short[1, 0, 0] == 4.0
    assert among.tolist() == [[True, True], [True, False]]
    assert trimmed(embeds, torch.zeros_like(mask), least=1)[0].shape[1] == 2


def test_nothing_is_looked_up_while_blocks_run(mochi_bases):
    """No operation whose result has a shape that depends on numbers, for which a GPU would be waited for."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Seen(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.names = set()

        def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
            self.names.add(operation.name())
            return operation(*args, **(kwargs or {}))

    model = train_model(mochi_bases("mochi"), dataset={"caption_dropout": 0.0})
    example = model.example(batch(model, ("a red circle", "a blue square moves left")), Draws.seeded(2))
    with Seen() as seen:
        loss_of(model.predict(example), example).backward()
    assert not seen.names & {"aten::nonzero", "aten::_local_scalar_dense", "aten::item", "aten::masked_select"}


def test_without_text_its_weights_are_left_alone(mochi_bases):
    """No gradient instead of one of zeros, on which an optimizer's momentum would move them on; so it is upstream."""
    model = train_model(mochi_bases("mochi"))
    fill_upper(model)
    found = gradients(model, ("",))
    text = {key for key in found if "add_" in key}
    assert text
    assert all((found[key] is None) == (key in text) for key in found)
    several = gradients(model, ("", "a red circle"))
    assert all(several[key] is not None for key in text)


# --- the LoRA --------------------------------------------------------------------------------------------------------


def test_both_streams_have_a_lora_and_the_pooling_of_text_none(mochi_bases):
    model = train_model(mochi_bases("mochi"))
    paths = {path for path, _ in lora.layers(model.transformer)}
    names = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj")
    expected = {f"transformer_blocks.{block}.attn1.{name}" for block in range(2) for name in names}
    assert paths == expected | {"transformer_blocks.0.attn1.to_add_out"}  # the last block gives no text
    for line, count in (("to_q", 2), (r"transformer_blocks\..*\.ff\..*", 4), (r"time_embed\.pooler\.to_q", 1)):
        chosen = train_model(mochi_bases("mochi"), adapter={"rank": 2, "target_modules": [line]})
        assert len(list(lora.layers(chosen.transformer))) == count
    with pytest.raises(ModelError, match=r"'nosuch' is no linear layer.*attn1\.to_q"):
        train_model(mochi_bases("mochi"), adapter={"rank": 2, "target_modules": ["nosuch"]})


def test_tied_halves_are_one_layers(mochi_bases):
    """The gradient of the shared lower half is the sum of those of three that are the same."""
    ranks = {"rank": 4, "alpha": 8, "out_rank": 2, "out_alpha": 1}
    tied = train_model(mochi_bases("mochi"), adapter=ranks)
    apart = train_model(mochi_bases("mochi"), adapter={**ranks, "tie_qkv": False})
    fill_upper(tied)
    apart_layers = dict(lora.layers(apart.transformer))
    shared = lora.taken(tied.transformer)
    lora.fill(apart.transformer, shared)
    assert (shared["transformer_blocks.0.attn1.to_out.0"].rank, shared["transformer_blocks.0.attn1.to_q"].rank) == (
        2,
        4,
    )
    assert shared["transformer_blocks.0.attn1.to_add_out"].alpha == 1
    ours, theirs = gradients(tied), gradients(apart)
    for path in apart_layers:
        torch.testing.assert_close(ours[f"{path}.lora_B.weight"], theirs[f"{path}.lora_B.weight"], atol=1e-7, rtol=1e-4)
    for block in range(2):
        for group in (("to_q", "to_k", "to_v"), ("add_q_proj", "add_k_proj", "add_v_proj")):
            keys = [f"transformer_blocks.{block}.attn1.{name}.lora_A.weight" for name in group]
            assert ours[keys[0]] is ours[keys[2]]
            torch.testing.assert_close(ours[keys[0]], sum(theirs[key] for key in keys), atol=1e-7, rtol=1e-4)
    one, many = (sum(p.numel() for p in model.trained_parameters()) for model in (tied, apart))
    assert many - one == 2 * 2 * 4 * (192 + 96)  # two lower halves fewer, in two blocks


def test_dropout_is_that_of_its_layer_and_drawn_once_for_what_is_tied(mochi_bases):
    model = train_model(mochi_bases("mochi"), adapter={"rank": 2, "dropout": 0.5, "out_dropout": 0.0})
    found = dict(lora.layers(model.transformer))
    attention = "transformer_blocks.0.attn1."
    assert found[attention + "to_q"].lora_dropout["default"] is found[attention + "to_v"].lora_dropout["default"]
    assert found[attention + "to_q"].lora_dropout["default"].p == 0.5
    assert isinstance(found[attention + "to_out.0"].lora_dropout["default"], torch.nn.Identity)
    only = train_model(mochi_bases("mochi"), adapter={"rank": 2, "out_dropout": 0.25})
    assert dict(lora.layers(only.transformer))[attention + "to_add_out"].lora_dropout["default"].p == 0.25
    fill_upper(only)
    assert gradients(only)  # checkpointed, with the random state kept


def test_the_published_model_has_genmos_number_of_weights():
    """10 billion in the transformer, and in a LoRA of rank 16 as many as Genmo's trainer counts."""
    with torch.device("meta"):
        transformer = MochiTransformer3DModel()
    assert len(transformer.transformer_blocks) == 48
    assert round(sum(p.numel() for p in transformer.parameters()) / 1e9, 2) == 10.03
    model = Mochi.__new__(Mochi)  # without its files
    model.transformer = transformer.requires_grad_(False)
    use_trimmed_text(transformer)
    model._add_lora(MochiAdapterConfig(), 0)
    assert sum(p.numel() for p in transformer.parameters() if p.requires_grad) == 25_878_528


# --- memory ----------------------------------------------------------------------------------------------------------


def checkpointed(base: Base, **memory) -> dict[str, torch.Tensor]:
    model = train_model(base, memory=memory)
    fill_upper(model)
    return gradients(model)


@pytest.mark.parametrize(
    "memory", [{}, {"gradient_checkpointing": "sac"}, {"checkpointed_blocks": 1}, {"checkpointed_blocks": 0}], ids=str
)
def test_checkpointing_changes_no_gradient(mochi_bases, memory):
    base = mochi_bases("mochi")
    plain, found = checkpointed(base, gradient_checkpointing="none"), checkpointed(base, **memory)
    assert all(torch.equal(found[key], value) for key, value in plain.items())


@pytest.mark.parametrize("blocks", [None, 1, 0])
def test_only_the_first_blocks_are_computed_again(mochi_bases, blocks):
    model = train_model(mochi_bases("mochi"), memory={"checkpointed_blocks": blocks})
    computed = [0, 0]
    for number, block in enumerate(model.transformer.transformer_blocks):

        def count(module, args, number=number):
            computed[number] += 1

        block.ff.register_forward_pre_hook(count)
    gradients(model)
    assert computed == [2 if blocks is None or number < blocks else 1 for number in range(2)]


@pytest.mark.skipif(not any(map(shutil.which, mochi_config.COMPILERS)), reason="there is no C++ compiler")
@pytest.mark.filterwarnings("ignore")
def test_compiled_blocks_compute_the_same(mochi_bases):
    """With recomputation; and the weights keep their names."""
    base = mochi_bases("mochi")
    found = []
    for compiled in (False, True):
        model = train_model(base, memory={"compile_blocks": compiled})
        fill_upper(model)
        found.append(gradients(model, ("a red circle",)))
        assert not any("_orig_mod" in key for key in model.transformer.state_dict())
    for key, value in found[0].items():
        torch.testing.assert_close(found[1][key], value, atol=1e-6, rtol=1e-4)


# --- rules -----------------------------------------------------------------------------------------------------------


def config(base: str, **changes) -> MochiTrainConfig:
    return MochiTrainConfig(**{"base_model": base, "dataset": {"path": "clips"}, **changes})


@pytest.mark.parametrize(("available", "within"), [(0, 0), (1, 1), (6, 1), (7, 7), (36, 31), (37, 37), (163, 163)])
def test_the_frame_rule(available, within):
    assert FAMILIES["mochi"].frames_within(available) == within


@pytest.mark.parametrize(
    ("changes", "where", "text"),
    [
        ({"dataset": {"path": "c", "num_frames": 36}}, "dataset.num_frames", "set 31 or 37"),
        ({"validation": {"num_frames": 20}}, "validation.num_frames", "set 19 or 25"),
        ({"dataset": {"path": "c", "height": 488}}, "dataset.height", "set 480 or 496"),
        ({"validation": {"width": 850}}, "validation.width", "set 848 or 864"),
        ({"guidance_schedule": [6.0] * 63}, "guidance_schedule", "has 63 numbers, but validation.num_inference_steps"),
        ({"guidance_schedule": [-1.0] * 64}, "guidance_schedule", "from 0 to 100"),
        ({"linear_steps": 64}, "linear_steps", "some must be left"),
    ],
)
def test_what_mochi_cannot_do_is_told_with_what_it_can(changes, where, text):
    with pytest.raises(ValueError, match=text) as caught:
        config("base", **changes)
    (problem,) = caught.value.errors()
    assert isinstance(problem["ctx"]["error"], FieldError)
    assert problem["ctx"]["error"].where == where


def test_the_defaults_are_genmos():
    made = config("base")
    assert (made.dataset.num_frames, made.dataset.height, made.dataset.width, made.dataset.fps) == (37, 480, 848, 30)
    assert (made.adapter.rank, made.adapter.alpha, made.adapter.tie_qkv) == (16, None, True)
    assert (made.optimizer.learning_rate, made.optimizer.weight_decay, made.optimizer.max_grad_norm) == (
        2e-4,
        0.01,
        None,
    )
    assert (made.optimizer.lr_scheduler, made.optimizer.lr_warmup_steps, made.max_train_steps) == ("cosine", 200, 2000)
    assert (made.validation.num_inference_steps, made.validation.guidance_scale) == (64, 6)
    assert made.latent_normalisation == "consistent"


def told(made: MochiTrainConfig | MochiSampleConfig, level: str = "error") -> str:
    return "\n".join(f"{f.where}: {f.text}" for f in findings(made) if f.level == level)


def test_a_base_is_looked_at_before_the_run(mochi_bases, cogvideox_bases, tmp_path):
    pipe, genmo, other = mochi_bases("mochi"), mochi_bases("mochi-genmo"), cogvideox_bases("cogvideox")
    assert is_base(Path(pipe["base_model"]))
    assert is_base(Path(genmo["base_model"]))
    assert not is_base(other)
    assert not is_base(tmp_path)
    assert not told(config(pipe["base_model"]))
    assert not told(config("genmo/mochi-1-preview"))
    assert not told(config(genmo["base_model"], text_encoder=genmo["text_encoder"]))
    assert "does not exist" in told(config("no such folder"))
    assert "of another kind of model" in told(config(str(other)))
    assert "dit.safetensors" in told(config(str(tmp_path)))
    assert "text_encoder: " in told(config(genmo["base_model"], text_encoder="no such folder"))
    with pytest.raises(ModelError, match="lacks transformer/, and it does not hold all of Genmo"):
        sample_model({"base_model": str(tmp_path)})
    with pytest.raises(ModelError, match=r"text_encoder nothing.* does not exist"):
        sample_model(genmo | {"text_encoder": "nothing there"}).encode_prompt(["a"])


def test_hints(mochi_bases, monkeypatch):
    base = mochi_bases("mochi")["base_model"]
    assert "trained in bf16" in told(config(base, mixed_precision="fp16"), "warning")
    assert "samples are drawn in normalised space" in told(config(base, latent_normalisation="none"), "info")
    assert "85" in told(config(base, dataset={"path": "c", "num_frames": 91}), "info")
    assert not told(config(base, memory={"compile_blocks": False}))
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert "C++ compiler" in told(config(base, memory={"compile_blocks": True}))
    assert [f.where for f in advice(config(base, optimizer={"learning_rate": 1e-3}), [])] == ["optimizer.learning_rate"]
    assert not advice(config(base), [])
