"""Mochi's weights on disk: what a run writes, what is read from elsewhere, what others make of it, and Genmo's files in
both directions."""

from __future__ import annotations

import json
import shutil
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLMochi, MochiTransformer3DModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_mochi import (
    Base,
    batch,
    fill_upper,
    our_frames,
    pipeline,
    pipeline_frames,
    request_for,
    sample_model,
    seeded,
    train_model,
)

from examples.tiny.mochi import genmo_vae
from trainers import lora
from trainers.events import read as read_events
from trainers.export import main as export_main
from trainers.families.adapters import AS_TRAINED
from trainers.families.base import ExportRequest, ModelError
from trainers.families.mochi import base_model, names
from trainers.families.mochi.base_model import BaseModel
from trainers.families.mochi.checkpoint import read_take
from trainers.families.mochi.export import export
from trainers.families.mochi.model import Mochi
from trainers.lora import Lora
from trainers.noise import Draws
from trainers.runs import RunFolder
from trainers.settings import dump_yaml
from trainers.train import main as train_main

ADAPTER = {"rank": 4, "alpha": 2, "out_rank": 3, "out_alpha": 1}
#: How many rows diffusers' layers of the tiny model have, and how many columns.
SHAPES = {
    **dict.fromkeys(("to_q", "to_k", "to_v", "to_out.0"), (192, 192)),
    **dict.fromkeys(("add_q_proj", "add_k_proj", "add_v_proj"), (192, 96)),
    "to_add_out": (96, 192),
}


def saved(model: Mochi, folder: Path) -> Path:
    """A checkpoint as the loop writes it."""
    folder.mkdir(parents=True)
    meta = model.save(folder)
    (folder / "meta.json").write_text(json.dumps({**meta, "step": 1}))
    return folder


def moved(base: Base, method: str = "lora", **changes) -> Mochi:
    """A model of which the trained weights are far enough from the base's to be seen."""
    model = train_model(base, method, memory={"vae_tiling": False}, **{"adapter": ADAPTER, **changes})
    if method == "lora":
        fill_upper(model, 0.3)
        return model
    with torch.no_grad():
        for name, parameter in model.transformer.named_parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=seeded(len(name)))
    return model


def weights(model: Mochi) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in model.transformer.state_dict().items()}


def random_lora(rank: int = 2, alpha: float = 2.0, only: tuple[str, ...] = tuple(SHAPES)) -> dict[str, Lora]:
    """On the attention of the tiny model; query, key and value have nothing in common."""
    found = {}
    for block in range(2):
        for number, name in enumerate(only):
            if (block, name) != (1, "to_add_out"):
                rows, columns = SHAPES[name]
                down = torch.randn(rank, columns, generator=seeded(10 * block + number))
                up = 0.1 * torch.randn(rows, rank, generator=seeded(100 + 10 * block + number))
                found[f"transformer_blocks.{block}.attn1.{name}"] = Lora(down, up, alpha)
    return found


def written(path: Path, adapter: dict[str, Lora], **header: str) -> Path:
    """As diffusers writes a LoRA."""
    state = {}
    for name, layer in adapter.items():
        state[f"transformer.{name}.lora_A.weight"], state[f"transformer.{name}.lora_B.weight"] = layer.down, layer.up
    return file_of(path, state, **header)


def file_of(path: Path, state: dict[str, torch.Tensor], **header: str) -> Path:
    save_file({key: value.contiguous() for key, value in state.items()}, path, metadata={"format": "pt", **header})
    return path


def output(model: Mochi) -> torch.Tensor:
    """What the transformer makes of a fixed input."""
    with torch.no_grad():
        return model.predict(trainer_example(model))


def trainer_example(model: Mochi):
    data = batch(model)
    helper = train_model({"base_model": str(model._base.source), "text_encoder": model.config.text_encoder})
    return helper.example(data, Draws.seeded(3))


def same_effect(found: dict[str, Lora], expected: dict[str, Lora]) -> None:
    assert found.keys() == expected.keys()
    for path, layer in expected.items():
        torch.testing.assert_close(found[path].delta(), layer.delta())


# --- what a run writes -----------------------------------------------------------------------------------------------


