"""CogVideoX's weights on disk: what a run writes, what is read from elsewhere, what others make of it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import CogVideoXTransformer3DModel
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_cogvideox import (
    KINDS,
    PICTURE,
    batch,
    our_frames,
    pipeline,
    pipeline_frames,
    request_for,
    sample_model,
    seeded,
    train_model,
)
from test_cogvideox import train as train_some

from trainers import lora
from trainers.events import read as read_events
from trainers.export import main as export_main
from trainers.families.adapters import AS_TRAINED, as_trained
from trainers.families.base import ExportRequest, ModelError
from trainers.families.cogvideox.checkpoint import Take, read_take
from trainers.families.cogvideox.export import export
from trainers.families.cogvideox.model import CogVideoX
from trainers.loop import loss_of
from trainers.lora import Lora
from trainers.noise import Draws
from trainers.runs import RunFolder
from trainers.settings import dump_yaml
from trainers.train import main as train_main

LAYERS = ("to_q", "to_k", "to_v", "to_out.0")


def saved(model: CogVideoX, folder: Path) -> Path:
    """A checkpoint as the loop writes it."""
    folder.mkdir(parents=True)
    meta = model.save(folder)
    (folder / "meta.json").write_text(json.dumps({**meta, "step": 1}))
    return folder


def moved(base: Path, method: str = "lora", **changes) -> CogVideoX:
    """A model of which the trained weights are far enough from the base's to be seen."""
    model = train_model(base, method, memory={"vae_tiling": False}, **changes)
    with torch.no_grad():
        for name, parameter in model.transformer.named_parameters():
            if parameter.requires_grad and (method == "full" or ".lora_B." in name):
                share = 0.1 if method == "full" else 1.0
                parameter += share * torch.randn(parameter.shape, generator=seeded(len(name)))
    return model


def weights(model: CogVideoX) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in model.transformer.state_dict().items()}


def random_lora(rank: int = 2, alpha: float = 2.0, blocks: int = 2) -> dict[str, Lora]:
    """On the attention of the tiny models, 32 wide."""
    return {
        f"transformer_blocks.{block}.attn1.{layer}": Lora(
            torch.randn(rank, 32, generator=seeded(block * 10 + n)),
            torch.randn(32, rank, generator=seeded(100 + block * 10 + n)),
            alpha,
        )
        for block in range(blocks)
        for n, layer in enumerate(LAYERS)
    }


def output(model: CogVideoX) -> torch.Tensor:
    """What the transformer makes of a fixed input."""
    with torch.no_grad():
        return model.predict(model.example(batch(model), Draws.seeded(3)))


def trained(take: Take) -> Mapping[str, Lora]:
    return as_trained(take.path, take.lora, take.meta)


def same_effect(found: dict[str, Lora], expected: dict[str, Lora]) -> None:
    assert found.keys() == expected.keys()
    for path, layer in expected.items():
        torch.testing.assert_close(found[path].delta(), layer.delta())


# --- what a run writes -----------------------------------------------------------------------------------------------


def test_a_lora_file_is_as_its_readers_want_it(cogvideox_bases, tmp_path):
    """diffusers' names, 32 bits, and rank = alpha wherever somebody looks; what was trained stands in the sidecars."""
    model = moved(cogvideox_bases("cogvideox-5b"), adapter={"rank": 4, "alpha": 2})
    folder = saved(model, tmp_path / "step-000001")
    file = folder / "pytorch_lora_weights.safetensors"
    state = load_file(file)
    assert set(state) == {
        f"transformer.transformer_blocks.{block}.attn1.{layer}.lora_{half}.weight"
        for block in range(2)
        for layer in LAYERS
        for half in "AB"
    }
    assert {value.dtype for value in state.values()} == {torch.float32}
    assert state["transformer.transformer_blocks.0.attn1.to_q.lora_A.weight"].shape == (4, 32)
    with safe_open(file, "pt") as opened:
        header = opened.metadata()
    settings = json.loads(header["lora_adapter_metadata"])
    assert (settings["transformer.r"], settings["transformer.lora_alpha"]) == (4, 4)
    facts = json.loads(header["dailies"])
    assert (facts["rank"], facts["alpha"], facts["family"]) == (4, 2.0, "cogvideox")
    meta = json.loads((folder / "meta.json").read_text())
    assert (meta["rank"], meta["alpha"], meta["method"], meta["learned_positions"]) == (4, 2.0, "lora", True)
    trained = dict(lora.parameters(model.transformer))
    for key, value in trained.items():
        factor = 0.5 if ".lora_B." in key else 1
        assert torch.equal(state[f"transformer.{key}"], value.detach() * factor)


