"""DynamiCrafter's network: what its parts compute, equal to the reference's; every name in its files is known."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load, save_file

from examples.tiny.animatediff import write_clip_tokenizer
from trainers.families.base import ModelError
from trainers.families.dynamicrafter import encoders, names
from trainers.families.dynamicrafter.base_model import BaseModel
from trainers.families.dynamicrafter.facts import PUBLISHED, UNetFacts, from_params
from trainers.families.dynamicrafter.resampler import Resampler
from trainers.families.dynamicrafter.schedule import buffers
from trainers.families.dynamicrafter.tokenizer import cleaned, tokenize
from trainers.families.dynamicrafter.unet import GroupNorm, ResBlock, VideoUNet
from trainers.memory import checkpoint_blocks

DATA = Path(__file__).parent / "data"
VECTORS = DATA / "dynamicrafter"
UNET = "model.diffusion_model."
TINY = UNetFacts(
    model_channels=32,
    channel_mult=(1, 2),
    num_res_blocks=1,
    attention_resolutions=(2, 1),
    num_head_channels=8,
    context_dim=24,
)


@cache
def vectors(name: str) -> dict[str, torch.Tensor]:
    file = VECTORS / f"{name}.safetensors"
    return load(file.read_bytes() if file.is_file() else gzip.decompress(Path(f"{file}.gz").read_bytes()))


@cache
def meta() -> dict:
    return json.loads(gzip.decompress((VECTORS / "meta.json.gz").read_bytes()))


def tiny_state(variant: str = "512") -> dict[str, torch.Tensor]:
    """A whole tiny checkpoint in the reference's names, in 32 bits."""
    state = {key: value.float() for key, value in vectors("tiny512_state").items()}
    if variant == "256":
        state = {key: value for key, value in state.items() if "." in key}  # but for the schedule
        state |= vectors("tiny256_alpha") | buffers(tiny_facts("256"))
    return state


def tiny_facts(variant: str):
    return from_params(meta()[f"tiny{variant}_config"], meta()["clip_cfg"])