def test_a_lora_file_is_as_its_readers_want_it(mochi_bases, tmp_path):
    """diffusers' names, 32 bits, rank = alpha wherever somebody looks; what was trained is told beside it."""
    model = moved(mochi_bases("mochi"))
    folder = saved(model, tmp_path / "step-000001")
    file = folder / "pytorch_lora_weights.safetensors"
    state = load_file(file)
    assert len(state) == 2 * 15
    assert {value.dtype for value in state.values()} == {torch.float32}
    with safe_open(file, "pt") as opened:
        header = opened.metadata()
    settings = json.loads(header["lora_adapter_metadata"])
    assert (settings["transformer.r"], settings["transformer.lora_alpha"]) == (4, 4)
    assert (
        set(settings["transformer.rank_pattern"].values()) == {3} == set(settings["transformer.alpha_pattern"].values())
    )
    for told in (json.loads(header["dailies"]), json.loads((folder / "meta.json").read_text())):
        assert (told["family"], told["latent_normalisation"], told["tie_qkv"]) == ("mochi", "consistent", True)
        assert (told["rank"], told["alpha"], told["out_rank"], told["out_alpha"]) == (4, 2.0, 3, 1.0)
    for key, value in lora.parameters(model.transformer):
        factor = 1 if ".lora_A." in key else 1 / 3 if key.split(".attn1.")[1].startswith(("to_out", "to_add")) else 0.5
        torch.testing.assert_close(state[f"transformer.{key}"], value.detach() * factor)


@pytest.mark.parametrize("space", ["genmo", "none"])
def test_how_latents_were_normalised_is_recorded(mochi_bases, tmp_path, space):
    folder = saved(moved(mochi_bases("mochi"), latent_normalisation=space), tmp_path / "step-000001")
    assert json.loads((folder / "meta.json").read_text())["latent_normalisation"] == space
    assert read_take(folder / lora.FILE_NAME).meta["latent_normalisation"] == space


@pytest.mark.parametrize("tied", [True, False])
def test_a_lora_gives_the_same_frames_in_diffusers_at_scale_one(mochi_bases, tmp_path, tied):
    """In a plain pipeline that knows nothing of us, in our sampler, and in the run itself."""
    base, request = mochi_bases("mochi"), request_for()
    model = moved(base, adapter={**ADAPTER, "tie_qkv": tied})
    folder = saved(model, tmp_path / "step-000001")
    theirs = pipeline(base)
    theirs.load_lora_weights(folder)
    ours = sample_model(base)
    ours.load([(folder, 1.0)])
    frames = our_frames(ours, request, 4)
    assert np.abs(frames.astype(int) - pipeline_frames(theirs, request, 4)).max() <= 1
    assert np.abs(frames.astype(int) - our_frames(model, request, 4)).max() <= 1
    ours.load([])
    plain = our_frames(ours, request, 4)
    assert np.abs(frames.astype(int) - plain).max() > 10
    assert np.array_equal(plain, our_frames(sample_model(base), request, 4))


def test_strengths_go_from_the_base_to_the_take(mochi_bases, tmp_path):
    base, request = mochi_bases("mochi"), request_for()
    folder = saved(moved(base), tmp_path / "step-000001")
    model, theirs = sample_model(base), pipeline(base)
    theirs.load_lora_weights(folder, adapter_name="x")
    theirs.set_adapters(["x"], [0.5])
    model.load([(folder, 0.5)])
    assert np.abs(our_frames(model, request, 1).astype(int) - pipeline_frames(theirs, request, 1)).max() <= 1
    model.load([(folder, 0.0)])
    at_zero = output(model)
    model.load([])
    torch.testing.assert_close(output(model), at_zero)


@pytest.mark.parametrize(("alpha", "out_alpha", "rounds"), [(4, 3, False), (8, 1.5, False), (2, 1, True), (3, 3, True)])
@pytest.mark.parametrize("tied", [True, False])
def test_training_goes_on_bit_for_bit(mochi_bases, tmp_path, alpha, out_alpha, rounds, tied):
    """Folding alpha rounds unless alpha / rank is a power of two; then the upper halves stand beside the file."""
    base = mochi_bases("mochi")
    adapter = {"rank": 4, "alpha": alpha, "out_rank": 3, "out_alpha": out_alpha, "tie_qkv": tied}
    model = moved(base, adapter=adapter)
    folder = saved(model, tmp_path / "step-000001")
    assert (folder / AS_TRAINED).exists() is rounds
    again = train_model(base, adapter=adapter)
    again.load([(folder, 1.0)])
    expected = dict(lora.parameters(model.transformer))
    for key, value in lora.parameters(again.transformer):
        assert torch.equal(value, expected[key]), key
    other = train_model(base, adapter={**adapter, "alpha": 2 * alpha})
    other.load([(folder, 1.0)])
    torch.testing.assert_close(output(other), output(model))
    again.load([])
    torch.testing.assert_close(output(again), output(train_model(base)))