@pytest.mark.parametrize("kind", KINDS)
def test_a_lora_gives_the_same_frames_in_diffusers_at_scale_one(cogvideox_bases, tmp_path, kind):
    """In a plain pipeline that knows nothing of us, in our sampler, and in the run itself."""
    base = cogvideox_bases(kind)
    model = moved(base, adapter={"rank": 3, "alpha": 1})
    folder = saved(model, tmp_path / "step-000001")
    request = request_for(base)
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


def test_strengths_go_from_the_base_to_the_take(cogvideox_bases, tmp_path):
    base = cogvideox_bases("cogvideox-5b")
    folder = saved(moved(base, adapter={"rank": 4, "alpha": 1}), tmp_path / "step-000001")
    model = sample_model(base)
    theirs = pipeline(base)
    theirs.load_lora_weights(folder, adapter_name="x")
    theirs.set_adapters(["x"], [0.5])
    model.load([(folder, 0.5)])
    request = request_for(base)
    assert np.abs(our_frames(model, request, 1).astype(int) - pipeline_frames(theirs, request, 1)).max() <= 1
    model.load([(folder, 0.0)])
    at_zero = output(model)
    model.load([])
    torch.testing.assert_close(output(model), at_zero)


@pytest.mark.parametrize(("rank", "alpha", "rounds"), [(4, 4, False), (4, 8, False), (4, 1, False), (3, 1, True)])
def test_training_goes_on_bit_for_bit(cogvideox_bases, tmp_path, rank, alpha, rounds):
    """Folding alpha rounds unless alpha / rank is a power of two; then the upper halves stand beside the file."""
    base = cogvideox_bases("cogvideox-5b")
    model = moved(base, adapter={"rank": rank, "alpha": alpha})
    folder = saved(model, tmp_path / "step-000001")
    assert (folder / AS_TRAINED).exists() is rounds
    again = train_model(base, adapter={"rank": rank, "alpha": alpha})
    again.load([(folder, 1.0)])
    expected = dict(lora.parameters(model.transformer))
    for key, value in lora.parameters(again.transformer):
        assert torch.equal(value, expected[key]), key
    same_effect(trained(read_take(folder)), read_take(folder).lora)
    other = train_model(base, adapter={"rank": rank, "alpha": 2 * alpha})
    other.load([(folder, 1.0)])
    torch.testing.assert_close(output(other), output(model))
    again.load([])
    torch.testing.assert_close(output(again), output(train_model(base)))


@pytest.mark.parametrize("kind", ["cogvideox", "cogvideox-5b-i2v", "cogvideox-1.5"])
def test_a_full_run_writes_a_transformer_that_diffusers_loads_as_it_is(cogvideox_bases, tmp_path, kind):
    base = cogvideox_bases(kind)
    model = moved(base, "full")
    folder = saved(model, tmp_path / "step-000001")
    transformer = CogVideoXTransformer3DModel.from_pretrained(folder / "transformer")
    request = request_for(base)
    frames = pipeline_frames(pipeline(base, transformer=transformer), request, 2)
    ours = sample_model(base)
    ours.load([(folder, 1.0)])
    assert np.abs(our_frames(ours, request, 2).astype(int) - frames).max() <= 1
    again = train_model(base, "full")
    again.load([(folder, 1.0)])
    for key, value in weights(model).items():
        assert torch.equal(again.transformer.state_dict()[key], value)


