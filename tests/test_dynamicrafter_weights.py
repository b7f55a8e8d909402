"""DynamiCrafter's files: what a run saves, what the fork writes, what is merged, and what cannot be used."""

from __future__ import annotations

import json
import logging
import shutil
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.test_dynamicrafter import PICTURE, frames, sample_model, train, train_model
from trainers import lora
from trainers.events import read as read_events
from trainers.export import main as export_main
from trainers.families.base import ExportRequest, ModelError
from trainers.families.dynamicrafter import commands
from trainers.families.dynamicrafter.checkpoint import WHOLE, read_take
from trainers.families.dynamicrafter.export import export, name_for, told_by_name
from trainers.families.streaming import write_tensors
from trainers.runs import RunFolder
from trainers.sample import main as sample_main
from trainers.settings import dump_yaml
from trainers.train import main as train_main

UNET = "model.diffusion_model."
BESIDE = ("config.yaml", "open_clip_config.json")


@pytest.fixture(scope="module")
def trained(dynamicrafter_bases, tmp_path_factory):
    """A model whose LoRA was trained for a few large steps, and the checkpoint folder that it was saved to."""
    model = train_model(dynamicrafter_bases("512"), adapter={"rank": 4})
    train(model, 3, learning_rate=3e-2)
    return model, save(model, tmp_path_factory.mktemp("run") / "step-000003")


def save(model, folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "meta.json").write_text(json.dumps(model.save(folder)), encoding="utf-8")
    return folder


def whole(file: Path, base: Path) -> Path:
    """A merged file as a base: with what stands beside the one that it was made of."""
    folder = file.parent / f"base_{file.stem}_{file.suffix[1:]}"
    folder.mkdir()
    shutil.copyfile(file, folder / f"model{file.suffix}")
    for name in BESIDE:
        shutil.copyfile(base / name, folder / name)
    shutil.copytree(base / "tokenizer", folder / "tokenizer")
    return folder


def as_the_fork(folder: Path, **more: torch.Tensor) -> dict[str, torch.Tensor]:
    """The tensors of a LoRA as the fork writes them: with adapters of CLIP that do nothing, and without a word."""
    state = load_file(folder / lora.FILE_NAME)
    for path in ("cond_stage_model.model.transformer.resblocks.0.mlp.c_fc", "embedder.model.visual.transformer.x"):
        state |= {f"{path}.lora_a.weight": torch.randn(4, 8), f"{path}.lora_b.weight": torch.zeros(8, 4)}
    return {**state, **more}


# --- checkpoints of a run --------------------------------------------------------------------------------------------


def test_a_lora_is_saved_in_the_references_names_and_loads_bit_for_bit(trained, dynamicrafter_bases):
    model, folder = trained
    with safe_open(folder / lora.FILE_NAME, "pt") as opened:
        keys, facts = list(opened.keys()), json.loads(opened.metadata()["dailies"])
    assert all(key.startswith(UNET) and key.endswith((".lora_a.weight", ".lora_b.weight")) for key in keys)
    assert f"{UNET}input_blocks.1.1.transformer_blocks.0.attn2.to_k_ip.lora_a.weight" in keys
    assert (facts["rank"], facts["alpha"], facts["variant"]) == (4, 2.0, "512")
    expected = lora.taken(model.network.unet)
    again = train_model(dynamicrafter_bases("512"), adapter={"rank": 4})
    again.load([(folder, 1.0)])
    began = train_model(dynamicrafter_bases("512"), adapter={"rank": 4}, start_from=str(folder / lora.FILE_NAME))
    for found in (again, began):
        for path, layer in lora.taken(found.network.unet).items():
            assert torch.equal(layer.down, expected[path].down)
            assert torch.equal(layer.up, expected[path].up)


def test_a_whole_network_is_saved_and_loads_and_interpolates(tmp_path, dynamicrafter_bases):
    base = dynamicrafter_bases("256")
    model = train_model(base, "full")
    train(model, 2)
    folder = save(model, tmp_path / "step-000002")
    state = load_file(folder / WHOLE)
    assert {key.split(".")[0] for key in state} == {"model", "image_proj_model"}
    assert f"{UNET}fps_embedding.0.weight" in state
    again = train_model(base, "full")
    before = {key: value.clone() for key, value in again.network.state_dict().items()}
    again.load([(folder, 1.0)])
    for key, value in model.network.state_dict().items():
        assert torch.equal(again.network.state_dict()[key], value), key
    shown = sample_model(base)
    plain = frames(shown)
    shown.load([(folder, 0.5)])
    for key, value in shown.network.state_dict().items():
        middle = (before[key] + model.network.state_dict()[key]) / 2
        assert torch.allclose(value, middle, atol=1e-6), key
    shown.load([(folder, 1.0)])
    assert not np.array_equal(plain, frames(shown))
    assert np.array_equal(frames(shown), frames(model))
    shown.load([])
    assert np.array_equal(plain, frames(shown))