def test_halves_that_have_nothing_in_common_are_not_tied_unseen(mochi_bases, tmp_path):
    base = mochi_bases("mochi")
    file = written(tmp_path / "apart.safetensors", random_lora(rank=4, alpha=4.0))
    with pytest.raises(ModelError, match=r"_[kv]_proj\): set adapter.tie_qkv to false"):
        train_model(base).load([(file, 1.0)])
    apart = train_model(base, adapter={"rank": 4, "tie_qkv": False})
    apart.load([(file, 1.0)])
    same_effect(lora.taken(apart.transformer), read_take(file).lora)


@pytest.mark.parametrize("kind", ["mochi", "mochi-genmo"])
def test_a_full_run_writes_a_transformer_that_diffusers_loads_as_it_is(mochi_bases, tmp_path, kind):
    base, request = mochi_bases(kind), request_for()
    model = moved(base, "full")
    folder = saved(model, tmp_path / "step-000001")
    transformer = MochiTransformer3DModel.from_pretrained(folder / "transformer")
    frames = pipeline_frames(pipeline(mochi_bases("mochi"), transformer=transformer), request, 2)
    ours = sample_model(base)
    ours.load([(folder, 1.0)])
    assert np.abs(our_frames(ours, request, 2).astype(int) - frames).max() <= 1
    again = train_model(base, "full")
    again.load([(folder, 1.0)])
    assert all(torch.equal(again.transformer.state_dict()[key], value) for key, value in weights(model).items())


def test_full_weights_go_from_the_base_to_the_take_and_back(mochi_bases, tmp_path):
    base = mochi_bases("mochi")
    model = moved(base, "full")
    folder = saved(model, tmp_path / "step-000001")
    ours = sample_model(base)
    before = weights(ours)
    ours.load([(folder, 0.5)])
    for key, value in weights(ours).items():
        torch.testing.assert_close(value, (before[key] + weights(model)[key]) / 2)
    ours.load([(folder, 1.0), (saved(moved(base), tmp_path / "lora"), 1.0)])
    assert any(".lora_" in key for key in weights(ours))
    ours.load([])
    assert all(torch.equal(value, before[key]) for key, value in weights(ours).items())


# --- Genmo's LoRA ----------------------------------------------------------------------------------------------------


def genmo_of(file: Path) -> tuple[dict[str, torch.Tensor], dict]:
    with safe_open(file, "pt") as opened:
        return load_file(file), json.loads(opened.metadata()["kwargs"])


@pytest.mark.parametrize("tied", [True, False])
def test_a_lora_goes_to_genmo_and_back_with_equal_outputs(mochi_bases, tmp_path, tied):
    """As model_N.lora.safetensors: names without prefix and suffix, alpha = rank, one rank for all outputs."""
    base = mochi_bases("mochi-genmo")
    model = moved(base, adapter={**ADAPTER, "tie_qkv": tied})
    folder = saved(model, tmp_path / "step-000001")
    there, back = tmp_path / "model_1.lora.safetensors", tmp_path / "back.safetensors"
    report = export(ExportRequest(folder, "genmo-lora", there))
    assert f"14 keys matched, rank {4 if tied else 12} of query, key and value and 3 of outputs" in report
    state, kwargs = genmo_of(there)
    rank = 4 if tied else 12
    assert kwargs == {
        "qkv_proj_lora_rank": rank, "qkv_proj_lora_alpha": rank, "qkv_proj_lora_dropout": 0.0,
        "out_proj_lora_rank": 3, "out_proj_lora_alpha": 3, "out_proj_lora_dropout": 0.0,
    }  # fmt: skip
    layers = [f"blocks.{n}.attn.{layer}" for n in range(2) for layer in ("qkv_x", "qkv_y", "proj_x", "proj_y")][:7]
    assert set(state) == {f"{layer}.lora_{half}" for layer in layers for half in "AB"}
    assert state["blocks.1.attn.qkv_y.lora_A"].shape == (rank, 96)
    assert state["blocks.0.attn.qkv_y.lora_B"].shape == (3 * 192, rank)
    export(ExportRequest(there, "diffusers-lora", back))
    expected = output(model)
    for take in (folder, there, back):
        ours = sample_model(base)
        ours.load([(take, 1.0)])
        torch.testing.assert_close(output(ours), expected, atol=1e-4, rtol=1e-4)
    if tied:
        again = train_model(base, adapter=ADAPTER)
        again.load([(there, 1.0)])  # Genmo's file is trained on as well
        torch.testing.assert_close(output(again), expected, atol=1e-5, rtol=1e-5)