def test_full_weights_go_from_the_base_to_the_take_and_back(cogvideox_bases, tmp_path):
    base = cogvideox_bases("cogvideox")
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


def test_a_take_without_learned_positions_is_sampled_without(cogvideox_bases, tmp_path):
    base = cogvideox_bases("cogvideox-5b-i2v")
    for method in ("lora", "full"):
        model = moved(base, method, learned_positions=False)
        folder = saved(model, tmp_path / method)
        ours = sample_model(base)
        ours.load([(folder, 1.0)])
        assert np.array_equal(our_frames(ours, request_for(base), 0), our_frames(model, request_for(base), 0))
        assert our_frames(ours, request_for(base, size=(64, 96)), 0).shape == (9, 64, 96, 3)
        compared = sample_model(base, checkpoints=[str(folder)])  # its base column too
        assert compared.conventions.learned_positions is False
        ours.load([])
        assert ours.conventions.learned_positions is True
    transformer = CogVideoXTransformer3DModel.from_pretrained(tmp_path / "full" / "transformer")
    assert not hasattr(transformer.patch_embed, "pos_embedding")


# --- what is read from elsewhere -------------------------------------------------------------------------------------


def file_of(path: Path, state: dict[str, torch.Tensor], **header: str) -> Path:
    save_file({key: value.contiguous() for key, value in state.items()}, path, metadata={"format": "pt", **header})
    return path


@pytest.mark.parametrize("form", ["plain", "header", "alpha", "both", "peft", "bare"])
def test_loras_from_elsewhere_are_scaled_once(tmp_path, form):
    """Without any word of alpha full strength is B A, as diffusers takes it; header or alpha tensors are believed, and
    where both stand, they are one factor and not two."""
    adapter = random_lora(rank=4, alpha=2.0)
    prefix = {"peft": "base_model.model.transformer.", "bare": ""}.get(form, "transformer.")
    state = {}
    for path, layer in adapter.items():
        state[f"{prefix}{path}.lora_A.weight"], state[f"{prefix}{path}.lora_B.weight"] = layer.down, layer.up
        if form in ("alpha", "both"):
            state[f"{prefix}{path}.alpha"] = torch.tensor(2.0)
    header = {}
    if form in ("header", "both"):
        header["lora_adapter_metadata"] = json.dumps({"transformer.r": 4, "transformer.lora_alpha": 2})
    take = read_take(file_of(tmp_path / "lora.safetensors", state, **header))
    told = form in ("header", "alpha", "both")
    same_effect(take.lora, adapter if told else {p: Lora(a.down, a.up, 4.0) for p, a in adapter.items()})
    assert take.kind == "lora"
    assert trained(take) == take.lora


def test_a_lora_of_diffusers_own_training_script_is_read(cogvideox_bases, tmp_path):
    """As `save_lora_weights` writes it, alone in a folder or by its file."""
    base = cogvideox_bases("cogvideox-5b")
    made = pipeline(base)
    state = {}
    for path, layer in random_lora(4, 4.0).items():
        state[f"{path}.lora_A.weight"], state[f"{path}.lora_B.weight"] = layer.down, layer.up
    made.save_lora_weights(tmp_path / "theirs", transformer_lora_layers=state)
    same_effect(read_take(tmp_path / "theirs").lora, random_lora(4, 4.0))
    same_effect(read_take(tmp_path / "theirs" / "pytorch_lora_weights.safetensors").lora, random_lora(4, 4.0))
    (tmp_path / "theirs" / "pytorch_lora_weights.safetensors").rename(tmp_path / "theirs" / "style.safetensors")
    same_effect(read_take(tmp_path / "theirs").lora, random_lora(4, 4.0))