def test_takes_act_at_their_strengths_together(trained, dynamicrafter_bases):
    _, folder = trained
    model = sample_model(dynamicrafter_bases("512"))
    plain = frames(model)
    model.load([(folder, 1.0)])
    full = frames(model)
    assert not np.array_equal(plain, full)
    model.load([(folder, 0.5), (folder / lora.FILE_NAME, 0.5)])
    assert np.abs(frames(model).astype(int) - full).max() <= 1
    model.load([(folder, 0.0)])
    assert np.array_equal(frames(model), plain)


def test_a_take_for_what_lies_between_is_sampled_so(tmp_path, dynamicrafter_bases):
    base = dynamicrafter_bases("512")
    folder = save(train_model(base, interp_mode=True), tmp_path / "step-000000")
    model = sample_model(base)
    model.load([(folder, 1.0)])
    assert model.interp
    assert frames(model, end_image=PICTURE).shape[0] == 4
    model.load([])
    assert not model.interp


# --- files of the fork -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["flat.ckpt", "lightning.ckpt", "extracted.safetensors"])
def test_loras_of_the_fork_are_read_without_their_idle_parts(kind, tmp_path, trained, dynamicrafter_bases, caplog):
    folder = trained[1]
    state, file = as_the_fork(folder), tmp_path / kind
    if kind.startswith("lightning"):
        more = load_file(dynamicrafter_bases("512") / "model.safetensors")
        torch.save({"state_dict": {**more, **state}, "epoch": 0, "global_step": 20, "callbacks": {}}, file)
    elif kind.endswith(".ckpt"):
        torch.save(state, file)
    else:
        save_file(state, file)
    with caplog.at_level(logging.WARNING):
        take = read_take(file)
    assert "does not say its strength; it is taken as 0.5" in caplog.text
    own = read_take(folder)
    assert take.lora.keys() == own.lora.keys()
    for path, layer in take.lora.items():
        assert torch.equal(layer.down, own.lora[path].down)
        assert torch.equal(layer.up, own.lora[path].up)
        assert layer.alpha == own.lora[path].alpha == 2.0


def test_adapters_of_clip_that_act_are_spoken_of(tmp_path, trained, caplog):
    key = "cond_stage_model.model.transformer.resblocks.0.mlp.c_fc.lora_b.weight"
    save_file(as_the_fork(trained[1], **{key: torch.ones(8, 4)}), tmp_path / "l.safetensors")
    with caplog.at_level(logging.WARNING):
        read_take(tmp_path / "l.safetensors")
    assert "has trained adapters of CLIP" in caplog.text


def test_extract_writes_what_was_in_the_checkpoint(tmp_path, trained, monkeypatch):
    state = as_the_fork(trained[1])
    torch.save({"state_dict": {**state, "betas": torch.zeros(3)}}, tmp_path / "epoch=0-step=20.ckpt")
    monkeypatch.chdir(tmp_path)
    for ending in ("safetensors", "ckpt"):
        told = commands.extract(["--model", "epoch=0-step=20.ckpt", "--format", ending])
        assert "the file does not say its strength" in told
        written = read_take(tmp_path / f"epoch=0-step=20_lora.{ending}")
        assert written.lora.keys() == read_take(trained[1]).lora.keys()
        assert not written.described
    found = load_file("epoch=0-step=20_lora.safetensors")
    assert set(found) == {key for key in state if key.startswith(UNET)}
    assert all(torch.equal(found[key], state[key]) for key in found)
    with pytest.raises(ModelError, match=r"epoch=0-step=20_lora.ckpt exists already"):
        commands.extract(["--model", "epoch=0-step=20.ckpt", "--format", "ckpt"])
    told = commands.extract(["--model", str(trained[1])])
    assert told.endswith("apply_lora.py needs --alpha 0.5")
    assert read_take(tmp_path / "step-000003_lora.safetensors").described


# --- whole models ----------------------------------------------------------------------------------------------------