def genmo_lora(rank: int = 4, out_rank: int = 2) -> dict[str, torch.Tensor]:
    """As Genmo's trainer names it, for the tiny model."""
    shapes = {"qkv_x": (192, 576), "qkv_y": (96, 576), "proj_x": (192, 192), "proj_y": (192, 96)}
    state = {}
    for block in range(2):
        for number, (layer, (columns, rows)) in enumerate(shapes.items()):
            if (block, layer) != (1, "proj_y"):
                own = rank if layer.startswith("qkv") else out_rank
                name = f"blocks.{block}.attn.{layer}.lora_"
                state[f"{name}A"] = torch.randn(own, columns, generator=seeded(number))
                state[f"{name}B"] = 0.1 * torch.randn(rows, own, generator=seeded(10 + number))
    return state


@pytest.mark.parametrize("form", ["kwargs", "bare", "pickle", "a folder"])
def test_a_lora_of_genmos_trainer_is_read_with_its_scale(mochi_bases, tmp_path, form):
    """Its alpha stands in the header alone; without one it is taken as alpha = rank, as ComfyUI takes it."""
    state = genmo_lora()
    kwargs = {"qkv_proj_lora_rank": 4, "qkv_proj_lora_alpha": 8, "out_proj_lora_rank": 2, "out_proj_lora_alpha": 1}
    header = {} if form in ("bare", "pickle") else {"kwargs": json.dumps(kwargs)}
    (tmp_path / "x").mkdir()
    file = file_of(tmp_path / "x" / "model_200.lora.safetensors", state, **header)
    if form == "pickle":
        file = tmp_path / "model_200.lora.pt"
        torch.save(state, file)
    take = read_take(file.parent if form == "a folder" else file)
    told = "kwargs" in header
    third = state["blocks.1.attn.qkv_y.lora_B"][192:384]
    found = take.lora["transformer_blocks.1.attn1.add_k_proj"]
    torch.testing.assert_close(found.delta(), third @ state["blocks.1.attn.qkv_y.lora_A"] * (2 if told else 1))
    outer = take.lora["transformer_blocks.0.attn1.to_add_out"]
    whole = state["blocks.0.attn.proj_y.lora_B"] @ state["blocks.0.attn.proj_y.lora_A"]
    torch.testing.assert_close(outer.delta(), whole * (0.5 if told else 1))
    assert len(take.lora) == 15
    model = sample_model(mochi_bases("mochi"))
    model.load([(take.path, 1.0)])


def test_ranks_that_differ_are_filled_up(tmp_path):
    """Genmo has one rank for all of its fused layers; what has no LoRA at all is left out."""
    adapter = random_lora(rank=2, alpha=1.0, only=("to_q", "to_v", "add_q_proj", "add_k_proj", "add_v_proj"))
    for name in ("add_q_proj", "add_k_proj", "add_v_proj"):  # these share a half, and their factors differ
        path = f"transformer_blocks.0.attn1.{name}"
        first = adapter["transformer_blocks.0.attn1.add_q_proj"].down
        adapter[path] = Lora(first, adapter[path].up, 3.0 if name == "add_k_proj" else 1.0)
    state, kwargs = names.lora_to_genmo(adapter, "x")
    assert (kwargs["qkv_proj_lora_rank"], kwargs["out_proj_lora_rank"]) == (6, 1)
    assert not any("proj_" in key for key in state)
    assert {value.shape[0] for key, value in state.items() if key.endswith("_A")} == {6}
    assert not state["blocks.0.attn.qkv_y.lora_A"][2:].any()
    assert not state["blocks.0.attn.qkv_x.lora_B"][192:384].any()  # the key has none
    again = names.lora_from_genmo(state, kwargs, "x")
    for path, layer in adapter.items():
        torch.testing.assert_close(again[path].delta(), layer.delta())
    assert not again["transformer_blocks.0.attn1.to_k"].delta().any()


@pytest.mark.parametrize(
    "layer", ["time_embed.pooler.to_q", "transformer_blocks.0.ff.net.2", "transformer_blocks.1.norm1.linear"]
)
def test_what_genmo_has_no_place_for_is_an_error(tmp_path, layer):
    adapter = {**random_lora(), layer: Lora(torch.ones(2, 8), torch.ones(8, 2), 2.0)}
    file = written(tmp_path / "lora.safetensors", adapter)
    with pytest.raises(ModelError, match=f"attention in the blocks only: it has {layer}"):
        export(ExportRequest(file, "genmo-lora", tmp_path / "out.safetensors"))
    assert not (tmp_path / "out.safetensors").exists()