@pytest.mark.parametrize("wrapper", [None, "module", "state_dict"])
def test_loras_of_sat_are_imported_with_their_scale(cogvideox_bases, tmp_path, wrapper):
    """One layer for query, key and value with three adapters, among the weights of the base, and alpha 1."""
    adapter = random_lora(rank=4, alpha=1.0)
    state = {"model.diffusion_model.transformer.layers.0.attention.query_key_value.original.weight": torch.ones(96, 32)}
    for path, layer in adapter.items():
        block, name = re.fullmatch(r"transformer_blocks\.(\d)\.attn1\.(.+)", path).groups()
        place = ("dense", 0) if name == "to_out.0" else ("query_key_value", LAYERS.index(name))
        for half, value in (("A", layer.down), ("B", layer.up)):
            key = f"model.diffusion_model.transformer.layers.{block}.attention.{place[0]}.matrix_{half}.{place[1]}"
            state[key] = value
    file = tmp_path / "mp_rank_00_model_states.pt"
    torch.save({wrapper: state} if wrapper else state, file)
    take = read_take(file)
    same_effect(take.lora, adapter)
    model = sample_model(cogvideox_bases("cogvideox-5b"))
    model.load([(file, 1.0)])
    report = export(ExportRequest(file, "diffusers-lora", tmp_path / "sat.safetensors"))
    assert "16 keys matched on 8 layers" in report
    same_effect(read_take(tmp_path / "sat.safetensors").lora, adapter)


def refused(text: str, path: Path, model: CogVideoX | None = None) -> None:
    with pytest.raises(ModelError, match=text) as caught:
        model.load([(path, 1.0)]) if model else read_take(path)
    assert "\n" not in str(caught.value)


def test_what_is_no_lora_of_this_family_is_told_in_one_sentence(cogvideox_bases, tiny_base, tmp_path):
    model = sample_model(cogvideox_bases("cogvideox-5b"))
    pair = {"lora_A.weight": torch.ones(2, 32), "lora_B.weight": torch.ones(32, 2)}

    def with_names(name: str, *layers: str) -> Path:
        return file_of(tmp_path / name, {f"{layer}.{key}": value for layer in layers for key, value in pair.items()})

    image = "unet.down_blocks.0.motion_modules.0.transformer_blocks.0.attn1.to_q"
    refused("LoRA of another family: no CogVideoX transformer has unet", with_names("a.safetensors", image))
    refused(
        "layers that this model lacks",
        with_names("b.safetensors", "transformer.transformer_blocks.9.attn1.to_q"),
        model,
    )
    refused(
        "layers that this model lacks",
        with_names("c.safetensors", "transformer.transformer_blocks.0.attn2.to_q"),
        model,
    )
    wide = {"lora_A.weight": torch.ones(2, 3072), "lora_B.weight": torch.ones(3072, 2)}
    larger = {f"transformer.transformer_blocks.0.attn1.to_q.{key}": value for key, value in wide.items()}
    refused("does not fit this model", file_of(tmp_path / "d.safetensors", larger), model)
    refused("is not a LoRA", file_of(tmp_path / "e.safetensors", {"weight": torch.ones(2)}))
    refused("does not exist", tmp_path / "nosuch.safetensors")
    refused("holds nothing that can be loaded", tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "meta.json").write_text(json.dumps({"family": "animatediff"}))
    refused("checkpoint of family animatediff, not of cogvideox", tmp_path / "other")
    refused("not a CogVideoXTransformer3DModel", tiny_base / "unet")
    refused("cannot be read as weights", _text(tmp_path / "f.safetensors"))
    full = saved(moved(cogvideox_bases("cogvideox-1.5"), "full"), tmp_path / "full")
    refused("does not fit this model", full, model)
    half = saved(moved(cogvideox_bases("cogvideox-5b")), tmp_path / "half")
    with pytest.raises(ModelError, match="cannot be trained on with method full"):
        train_model(cogvideox_bases("cogvideox-5b"), "full").load([(half, 1.0)])
    with pytest.raises(ModelError, match="at strength 1"):
        train_model(cogvideox_bases("cogvideox-5b")).load([(half, 0.5)])