def test_the_merged_file_samples_what_the_live_adapter_samples(tmp_path, trained, dynamicrafter_bases, monkeypatch):
    """By the command and by the export, of which one keeps the base's 16 bits and the other writes 32."""
    base, folder = dynamicrafter_bases("512"), trained[1]
    live = sample_model(base)
    plain = frames(live)
    live.load([(folder, 1.0)])
    expected = frames(live).astype(int)
    monkeypatch.chdir(tmp_path)
    told = commands.apply(["--base_model", str(base), "--lora", str(folder), "--dtype", "fp32"])
    assert "at strength 0.5, as it was trained" in told
    file = tmp_path / "dynamicrafter_512_step-000003_applied.safetensors"
    assert np.abs(frames(sample_model(whole(file, base))) - expected).max() <= 1
    export(ExportRequest(folder, "merged", tmp_path / "merged_512.safetensors", "fp32"))
    both = load_file(file), load_file(tmp_path / "merged_512.safetensors")
    assert both[0].keys() == both[1].keys() == load_file(base / "model.safetensors").keys()
    assert all(torch.allclose(both[0][key], both[1][key], atol=1e-6) for key in both[0])
    assert both[0]["alphas_cumprod"].dtype == torch.float32
    half = frames(sample_model(merge(base, folder, tmp_path / "h.safetensors")))
    assert np.abs(half - expected).mean() < 0.2 * np.abs(plain - expected).mean()
    as_pickle = frames(sample_model(merge(base, folder, tmp_path / "p.ckpt", "--format", "ckpt")))
    assert np.array_equal(half, as_pickle)


def merge(base: Path, adapter: Path, out: Path, *more: str) -> Path:
    commands.apply(["--base_model", str(base), "--lora", str(adapter), "--out", str(out), *more])
    return whole(out, base)


def test_the_merge_is_the_forks_formula_at_the_strength_that_is_asked(tmp_path, trained, dynamicrafter_bases):
    base, state = dynamicrafter_bases("512"), as_the_fork(trained[1])
    save_file(state, tmp_path / "theirs.safetensors")
    before = load_file(base / "model.safetensors")
    for words, alpha in (((), 0.5), (("--alpha", "1.0"), 1.0)):
        out = tmp_path / f"m{alpha}.safetensors"
        given = ["--base_model", str(base), "--lora", str(tmp_path / "theirs.safetensors"), "--dtype", "fp32"]
        told = commands.apply([*given, "--out", str(out), *words])
        assert f"at strength {alpha:g}" in told
        assert ("the file does not say its own" in told) == (not words)
        found = load_file(out)
        for key, value in before.items():
            down = state.get(key.replace(".weight", ".lora_a.weight"))
            expected = value.float()
            if down is not None and key.startswith(UNET):
                expected = expected + alpha * (state[key.replace(".weight", ".lora_b.weight")] @ down)
            assert torch.allclose(found[key].float(), expected, atol=1e-6), key


def test_a_network_that_was_trained_whole_goes_into_its_base(tmp_path, dynamicrafter_bases):
    base = dynamicrafter_bases("256")
    model = train_model(base, "full")
    train(model, 1)
    folder = save(model, tmp_path / "step-000001")
    told = export(ExportRequest(folder, "merged", tmp_path / "dynamicrafter_256_own.safetensors", "fp32"))
    assert "ComfyUI" not in told
    merged = sample_model(whole(tmp_path / "dynamicrafter_256_own.safetensors", base))
    assert np.array_equal(frames(merged), frames(model))
    with pytest.raises(ModelError, match=r"is no LoRA, and format lora holds nothing else; merged fits"):
        export(ExportRequest(folder, "lora", tmp_path / "x.safetensors"))


def test_a_256_model_with_the_old_name_of_fps_is_merged_under_the_new_one(tmp_path, dynamicrafter_bases):
    base = dynamicrafter_bases("256")
    old = tmp_path / "old"
    shutil.copytree(base, old)
    state = {
        k.replace("fps_embedding", "framestride_embed"): v for k, v in load_file(base / "model.safetensors").items()
    }
    assert any("framestride_embed" in key for key in state)
    save_file(state, old / "model.safetensors")
    model = train_model(old, adapter={"rank": 2})
    train(model, 1)
    folder = save(model, tmp_path / "step-000001")
    commands.apply(["--base_model", str(old), "--lora", str(folder), "--out", str(tmp_path / "m.safetensors")])
    found = load_file(tmp_path / "m.safetensors")
    assert found.keys() == load_file(base / "model.safetensors").keys()
    key = f"{UNET}fps_embedding.0.weight"
    assert not torch.equal(found[key], load_file(base / "model.safetensors")[key])