# --- Genmo's weights -------------------------------------------------------------------------------------------------


def test_a_transformer_goes_to_genmo_and_back_bit_for_bit(mochi_bases, tmp_path):
    base = mochi_bases("mochi")
    folder = saved(moved(base, "full"), tmp_path / "step-000001")
    there = tmp_path / "dit.safetensors"
    report = export(ExportRequest(folder, "genmo", there))
    state = load_file(there)
    assert f"wrote {there}: 51 keys matched" in report
    assert state["blocks.0.attn.qkv_x.weight"].shape == (576, 192)
    assert state["blocks.1.mod_y.weight"].shape == (96, 192)
    assert "blocks.1.mlp_y.w1.weight" not in state
    export(ExportRequest(there, "diffusers", tmp_path / "transformer"))
    expected = load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors")
    found = MochiTransformer3DModel.from_pretrained(tmp_path / "transformer").state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(value, expected[key]) for key, value in found.items())
    ours = sample_model(base)
    ours.load([(there, 1.0)])
    again = sample_model(base)
    again.load([(folder, 1.0)])
    assert torch.equal(output(ours), output(again))


@pytest.mark.parametrize("format", ["diffusers", "genmo"])
@pytest.mark.parametrize("kind", ["mochi", "mochi-genmo"])
def test_a_lora_is_merged_into_the_transformer_of_its_base(mochi_bases, tmp_path, kind, format):
    base, request = mochi_bases(kind), request_for()
    folder = saved(moved(base), tmp_path / "step-000001")
    out = tmp_path / ("dit.safetensors" if format == "genmo" else "transformer")
    assert "the LoRA merged at strength 1" in export(ExportRequest(folder, format, out))
    ours, merged = sample_model(base), sample_model(base)
    ours.load([(folder, 1.0)])
    merged.load([(out, 1.0)])
    frames = our_frames(ours, request, 0).astype(int)
    assert np.abs(frames - our_frames(merged, request, 0)).max() <= 1
    assert np.abs(frames - our_frames(sample_model(base), request, 0)).max() > 10


def test_positions_stay_in_32_bits(mochi_bases, tmp_path):
    """In bfloat16 the angles of later frames would be off by degrees."""
    for kind in ("mochi", "mochi-genmo"):
        transformer = sample_model(mochi_bases(kind), mixed_precision="bf16").transformer
        exact = sample_model(mochi_bases("mochi")).transformer.pos_frequencies
        assert transformer.pos_frequencies.dtype == torch.float32
        assert torch.equal(transformer.pos_frequencies, exact)
        assert transformer.proj_out.weight.dtype == torch.bfloat16
    folder = saved(moved(mochi_bases("mochi"), "full"), tmp_path / "full")
    export(ExportRequest(folder, "genmo", tmp_path / "dit.safetensors", "bf16"))
    state = load_file(tmp_path / "dit.safetensors")
    assert state.pop("pos_frequencies").dtype == torch.float32
    assert {value.dtype for value in state.values()} == {torch.bfloat16}


def test_every_weight_of_the_published_encoder_and_decoder_has_its_place():
    """Genmo's names as its files have them, and each of diffusers' with its shape."""
    with torch.device("meta"):
        vae = AutoencoderKLMochi()
    halves = dict(zip(("encoder", "decoder"), genmo_vae(vae), strict=True))
    known = {
        "encoder": {
            "layers.0.weight": (64, 15),
            "layers.3.stack.5.weight": (64, 64, 3, 3, 3),
            "layers.4.layers.0.weight": (128, 64, 1, 2, 2),
            "layers.6.layers.6.attn_block.attn.qkv.weight": (1152, 384),
            "layers.9.attn_block.attn.out.bias": (384,),
            "output_norm.bias": (384,),
            "output_proj.weight": (24, 384),
        },
        "decoder": {
            "blocks.0.0.weight": (768, 12, 1, 1, 1),
            "blocks.0.3.stack.0.weight": (768,),
            "blocks.1.blocks.5.stack.2.weight": (768, 768, 3, 3, 3),
            "blocks.1.proj.weight": (512 * 12, 768),
            "blocks.3.proj.bias": (128 * 4,),
            "blocks.4.2.stack.5.bias": (128,),
            "output_proj.weight": (3, 128),
        },
    }
    rules = {"encoder": names.encoder_rules, "decoder": names.decoder_rules}
    configs = {"encoder": names.encoder_config, "decoder": names.decoder_config}
    made = {}
    for half, state in halves.items():
        for key, shape in known[half].items():
            assert tuple(state[key].shape) == shape, key
        made |= names.to_diffusers(state, rules[half](state), half)
        for name, value in configs[half](state, half).items():
            assert list(value) == list(vae.config[name]) if isinstance(value, list) else value == vae.config[name], name
    assert {key: value.shape for key, value in made.items()} == {k: v.shape for k, v in vae.state_dict().items()}