def _text(path: Path) -> Path:
    path.write_text("no weights")
    return path


# --- what is written for elsewhere -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_a_lora_goes_out_at_any_strength_and_precision(cogvideox_bases, tmp_path, dtype):
    model = moved(cogvideox_bases("cogvideox-5b"), adapter={"rank": 3, "alpha": 1})
    folder = saved(model, tmp_path / "step-000001")
    out = tmp_path / "style.safetensors"
    report = export(ExportRequest(folder, "diffusers-lora", out, dtype, strength=0.5))
    assert "16 keys matched on 8 layers, rank 3" in report
    kinds = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
    assert {value.dtype for value in load_file(out).values()} == {kinds[dtype]}
    tolerance = {"fp32": 1e-6, "fp16": 1e-3, "bf16": 1e-2}[dtype]
    for path, layer in read_take(folder).lora.items():
        torch.testing.assert_close(read_take(out).lora[path].delta(), 0.5 * layer.delta(), atol=tolerance, rtol=0.02)
    made = pipeline(cogvideox_bases("cogvideox-5b"))
    made.load_lora_weights(out)


@pytest.mark.parametrize("learned", [True, False])
def test_a_lora_is_merged_into_the_transformer_of_its_base(cogvideox_bases, tmp_path, learned):
    base = cogvideox_bases("cogvideox-5b-i2v")
    folder = saved(moved(base, learned_positions=learned), tmp_path / "step-000001")
    report = export(ExportRequest(folder, "diffusers", tmp_path / "transformer"))
    assert "the LoRA merged at strength 1" in report
    merged = CogVideoXTransformer3DModel.from_pretrained(tmp_path / "transformer")
    assert merged.config.use_learned_positional_embeddings is learned
    ours = sample_model(base)
    ours.load([(folder, 1.0)])
    frames = pipeline_frames(pipeline(base, transformer=merged), request_for(base), 0)
    assert np.abs(our_frames(ours, request_for(base), 0).astype(int) - frames).max() <= 1


def test_a_full_checkpoint_goes_out_in_half_precision(cogvideox_bases, tmp_path):
    folder = saved(moved(cogvideox_bases("cogvideox-1.5"), "full"), tmp_path / "step-000001")
    export(ExportRequest(folder, "diffusers", tmp_path / "transformer", "bf16"))
    found = CogVideoXTransformer3DModel.from_pretrained(tmp_path / "transformer", torch_dtype=torch.bfloat16)
    expected = read_take(folder).state
    assert all(torch.equal(value, expected[key].bfloat16()) for key, value in found.state_dict().items())


def test_exports_refuse_what_they_cannot_do(cogvideox_bases, tmp_path, capsys):
    base = cogvideox_bases("cogvideox-5b")
    half, full = saved(moved(base), tmp_path / "half"), saved(moved(base, "full"), tmp_path / "full")

    def told(checkpoint: Path, format: str, **options) -> str:
        with pytest.raises(ModelError) as caught:
            export(ExportRequest(checkpoint, format, tmp_path / "out", **options))
        assert not (tmp_path / "out").exists()
        return str(caught.value)

    assert "known: diffusers-lora, diffusers" in told(half, "nosuch")
    assert "is no LoRA" in told(full, "diffusers-lora")
    assert "only a LoRA is merged" in told(full, "diffusers", strength=0.5)
    assert "format diffusers" in told(half, "diffusers-lora", onto=str(base))
    assert "does not fit" in told(half, "diffusers", onto=str(_wider(base, tmp_path)))
    alone = tmp_path / "alone.safetensors"
    export(ExportRequest(half, "diffusers-lora", alone))
    assert "--onto" in told(file_of(tmp_path / "bare.safetensors", load_file(alone)), "diffusers")
    command = [str(alone), "--format", "diffusers", "--out", str(tmp_path / "merged"), "--family", "cogvideox"]
    assert export_main([*command, "--dtype", "bf16"]) == 0
    assert "merged at strength 1" in capsys.readouterr().out