def test_a_model_passes_through_little_memory(tmp_path):
    """Each tensor is let go before the next: of 64 of them never two at once."""
    alive = []

    def tensors():
        for number in range(64):
            assert sum(ref() is not None for ref in alive) <= 1
            value = torch.full((256, 256), float(number))
            alive.append(weakref.ref(value))
            yield f"t{number}", value

    layout = {f"t{number}": (torch.float32, (256, 256)) for number in range(64)}
    write_tensors(tmp_path / "a.safetensors", layout, tensors(), {"format": "pt"})
    found = load_file(tmp_path / "a.safetensors")
    assert all(bool((found[f"t{number}"] == number).all()) for number in range(64))


def test_tensors_of_any_type_are_written_as_their_library_does(tmp_path):
    state = {
        "a": torch.randn(3, 5).half(), "b": torch.tensor(2.5), "c": torch.randn(7).bfloat16(),
        "d": torch.arange(5), "e": torch.zeros(0, 4), "f": torch.randn(9).to(torch.float8_e4m3fn),
    }  # fmt: skip
    layout = {key: (value.dtype, value.shape) for key, value in state.items()}
    write_tensors(tmp_path / "a.safetensors", layout, state.items(), {"who": "we"})
    found = load_file(tmp_path / "a.safetensors")
    assert found.keys() == state.keys()
    for key, value in state.items():
        assert found[key].dtype == value.dtype
        assert torch.equal(found[key].float(), value.float())
    with pytest.raises(ValueError, match=r"b is torch.float32 \(1,\), not as laid out"):
        write_tensors(tmp_path / "b.safetensors", {"b": layout["b"]}, [("b", torch.zeros(1))], {})
    with pytest.raises(ValueError, match=r"b were not given"):
        write_tensors(tmp_path / "c.safetensors", {"b": layout["b"]}, [], {})


def test_names_by_which_comfyui_tells_the_model():
    for name, variant in (
        ("dynamicrafter_512_own.safetensors", "512"),
        ("model_epoch=0-step=20_lora_applied.safetensors", None),
        ("DynamiCrafter_512_Interp_a.ckpt", "512-interp"),
        ("tooncrafter_512.ckpt", "toon"),
        ("a_1024.ckpt", "1024"),
    ):
        assert told_by_name(name) == variant
    for variant in ("256", "512", "512-interp", "1024"):
        for what in ("epoch=0-step=20_lora_applied", "step-001024_applied", "interp_512", "cartoon"):
            assert told_by_name(name_for(variant, what, ".safetensors")) == variant


# --- what cannot be used ---------------------------------------------------------------------------------------------


def test_a_lora_of_another_rank_or_model_is_one_sentence(tmp_path, trained, dynamicrafter_bases):
    folder, base = trained[1], dynamicrafter_bases("512")
    with pytest.raises(ModelError, match=r"has rank 4, but adapter.rank is 8: set adapter.rank to that of the file"):
        train_model(base, adapter={"rank": 8}, start_from=str(folder))
    with pytest.raises(ModelError, match=r"is a LoRA and cannot be trained on with method full"):
        train_model(base, "full", start_from=str(folder))
    state = load_file(folder / lora.FILE_NAME)
    first = next(key for key in state if key.endswith("lora_a.weight"))
    cases = {
        "has rank 3 below and 4 above": state | {first: state[first][:3]},
        "cannot be read": {key: value for key, value in state.items() if key != first},
        "adapters of CLIP only": {"embedder.model.x.lora_a.weight": torch.zeros(1, 2)},
        "neither a LoRA nor a network of DynamiCrafter: it holds a": {"a": torch.zeros(1)},
        "is for layers that this model lacks: elsewhere": {
            UNET + "elsewhere.lora_a.weight": torch.zeros(2, 3), UNET + "elsewhere.lora_b.weight": torch.zeros(3, 2),
        },
    }  # fmt: skip
    model = sample_model(base)
    for said, wrong in cases.items():
        save_file({key: value.contiguous() for key, value in wrong.items()}, tmp_path / "x.safetensors")
        with pytest.raises(ModelError, match=said) as told:
            model.load([(tmp_path / "x.safetensors", 1.0)])
        assert "\n" not in str(told.value)
        (tmp_path / "x.safetensors").unlink()