def test_the_published_transformer_is_told_from_its_shapes():
    with torch.device("meta"):
        transformer = MochiTransformer3DModel()
    state = transformer.state_dict()
    rules = names.transformer_rules(state)
    assert len({rule.genmo for rule in rules}) == len(rules) == 19 + 47 * 18 + 14
    theirs = names.to_genmo(state, rules, "x")
    config = names.transformer_config(theirs, "x")
    assert {key: transformer.config[key] for key in config} == {**config, "out_channels": None}
    back = names.to_diffusers(theirs, names.transformer_rules(theirs), "x")
    assert {key: value.shape for key, value in back.items()} == {key: value.shape for key, value in state.items()}


INNER = {"dit": "blocks.0.attn.proj_x.bias", "encoder": "layers.1.stack.3.bias", "decoder": "blocks.4.0.stack.2.bias"}


@pytest.mark.parametrize("damage", ["too many", "too few", "a shape", "matrices only"])
@pytest.mark.parametrize("file", ["dit.safetensors", "encoder.safetensors", "decoder.safetensors"])
def test_genmos_files_must_be_whole(mochi_bases, tmp_path, file, damage):
    base = mochi_bases("mochi-genmo")
    for name in ("dit.safetensors", "encoder.safetensors", "decoder.safetensors"):
        (tmp_path / name).write_bytes((Path(base["base_model"]) / name).read_bytes())
    state = load_file(tmp_path / file)
    half = file.partition(".")[0]
    if damage == "too many":
        state["blocks.0.more"] = torch.ones(1)
    elif damage == "too few":
        del state[INNER[half]]
    elif damage == "a shape":
        state[INNER[half]] = torch.ones(5)
    else:
        state = {name: value for name, value in state.items() if value.ndim > 1}
    save_file(state, tmp_path / file)
    model = BaseModel(str(tmp_path), base["text_encoder"])
    with pytest.raises(ModelError) as caught:
        model.transformer(torch.float32) if half == "dit" else model.vae(torch.float32, half)
    assert str(tmp_path / file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_with_other_weights_of_these_names_is_no_base(tmp_path):
    for name in ("dit.safetensors", "encoder.safetensors", "decoder.safetensors"):
        save_file({"weight": torch.ones(2, 2)}, tmp_path / name)
    with pytest.raises(ModelError, match="does not hold all of Genmo's"):
        BaseModel(str(tmp_path), "t5")


@pytest.mark.parametrize(
    ("file", "wanted"),
    [
        ("transformer/diffusion_pytorch_model-00001-of-00005.safetensors", True),
        ("transformer/diffusion_pytorch_model.safetensors.index.json", True),
        ("transformer/diffusion_pytorch_model.bf16-00001-of-00003.safetensors", False),
        ("text_encoder/model-00001-of-00004.safetensors", True),
        ("vae/diffusion_pytorch_model.safetensors", True),
        ("vae/diffusion_pytorch_model.bf16.safetensors", False),
        ("tokenizer/spiece.model", True),
        ("dit.safetensors", False),
    ],
)
def test_of_a_repository_each_weight_is_fetched_once(file, wanted):
    assert any(fnmatch(file, pattern) for pattern in base_model._PATTERNS) is wanted


# --- what is read from elsewhere -------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["plain", "header", "alpha", "peft", "bare"])
def test_loras_from_elsewhere_are_scaled_once(tmp_path, form):
    adapter = random_lora(rank=4, alpha=2.0)
    prefix = {"peft": "base_model.model.transformer.", "bare": ""}.get(form, "transformer.")
    state = {}
    for path, layer in adapter.items():
        state[f"{prefix}{path}.lora_A.weight"], state[f"{prefix}{path}.lora_B.weight"] = layer.down, layer.up
        if form == "alpha":
            state[f"{prefix}{path}.alpha"] = torch.tensor(2.0)
    header = {}
    if form == "header":
        header["lora_adapter_metadata"] = json.dumps({"transformer.r": 4, "transformer.lora_alpha": 2})
    take = read_take(file_of(tmp_path / "lora.safetensors", state, **header))
    told = form in ("header", "alpha")
    same_effect(take.lora, adapter if told else {p: Lora(a.down, a.up, 4.0) for p, a in adapter.items()})


def refused(text: str, path: Path, model: Mochi | None = None) -> None:
    with pytest.raises(ModelError, match=text) as caught:
        model.load([(path, 1.0)]) if model else read_take(path)
    assert "\n" not in str(caught.value)


def test_what_is_no_lora_of_this_family_is_told_in_one_sentence(mochi_bases, cogvideox_bases, tmp_path):
    model = sample_model(mochi_bases("mochi"))
    pair = {"lora_A.weight": torch.ones(2, 192), "lora_B.weight": torch.ones(192, 2)}

    def with_names(name: str, *layers: str) -> Path:
        return file_of(tmp_path / name, {f"{layer}.{key}": value for layer in layers for key, value in pair.items()})

    image = "unet.down_blocks.0.motion_modules.0.transformer_blocks.0.attn1.to_q"
    refused("LoRA of another family: no Mochi transformer has unet", with_names("a.safetensors", image))
    other = with_names("b.safetensors", "transformer.transformer_blocks.9.attn1.to_q")
    refused("layers that this model lacks", other, model)
    wide = {"lora_A.weight": torch.ones(2, 3072), "lora_B.weight": torch.ones(3072, 2)}
    larger = {f"transformer.transformer_blocks.0.attn1.to_q.{key}": value for key, value in wide.items()}
    refused("does not fit this model", file_of(tmp_path / "d.safetensors", larger), model)
    refused("is not a LoRA", file_of(tmp_path / "e.safetensors", {"weight": torch.ones(2)}))
    refused("does not exist", tmp_path / "nosuch.safetensors")
    (tmp_path / "empty").mkdir()
    refused("holds nothing that can be loaded", tmp_path / "empty")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "meta.json").write_text(json.dumps({"family": "cogvideox"}))
    refused("checkpoint of family cogvideox, not of mochi", tmp_path / "other")
    refused("not a MochiTransformer3DModel", cogvideox_bases("cogvideox"))
    half = {key: value for key, value in genmo_lora().items() if not key.endswith("0.attn.qkv_x.lora_B")}
    refused(r"blocks.0.attn.qkv_x cannot be read", file_of(tmp_path / "g.safetensors", half))
    refused("settings in its header", file_of(tmp_path / "h.safetensors", genmo_lora(), kwargs="no json"))
    odd = file_of(tmp_path / "i.safetensors", genmo_lora(), kwargs='{"qkv_proj_lora_alpha": "x"}')
    refused("qkv_proj_lora_alpha is 'x', which is no number", odd)
    lora_only = saved(moved(mochi_bases("mochi")), tmp_path / "half")
    with pytest.raises(ModelError, match="cannot be trained on with method full"):
        train_model(mochi_bases("mochi"), "full").load([(lora_only, 1.0)])
    with pytest.raises(ModelError, match="at strength 1"):
        train_model(mochi_bases("mochi"), adapter=ADAPTER).load([(lora_only, 0.5)])