def write_base(folder: Path, variant: str = "512") -> Path:
    """What stands beside tiny weights: the configs that tell their sizes."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"model": {"params": meta()[f"tiny{variant}_config"]}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": meta()["clip_cfg"]}), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> BaseModel:
    folder = write_base(tmp_path_factory.mktemp("base"))
    save_file(tiny_state(), folder / "model.safetensors")
    return BaseModel(str(folder))


def tiny_unet(variant: str) -> VideoUNet:
    unet = VideoUNet(tiny_facts(variant).unet)
    state = {key.removeprefix(UNET): value for key, value in tiny_state(variant).items() if key.startswith(UNET)}
    unet.load_state_dict(state)
    return unet


def close(found: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-5) -> None:
    assert found.shape == expected.shape
    assert float((found - expected).detach().abs().max()) <= tolerance


# --- the denoiser ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["512", "256"])
def test_the_denoiser_computes_what_the_references_does(variant):
    given, unet, seen = vectors(f"unet_{variant}"), tiny_unet(variant).eval(), {}
    for key in given:
        if key.startswith("act."):
            part = unet.get_submodule(key.removeprefix("act."))
            part.register_forward_hook(lambda _, __, out, key=key: seen.setdefault(key, []).append(out))
    x, timesteps, fs = given["x"], given["timesteps"], given["fs"]
    with torch.no_grad():
        close(unet(x, timesteps, given["context"], fs), given["out"])
        close(unet(x, timesteps, given["context"]), given["out_fs_none"])
        close(unet(x, timesteps, given["context_short"], fs), given["out_context_short"])
    assert len(seen) == 5
    for key, (first, *_) in seen.items():
        close(first, given[key], 2e-5)


@pytest.mark.parametrize("variant", ["512", "256"])
@pytest.mark.parametrize("policy", ["none", "full"])
def test_the_denoisers_gradients_are_the_references(variant, policy):
    given, unet, told = vectors(f"unet_{variant}"), tiny_unet(variant).train(), meta()[f"unet_{variant}"]
    assert {m.p for m in unet.modules() if isinstance(m, torch.nn.Dropout)} == {0.1}
    for module in unet.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    checkpoint_blocks(unet.blocks(), policy, keep_random_state=True)
    out = unet(given["x"], given["timesteps"], given["context"], given["fs"])
    close(out, given["out_train_nodrop"])
    loss = torch.nn.functional.mse_loss(out, given["grad_target"])
    assert float(loss.detach()) == pytest.approx(told["loss_mse_vs_grad_target"], abs=1e-5)
    loss.backward()
    found = dict(unet.named_parameters())
    for key, value in given.items():
        if key.startswith("grad."):
            close(found[key.removeprefix("grad.")].grad, value)
    assert found.keys() == told["grad_norms"].keys()
    for key, norm in told["grad_norms"].items():
        assert float(found[key].grad.norm()) == pytest.approx(norm, abs=1e-5), key


def test_dropout_is_drawn_again_when_a_block_is_computed_again():
    def gradients(policy):
        torch.manual_seed(0)
        unet = VideoUNet(TINY).train()
        checkpoint_blocks(unet.blocks(), policy, keep_random_state=True)
        torch.manual_seed(1)
        unet(torch.randn(1, 8, 2, 8, 8), torch.tensor([7]), torch.randn(1, 77 + 32, 24)).square().sum().backward()
        return [parameter.grad for parameter in unet.parameters() if parameter.grad is not None]

    for plain, again in zip(gradients("none"), gradients("full"), strict=True):
        torch.testing.assert_close(again, plain)


def test_the_full_network_runs_without_waiting_for_a_number():
    """On the meta device there are no numbers, so that nothing can be looked up in a tensor."""
    with torch.device("meta"):
        unet = VideoUNet(PUBLISHED["512"].unet)
        given = torch.zeros(2, 8, 16, 40, 64), torch.zeros(2, dtype=torch.long), torch.zeros(2, 77 + 256, 1024)
        assert unet(*given, torch.zeros(2, dtype=torch.long)).shape == (2, 4, 16, 40, 64)
        assert unet(*given).device.type == "meta"
        assert Resampler(PUBLISHED["512"].resampler)(torch.zeros(2, 257, 1280)).shape == (2, 256, 1024)
    assert len(unet.blocks()) == 22 + 16 + 17
    blocks = set(unet.blocks())
    assert not [inner for block in blocks for inner in block.modules() if inner is not block and inner in blocks]


def test_group_norms_are_computed_in_32_bits():
    torch.manual_seed(0)
    norm = GroupNorm(32)
    x = (torch.randn(1, 32, 64) + 100).bfloat16()
    expected = torch.nn.functional.group_norm(x.double(), 32).float()
    in_half = norm.bfloat16()(x)
    assert in_half.dtype == torch.bfloat16
    close(in_half.float(), expected, 0.02)  # bf16 statistics of such numbers are off by several deviations
    with torch.autocast("cpu", torch.bfloat16):
        close(GroupNorm(32)(x).float(), expected, 0.02)


@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
def test_mixed_precision_stays_near(weights):
    torch.manual_seed(0)
    unet = VideoUNet(TINY).eval()
    given = torch.randn(1, 8, 4, 8, 8), torch.tensor([500]), torch.randn(1, 77 + 64, 24), torch.tensor([10])
    with torch.no_grad():
        exact = unet(*given)
        with torch.autocast("cpu", torch.bfloat16):
            mixed = unet.to(weights)(*given)
    assert mixed.dtype == torch.bfloat16
    assert float((mixed.float() - exact).norm() / exact.norm()) < 0.05


def test_one_frames_picture_reaches_that_frame_through_its_own_tokens():
    """Without convolutions along time and attention along it, image tokens of a frame move nothing else."""
    torch.manual_seed(0)
    unet = VideoUNet(TINY).eval()
    x, context = torch.randn(1, 8, 4, 8, 8), torch.randn(1, 77 + 64, 24)
    other = context.clone()
    other[:, 77 + 2 * 16 : 77 + 3 * 16] += 1  # of frame 2
    block = unet.input_blocks[1][1]
    tokens = [c[:, 77:].unflatten(1, (4, 16)).flatten(0, 1) for c in (context, other)]
    hidden = torch.randn(4, 32, 8, 8)
    with torch.no_grad():
        one, two = (block(hidden, context[:, :77], image) for image in tokens)
        moved = (one - two).abs().amax((1, 2, 3))
        assert moved[2] > 1e-4 and moved[[0, 1, 3]].max() == 0
        assert not torch.equal(unet(x, torch.tensor([5]), context), unet(x, torch.tensor([5]), other))


# --- encoders --------------------------------------------------------------------------------------------------------


def test_towers_resampler_and_autoencoder_compute_what_the_references_do(base):
    given = vectors("encoders")
    with torch.no_grad():
        text = encoders.text_states(base.text_tower(torch.float32), given["text_tokens"])
        close(text, given["text_penultimate_ln"])
        pixels = (given["image_u8"] / 255 - 0.5) * 2
        close(encoders.clip_pixels(pixels)[..., ::8, ::8], given["clip_preprocessed_sub8"])
        image = encoders.image_states(base.image_tower(torch.float32), pixels)
        close(image, given["vision_tokens"])
        resampler = base.resampler()
        close(resampler(image), given["image_tokens"])
        close(resampler(given["resampler_in"]), given["resampler_out"])

        vae = base.vae(torch.float32)
        posterior = vae.encode(given["vae_pixels"]).latent_dist
        close(torch.cat([posterior.mean, posterior.logvar], 1), given["vae_moments"])
        latents = base.facts.scale_factor * (posterior.mean + posterior.std * given["vae_noise"])
        close(latents, given["vae_latent_scaled"])
        close(vae.decode(given["vae_latent_scaled"] / base.facts.scale_factor).sample, given["vae_decoded"])


@pytest.mark.parametrize("number", [0, 1])
def test_pictures_are_fitted_as_for_the_reference(number):
    given = vectors("image_preprocess")
    fitted = encoders.clip_pixels((given[f"img{number}_u8"] / 255 - 0.5) * 2)
    close(fitted[..., ::4, ::4], given[f"img{number}_clip224_sub4"])


def test_prompts_become_the_references_tokens():
    cases = json.loads((VECTORS / "tokenizer_cases.json").read_text(encoding="utf-8"))
    assert tokenize(list(cases)).tolist() == list(cases.values())
    assert tokenize([]).shape == (0, 77)
    assert cleaned("  It&amp;amp;s \n ＡBC ") == "it&s abc"


def test_a_base_with_a_tokenizer_of_its_own_uses_it(tmp_path):
    vocabulary = write_clip_tokenizer(tmp_path / "tokenizer")
    facts = replace(PUBLISHED["512"].text, vocab_size=len(vocabulary))
    ids = tokenize(["A red  BALL", "x" * 500], tmp_path / "tokenizer", facts)
    words = [vocabulary[word + "</w>"] for word in ("a", "red", "ball")]
    start, end = len(vocabulary) - 2, len(vocabulary) - 1
    assert ids[0].tolist() == [start, *words, end] + [0] * 72
    assert ids[1, -1] == end and ids.shape == (2, 77)
    with pytest.raises(ModelError, match="knows 100 tokens"):
        tokenize(["cat"], None, replace(facts, vocab_size=100))
    with pytest.raises(ModelError, match=r"tokenizer in .* cannot be read"):
        tokenize(["cat"], tmp_path / "nothing")


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("variant", "file"), [("256", "256"), ("512", "512"), ("512-interp", "512"), ("1024", "1024")])
def test_every_name_and_shape_of_the_published_files_is_known(variant, file):
    listed = json.loads(gzip.decompress((DATA / "dynamicrafter_keys.json.gz").read_bytes()))[file]
    facts = PUBLISHED[variant]
    weights, schedule, unused = names.weights_of(facts), names.schedule_names(facts), names.leftovers(facts)
    assert len(weights) + len(schedule) + len(unused) == len(listed)
    assert weights.keys() | schedule | unused == listed.keys()
    assert all(list(weight.shape) == listed[key] for key, weight in weights.items())
    for part in names.PARTS:
        own = names.empty(part, facts).state_dict()
        places = [key for weight in weights.values() if weight.part == part for key in weight.ours]
        assert sorted(places) == sorted(own)


def test_what_is_read_is_what_was_written(base):
    state = tiny_state()
    written = {}
    for part in names.PARTS:
        written |= names.in_reference(base._part(part, torch.float32).state_dict(), part, base.facts)
    rest = state.keys() - written.keys()
    assert rest == set(base.leftovers()) | base.schedule().keys()
    assert all(torch.equal(value, state[key]) for key, value in written.items())
    passed_on = dict(base.tensors())
    assert list(passed_on) == base.keys() and passed_on.keys() == state.keys()
    assert base.unet(torch.bfloat16).out[2].weight.dtype == torch.bfloat16
    assert "cond_stage_model.model.transformer.resblocks.2.ln_1.weight" in base.leftovers()


@pytest.mark.parametrize("shape", ["state_dict", "twice", "deepspeed", "flat", "lightning"])
def test_checkpoints_come_as_they_were_wrapped(tmp_path, shape):
    state = tiny_state()
    wrapped = {
        "state_dict": {"state_dict": state},
        "twice": {"state_dict": {"state_dict": state}},
        "deepspeed": {"module": {f"_forward_module.{key}": value for key, value in state.items()}},
        "flat": state,
        "lightning": {"epoch": 3, "global_step": 20, "state_dict": state, "optimizer_states": [], "callbacks": {}},
    }[shape]
    torch.save(wrapped, write_base(tmp_path) / "model.ckpt")
    base = BaseModel(str(tmp_path / "model.ckpt"))
    assert base.keys() == list(state)
    resampler = base.resampler()
    (tmp_path / "model.ckpt").unlink()  # nothing is left to be read from it
    assert torch.equal(resampler.latents, state["image_proj_model.latents"])


def test_a_256_file_with_its_old_name_of_fps_loads(tmp_path):
    state = tiny_state("256")
    renamed = {key.replace("fps_embedding", "framestride_embed"): value for key, value in state.items()}
    assert renamed.keys() != state.keys()
    torch.save({"state_dict": renamed}, write_base(tmp_path, "256") / "model.ckpt")
    base = BaseModel(str(tmp_path))
    assert base.facts.variant == "256" and set(base.keys()) == set(state)
    given, unet = vectors("unet_256"), base.unet(torch.float32)
    with torch.no_grad():
        close(unet(given["x"], given["timesteps"], given["context"], given["fs"]), given["out"])


def test_every_way_a_file_does_not_fit_is_one_sentence(tmp_path):
    folder, state = write_base(tmp_path), tiny_state()
    file = folder / "model.safetensors"

    def refused(changed: dict[str, torch.Tensor]) -> str:
        save_file(changed, file)
        with pytest.raises(ModelError) as error:
            BaseModel(str(folder))
        assert "\n" not in str(error.value)
        return str(error.value)

    lost = "model.diffusion_model.middle_block.0.temopral_conv.conv4.3.bias"
    assert f"lacks {lost}" in refused({key: value for key, value in state.items() if key != lost})
    assert "lacks betas" in refused({key: value for key, value in state.items() if key != "betas"})
    assert "has model.extra too many" in refused(state | {"model.extra": torch.zeros(1)})
    assert "attn2.alpha" in refused(state | vectors("tiny256_alpha"))
    assert f"{lost} is (63,), but (64,) is needed" in refused(state | {lost: torch.zeros(63)})
    adapter = {"model.diffusion_model.time_embed.0.lora_a.weight": torch.zeros(2, 32)}
    assert "has a LoRA beside its weights" in refused(state | adapter)
    clip = {key: value for key, value in state.items() if key.startswith(("cond_stage_model", "embedder"))}
    assert "is no DynamiCrafter: it has no model.diffusion_model" in refused(clip)
    assert "stores another noise (alphas_cumprod)" in refused(state | {"alphas_cumprod": state["alphas_cumprod"] * 0.9})

    (folder / "config.yaml").unlink()
    save_file(state, file)
    with pytest.raises(ModelError, match="does not say which DynamiCrafter it is; set variant"):
        BaseModel(str(file.rename(folder / "weights.safetensors")))
    with pytest.raises(ModelError, match="is not a whole DynamiCrafter 512: it lacks cond_stage_model"):
        BaseModel(str(folder / "weights.safetensors"), "512")


def test_files_that_are_none_are_refused(tmp_path):
    folder = write_base(tmp_path)
    with pytest.raises(ModelError, match=r"holds no model.safetensors or model.ckpt"):
        BaseModel(str(folder))
    with pytest.raises(ModelError, match="does not exist; give a file, a folder or a Hub id"):
        BaseModel(str(folder / "nothing.ckpt"))
    with pytest.raises(ModelError, match="is not a model file"):
        BaseModel(str(folder / "config.yaml"))
    state = {key: value for key, value in tiny_state().items() if key.startswith("image_proj")}
    torch.save({"state_dict": state}, folder / "model.ckpt")
    save_file(state, folder / "model.safetensors")
    for name in ("model.ckpt", "model.safetensors"):
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(ModelError, match=f"{name} cannot be read as weights"):
            BaseModel(str(folder / name))
    torch.save({"state_dict": state, "callback": Path("x")}, folder / "model.ckpt")
    with pytest.raises(ModelError, match="holds more than plain tensors"):
        BaseModel(str(folder / "model.ckpt"))


def test_the_fingerprint_is_that_of_the_files(base, tmp_path):
    save_file(tiny_state(), write_base(tmp_path) / "model.safetensors")
    copy = BaseModel(str(tmp_path))
    assert copy.identity() == base.identity()
    write_clip_tokenizer(tmp_path / "tokenizer")
    assert copy.identity() != base.identity()
    assert ResBlock in {type(block) for block in base.unet(torch.float32).blocks()}