def test_merging_what_does_not_fit_leaves_nothing_behind(tmp_path, trained, dynamicrafter_bases):
    state = load_file(trained[1] / lora.FILE_NAME)
    path = f"{UNET}time_embed.0"
    wide = {f"{path}.lora_a.weight": torch.zeros(4, 99), f"{path}.lora_b.weight": torch.zeros(128, 4)}
    save_file(state | wide, tmp_path / "wide.safetensors")
    out = tmp_path / "out" / "m.safetensors"
    given = ["--base_model", str(dynamicrafter_bases("512")), "--out", str(out), "--lora"]
    with pytest.raises(ModelError, match=r"time_embed.0.weight is \(128, 32\) there, and \(128, 99\) here"):
        commands.apply([*given, str(tmp_path / "wide.safetensors")])
    save_file(state | {f"{path}.lora_b.weight": torch.full((128, 4), 1e9)}, tmp_path / "large.safetensors")
    with pytest.raises(ModelError, match=r"time_embed.0.weight has numbers that torch.float16 cannot hold; use fp32"):
        commands.apply([*given, str(tmp_path / "large.safetensors")])
    assert not out.parent.exists() or not list(out.parent.iterdir())
    save_file({"x": torch.zeros(1)}, tmp_path / "clip.safetensors")
    with pytest.raises(ModelError, match=r"neither a LoRA nor a network"):
        commands.apply([*given, str(tmp_path / "clip.safetensors")])


def test_a_base_that_is_no_whole_model_is_one_sentence(tmp_path, dynamicrafter_bases):
    base = dynamicrafter_bases("512")
    clip = tmp_path / "clip"
    shutil.copytree(base, clip)
    state = load_file(base / "model.safetensors")
    save_file({k: v for k, v in state.items() if k.startswith("embedder")}, clip / "model.safetensors")
    with pytest.raises(ModelError, match=r"is no DynamiCrafter: it has no model.diffusion_model") as told:
        sample_model(clip)
    assert "\n" not in str(told.value)
    other = tmp_path / "other"
    shutil.copytree(base, other)
    save_file({**state, "scale_arr": state["scale_arr"] * 0.5}, other / "model.safetensors")
    with pytest.raises(ModelError, match=r"stores another scale of latents \(scale_arr\) than that of the 512 model"):
        sample_model(other)


# --- runs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "variant"), [("lora", "512"), ("full", "256")])
def test_a_run_goes_on_as_if_it_had_never_stopped(dynamicrafter_bases, tiny_dataset, tmp_path, method, variant):
    """With random frames, dropout, and half of the samples without text or image."""
    settings = {
        "family": "dynamicrafter", "method": method, "base_model": str(dynamicrafter_bases(variant)),
        "mixed_precision": "no", "max_train_steps": 4,
        "dataset": {"path": str(tiny_dataset), "num_frames": 4, "height": 64, "width": 64, "caption_dropout": 0.5},
        "image_dropout": 0.5,
        "adapter": {"rank": 4, "target_modules": ["to_q"]},
        "optimizer": {"learning_rate": 1e-3, "gradient_accumulation_steps": 2},
        "memory": {"gradient_checkpointing": "none"},
        "validation": {
            "every_steps": 2, "prompts": ["a red ball"], "images": [str(tmp_path / "a.png")],
            "num_inference_steps": 2, "loss_draws": 1,
        },
        "checkpoint": {"every_steps": 2},
    }  # fmt: skip
    Image.fromarray(PICTURE).save(tmp_path / "a.png")
    file = tmp_path / "run.yaml"
    file.write_text(dump_yaml(settings))
    whole, parts = (["--config", str(file), "--run-dir", str(tmp_path / name)] for name in ("whole", "parts"))
    assert train_main(whole) == 0
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    shutil.rmtree(RunFolder(tmp_path / "parts").checkpoints()[-1].path)
    assert train_main([*parts, "--resume"]) == 0
    one, other = (read_take(RunFolder(tmp_path / name).checkpoints()[-1].path) for name in ("whole", "parts"))
    assert one.state.keys() == other.state.keys()
    assert all(torch.equal(value, other.state[key]) for key, value in one.state.items())
    assert one.lora.keys() == other.lora.keys()
    for path, layer in one.lora.items():
        assert torch.equal(layer.down, other.lora[path].down)
        assert torch.equal(layer.up, other.lora[path].up)
    events, _ = read_events(RunFolder(tmp_path / "whole").events)
    assert [event["step"] for event in events if event["type"] == "sample"] == [0, 2, 4]