# --- what is written for elsewhere -----------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["diffusers-lora", "genmo-lora"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_lora_goes_out_at_any_strength_and_precision(mochi_bases, tmp_path, dtype, format):
    folder = saved(moved(mochi_bases("mochi")), tmp_path / "step-000001")
    out = tmp_path / "style.safetensors"
    export(ExportRequest(folder, format, out, dtype, strength=0.5))
    assert {value.dtype for value in load_file(out).values()} == {torch.bfloat16 if dtype == "bf16" else torch.float32}
    tolerance = {"fp32": 1e-6, "bf16": 5e-2}[dtype]
    for path, layer in read_take(folder).lora.items():
        torch.testing.assert_close(read_take(out).lora[path].delta(), 0.5 * layer.delta(), atol=tolerance, rtol=0.02)


def test_exports_refuse_what_they_cannot_do(mochi_bases, tmp_path, capsys):
    base = mochi_bases("mochi")
    half, full = saved(moved(base), tmp_path / "half"), saved(moved(base, "full"), tmp_path / "full")

    def told(checkpoint: Path, format: str, out: str = "out", **options) -> str:
        with pytest.raises(ModelError) as caught:
            export(ExportRequest(checkpoint, format, tmp_path / out, **options))
        assert not (tmp_path / out).exists()
        return str(caught.value)

    assert "known: diffusers-lora, genmo-lora, diffusers, genmo" in told(half, "nosuch")
    assert "format diffusers-lora holds nothing else; diffusers fits" in told(full, "diffusers-lora")
    assert "format genmo-lora holds nothing else; genmo fits" in told(full, "genmo-lora")
    assert "only a LoRA is merged" in told(full, "genmo", strength=0.5)
    assert "format diffusers or genmo" in told(half, "genmo-lora", onto=base["base_model"])
    assert "must end in .safetensors" in told(half, "genmo-lora")
    assert "must end in .safetensors" in told(full, "genmo")
    alone = tmp_path / "alone.safetensors"
    export(ExportRequest(half, "diffusers-lora", alone))
    bare = file_of(tmp_path / "bare.safetensors", load_file(alone))
    assert "--onto" in told(bare, "diffusers")
    command = [str(bare), "--format", "genmo", "--out", str(tmp_path / "dit.safetensors"), "--family", "mochi"]
    assert export_main([*command, "--onto", mochi_bases("mochi-genmo")["base_model"]]) == 0
    assert "merged at strength 1" in capsys.readouterr().out