def _wider(base: Path, tmp_path: Path) -> Path:
    """The same base with a transformer of twice the width."""
    folder = tmp_path / "wider"
    folder.mkdir()
    for part in ("vae", "text_encoder", "tokenizer", "scheduler"):
        (folder / part).symlink_to(base / part)
    config = json.loads((base / "transformer" / "config.json").read_text())
    CogVideoXTransformer3DModel.from_config({**config, "num_attention_heads": 4}).save_pretrained(
        folder / "transformer"
    )
    return folder


# --- a whole run -----------------------------------------------------------------------------------------------------


def run_config(tmp_path: Path, base: Path, dataset: Path, **changes) -> Path:
    settings = {
        "family": "cogvideox",
        "method": "lora",
        "base_model": str(base),
        "mixed_precision": "no",
        "max_train_steps": 4,
        "dataset": {"path": str(dataset), "num_frames": 9, "height": 64, "width": 64, "fps": None,
                    "cache_dir": str(tmp_path / "cache")},
        "adapter": {"rank": 3, "alpha": 1},
        "optimizer": {"learning_rate": 1e-3, "lr_scheduler": "constant"},
        "validation": {"every_steps": None},
        "checkpoint": {"every_steps": 2},
        **changes,
    }  # fmt: skip
    file = tmp_path / f"run-{len(list(tmp_path.iterdir()))}.yaml"
    file.write_text(dump_yaml(settings))
    return file


@pytest.mark.parametrize(("method", "kind"), [("lora", "cogvideox-1.5-i2v"), ("full", "cogvideox")])
def test_a_run_goes_on_as_if_it_had_never_stopped(cogvideox_bases, tiny_dataset, tmp_path, kind, method):
    drawn = {"every_steps": 2, "prompts": ["a red ball"], "num_inference_steps": 1, "loss_draws": 1}
    if "i2v" in kind:
        Image.fromarray(PICTURE).save(tmp_path / "first.png")
        drawn["images"] = [str(tmp_path / "first.png")]
    file = run_config(tmp_path, cogvideox_bases(kind), tiny_dataset, method=method, validation=drawn)
    whole, parts = (["--config", str(file), "--run-dir", str(tmp_path / name)] for name in ("whole", "parts"))
    assert train_main(whole) == 0
    assert train_main([*parts, "--set", "max_train_steps=2"]) == 0
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
    assert all(np.isfinite(event["loss"]) for event in events if event["type"] == "step")


def test_a_run_without_a_cache_learns_the_same(cogvideox_bases, tiny_dataset, tmp_path):
    base = cogvideox_bases("cogvideox-5b-i2v")
    ends = []
    for cached in ("true", "false"):
        file = run_config(tmp_path, base, tiny_dataset, max_train_steps=2)
        folder = tmp_path / f"cache-{cached}"
        assert train_main(["--config", str(file), "--run-dir", str(folder), "--set", f"dataset.cache={cached}"]) == 0
        ends.append(load_file(RunFolder(folder).checkpoints()[-1].path / lora.FILE_NAME))
    assert all(torch.equal(value, ends[1][key]) for key, value in ends[0].items())


def test_a_trained_lora_has_learned(cogvideox_bases, tmp_path):
    base = cogvideox_bases("cogvideox")
    model = train_model(base, adapter={"rank": 8})
    losses = train_some(model, 20, 1e-2)
    folder = saved(model, tmp_path / "step-000020")
    again = sample_model(base)
    again.load([(folder, 1.0)])
    with torch.no_grad():
        example = model.example(batch(model), Draws.seeded(1))
        found = loss_of(again.predict(example), example).item()
    assert found < losses[-1] < losses[0]
    assert found == pytest.approx(loss_of(model.predict(example), example).item(), rel=1e-5)