def test_a_run_without_a_cache_learns_the_same(dynamicrafter_bases, tiny_dataset, tmp_path):
    ends = []
    for cached in (True, False):
        settings = {
            "family": "dynamicrafter", "base_model": str(dynamicrafter_bases("512")), "mixed_precision": "no",
            "max_train_steps": 2, "validation": {"every_steps": None},
            "dataset": {"path": str(tiny_dataset), "num_frames": 4, "height": 64, "width": 64, "cache": cached},
            "adapter": {"rank": 2, "target_modules": ["to_q"]}, "optimizer": {"gradient_accumulation_steps": 1},
        }  # fmt: skip
        file, folder = tmp_path / f"{cached}.yaml", tmp_path / f"run-{cached}"
        file.write_text(dump_yaml(settings))
        assert train_main(["--config", str(file), "--run-dir", str(folder)]) == 0
        ends.append(load_file(RunFolder(folder).checkpoints()[-1].path / lora.FILE_NAME))
    assert all(torch.equal(value, ends[1][key]) for key, value in ends[0].items())


def test_a_comparison_ends_with_the_image_that_is_asked_and_its_door_refuses_what_is_none(
    dynamicrafter_bases, tmp_path, capfd
):
    for name, picture in (("a.png", PICTURE), ("b.png", PICTURE[:, ::-1]), ("c.png", 255 - PICTURE)):
        Image.fromarray(np.ascontiguousarray(picture)).save(tmp_path / name)
    (tmp_path / "no.png").write_text("this is no picture")
    base = str(dynamicrafter_bases("512-interp"))
    settings = {
        "family": "dynamicrafter", "base_model": base, "mixed_precision": "no", "prompts": ["a red ball"],
        "images": [str(tmp_path / "a.png")], "num_frames": 4, "height": 64, "width": 64, "num_inference_steps": 2,
        "cache_dir": str(tmp_path / "cache"),
    }  # fmt: skip
    keys = []
    for end in ("b.png", "c.png", "b.png"):
        file = tmp_path / "sample.yaml"
        file.write_text(dump_yaml({**settings, "end_images": [str(tmp_path / end)]}))
        run = tmp_path / f"run{len(keys)}"
        assert sample_main(["--config", str(file), "--run-dir", str(run)]) == 0
        keys.append([clip.name for clip in (run / "samples").glob("*.mp4")])
    assert keys[0] == keys[2] != keys[1], "the key of a clip is that of its pictures"
    capfd.readouterr()
    for field in ("images", "end_images"):
        given = {**settings, "end_images": [str(tmp_path / "b.png")], field: [str(tmp_path / "no.png")]}
        (tmp_path / "sample.yaml").write_text(dump_yaml(given))
        assert sample_main(["--config", str(tmp_path / "sample.yaml"), "--run-dir", str(tmp_path / "none")]) == 1
        told = capfd.readouterr().err
        assert f"{field} cannot be used: no.png is neither an image nor a video" in told
        assert "Traceback" not in told


def test_the_door_has_both_commands(tmp_path, trained, dynamicrafter_bases, capfd):
    save_file(as_the_fork(trained[1]), tmp_path / "l.safetensors")
    base, out = str(dynamicrafter_bases("512")), tmp_path / "dynamicrafter_512_l.safetensors"
    assert export_main(["extract", "--model", str(tmp_path / "l.safetensors"), "--out", str(tmp_path / "e.ckpt")]) == 0
    assert export_main(["apply", "--base_model", base, "--lora", str(tmp_path / "e.ckpt"), "--out", str(out)]) == 0
    assert "a LoRA on " in capfd.readouterr().out
    assert export_main(["apply", "--base_model", base, "--lora", str(tmp_path / "gone"), "--out", str(out)]) == 1
    assert "does not exist" in capfd.readouterr().err
    own = tmp_path / "dynamicrafter_512_own.safetensors"
    assert export_main([str(trained[1]), "--format", "merged", "--out", str(own)]) == 0
    assert export_main([str(trained[1]), "--format", "lora", "--out", str(tmp_path / "o.safetensors")]) == 0
    assert read_take(tmp_path / "o.safetensors").meta["alpha"] == 2.0