# --- a whole run -----------------------------------------------------------------------------------------------------


def run_config(tmp_path: Path, base: Base, dataset: Path, **changes) -> Path:
    settings = {
        "family": "mochi",
        "method": "lora",
        **base,
        "mixed_precision": "no",
        "max_train_steps": 4,
        "dataset": {"path": str(dataset), "num_frames": 7, "height": 64, "width": 64, "fps": None,
                    "caption_dropout": 0.5, "cache_dir": str(tmp_path / "cache")},
        "adapter": {"rank": 3, "alpha": 1, "dropout": 0.1},
        "optimizer": {"learning_rate": 1e-3, "lr_warmup_steps": 2},
        "validation": {"every_steps": None},
        "checkpoint": {"every_steps": 2},
        **changes,
    }  # fmt: skip
    file = tmp_path / f"run-{len(list(tmp_path.iterdir()))}.yaml"
    file.write_text(dump_yaml(settings))
    return file


@pytest.mark.parametrize(("method", "kind"), [("lora", "mochi-genmo"), ("full", "mochi")])
def test_a_run_goes_on_as_if_it_had_never_stopped(mochi_bases, tiny_dataset, tmp_path, kind, method):
    drawn = {"every_steps": 2, "prompts": ["a red ball"], "num_inference_steps": 2, "loss_draws": 1}
    file = run_config(tmp_path, mochi_bases(kind), tiny_dataset, method=method, validation=drawn)
    whole, parts = (["--config", str(file), "--run-dir", str(tmp_path / name)] for name in ("whole", "parts"))
    assert train_main(whole) == 0
    assert train_main(parts) == 0
    stopped = RunFolder(tmp_path / "parts").checkpoints()[-1].path
    shutil.rmtree(stopped)  # as if it had ended at the checkpoint before, with the rate of a run of four steps
    assert train_main([*parts, "--resume"]) == 0
    ends = [RunFolder(tmp_path / name).checkpoints()[-1].path for name in ("whole", "parts")]
    files = [sorted(file.relative_to(end) for file in end.rglob("*.safetensors")) for end in ends]
    assert files[0] == files[1]
    for name in files[0]:
        one, other = load_file(ends[0] / name), load_file(ends[1] / name)
        assert one.keys() == other.keys()
        assert all(torch.equal(value, other[key]) for key, value in one.items()), name
    events, _ = read_events(RunFolder(tmp_path / "whole").events)
    assert [event["step"] for event in events if event["type"] == "sample"] == [0, 2, 4]
    rates = [event["learning_rate"] for event in events if event["type"] == "step"]
    assert rates[0] == 0
    assert all(np.isfinite(event["loss"]) for event in events if event["type"] == "step")


def test_a_run_without_a_cache_learns_the_same(mochi_bases, tiny_dataset, tmp_path):
    ends = []
    for cached in ("true", "false"):
        file = run_config(tmp_path, mochi_bases("mochi"), tiny_dataset, max_train_steps=2)
        folder = tmp_path / f"cache-{cached}"
        assert train_main(["--config", str(file), "--run-dir", str(folder), "--set", f"dataset.cache={cached}"]) == 0
        ends.append(load_file(RunFolder(folder).checkpoints()[-1].path / lora.FILE_NAME))
    assert all(torch.equal(value, ends[1][key]) for key, value in ends[0].items())
