"""AnimateDiff's weights, both ways: every form in which they are found, and every form in which they are written."""

from __future__ import annotations

import json
import pickle
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import test_animatediff as made
import torch
from diffusers import MotionAdapter, UNetMotionModel
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from test_animatediff import (
    DATA,
    REQUEST,
    fill_lora,
    pipeline,
    pipeline_frames,
    sample_model,
    saved,
    seeded,
    train_model,
)

from trainers import export as door
from trainers import lora
from trainers.families.animatediff import export as exports
from trainers.families.animatediff.checkpoint import (
    from_original,
    motion_part,
    read_motion,
    read_original,
    read_take,
    to_original,
)
from trainers.families.animatediff.export import export, merge_lora
from trainers.families.animatediff.names import diffusers_name, original_names
from trainers.families.base import Example, ExportRequest, ModelError
from trainers.lora import Lora
from trainers.noise import Draws

base, checkpoints, reference = made.base, made.checkpoints, made.reference  # fixtures
METHODS = made.METHODS
MANIFEST = json.loads((DATA.parent / "motion_module_keys.json").read_text())
GOLDEN_LORA = DATA / "motion_lora_original_naming.safetensors"
BLOCK = "down_blocks.0.motion_modules.0.transformer_blocks.0"
ORIGINAL_BLOCK = "down_blocks.0.motion_modules.0.temporal_transformer.transformer_blocks.0"


def write(checkpoint: Path, format: str, out: Path, **options) -> str:
    return export(ExportRequest(checkpoint, format, out, **options))


def refused(text: str, checkpoint: Path, format: str, out: Path, **options) -> None:
    with pytest.raises(ModelError, match=text) as caught:
        write(checkpoint, format, out, **options)
    assert "\n" not in str(caught.value)
    assert not out.exists()


def lora_of(
    module: dict[str, torch.Tensor], layers=("attn1.to_q", "attn2.to_out.0"), rank=2, seed=0
) -> dict[str, Lora]:
    """A LoRA on such layers of every block of a motion module."""
    generator, found = seeded(seed), {}
    for key, value in module.items():
        path = key.removesuffix(".weight")
        if path != key and path.endswith(layers) and value.ndim == 2:
            down = torch.randn(rank, value.shape[1], generator=generator) * 0.2
            found[path] = Lora(down, torch.randn(value.shape[0], rank, generator=generator) * 0.2, float(rank))
    assert found
    return found


def same(found: dict[str, Lora], expected: dict[str, Lora]) -> None:
    assert found.keys() == expected.keys()
    for path, layer in found.items():
        torch.testing.assert_close(layer.delta(), expected[path].delta(), msg=lambda text, path=path: f"{path}: {text}")


@pytest.fixture(scope="module")
def module(base) -> dict[str, torch.Tensor]:
    return read_motion(base / "motion_adapter")[0]


# --- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", list(MANIFEST["files"]))
def test_every_name_and_shape_of_a_whole_module_both_ways(file):
    told = MANIFEST["files"][file]
    original = {}
    for place, channels in told["modules"].items():
        sizes = {"C": channels, "4C": 4 * channels, "8C": 8 * channels, "L": told["positions"]}
        for part, shape in MANIFEST["parts"].items():
            original[f"{place}.temporal_transformer.{part}"] = tuple(sizes.get(size, size) for size in shape)
    assert len(original) == told["keys"] == {"mm_sd_v15_v2": 588}.get(file, 560)
    with torch.device("meta"):
        adapter = MotionAdapter(
            block_out_channels=(320, 640, 1280, 1280),
            motion_layers_per_block=2,
            motion_num_attention_heads=8,
            motion_norm_num_groups=32,
            motion_max_seq_length=told["positions"],
            use_motion_mid_block="mid_block.motion_modules.0" in told["modules"],
        )
    assert sum(parameter.numel() for parameter in adapter.parameters()) == told["parameters"]
    state = adapter.state_dict()
    assert len(state) == {"mm_sd_v15_v2": 567}.get(file, 540)
    assert {key: tuple(value.shape) for key, value in to_original(state).items()} == original
    assert {diffusers_name(key): shape for key, shape in original.items()} == {
        key: tuple(value.shape) for key, value in state.items()
    }


@pytest.mark.parametrize(
    "name",
    [
        "down_blocks.0.attentions.0.norm.weight",
        "down_blocks.0.motion_modules.0.temporal_transformer.attn1.to_q.weight",
        "down_blocks.0.motion_modules.0.temporal_transformer.transformer_blocks.0.attn1.to_q.weight",
        "down_blocks.0.motion_modules.0.temporal_transformer.transformer_blocks.0.attention_blocks.2.to_q.weight",
        "down_blocks.0.motion_modules.0.temporal_transformer.camera.weight",
        "down_blocks.0.motion_modules.0.transformer_blocks.0.attention_blocks.0.to_q.weight",
        "down_blocks.0.motion_modules.0.transformer_blocks.0.pos_embed",
    ],
)
def test_other_names_are_no_motion_modules(name):
    assert diffusers_name(name) is None
    assert original_names(name) == ()


# --- reading motion modules ------------------------------------------------------------------------------------------


FORMS = {
    "bare": lambda state: state,
    "state_dict": lambda state: {"state_dict": {**state, "animatediff_config": {"a": 1}}, "epoch": 3, "global_step": 7},
    "module": lambda state: {f"module.{key}": value for key, value in state.items()},
    "wrapped module": lambda state: {"state_dict": {f"module.{key}": value for key, value in state.items()}},
    "config beside": lambda state: {**state, "animatediff_config": "{}"},
    "step beside": lambda state: {**state, "global_step": 200, "epoch": 1},
    "whole": lambda state: {
        "epoch": 1,
        "global_step": 7,
        "state_dict": {f"module.{key}": value for key, value in (IMAGE | state).items()},
    },
    "without pe": lambda state: {key: value for key, value in state.items() if not key.endswith(".pe")},
    "half": lambda state: {key: value.half() for key, value in state.items()},
}  # fmt: skip
v0 = torch.zeros(1)
IMAGE = {"conv_in.weight": v0, "mid_block.resnets.0.conv1.weight": v0}
ONLY_TENSORS = ("bare", "module", "without pe", "half")  # what a safetensors file can hold


@pytest.mark.parametrize(
    ("form", "ending"),
    [(form, ending) for form in FORMS for ending in (".ckpt", ".pth", ".pt", ".bin")]
    + [(form, ".safetensors") for form in ONLY_TENSORS],
)
def test_original_files_of_every_form_are_read(module, tmp_path, form, ending):
    state = FORMS[form](to_original(module))
    path = tmp_path / f"mm{ending}"
    if ending == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    again, facts = read_original(path)
    assert again.keys() == module.keys()
    for key, value in again.items():
        if form == "half":
            torch.testing.assert_close(value.float(), module[key], atol=2e-3, rtol=1e-3)
        else:
            assert torch.equal(value, module[key]), key
    assert (facts.positions, facts.mid_block, facts.version, facts.heads) == (32, True, "v2", None)
    assert read_take(path).kind == "motion_module"


@pytest.mark.parametrize(
    ("version", "positions", "mid_block"), [("v1", 24, False), ("v2", 32, True), ("v3", 32, False)]
)
def test_versions_are_told_apart(module, tmp_path, version, positions, mid_block):
    state = {key: value for key, value in module.items() if mid_block or not key.startswith("mid_block")}
    state = {k: v[:, :positions] if k.endswith(".pe") else v for k, v in state.items()}
    torch.save(to_original(state), tmp_path / "mm.pth")
    _, facts = read_motion(tmp_path / "mm.pth")
    assert (facts.version, facts.positions, facts.mid_block) == (version, positions, mid_block)


def test_stretched_encodings_survive(base, module, tmp_path):
    stretched = {k: v.repeat_interleave(2, dim=1) if k.endswith(".pe") else v for k, v in module.items()}
    file = tmp_path / "long.safetensors"
    save_file(to_original(stretched), file, metadata={"dailies": json.dumps({"heads": 4})})
    model = train_model(base, motion_adapter=str(file), dataset={"num_frames": 48})
    pe = f"{BLOCK}.pos_embed.pe"
    assert torch.equal(model.unet.state_dict()[pe], stretched[pe])
    folder = saved(model, tmp_path / "step-000001")
    assert torch.equal(load_file(folder / "diffusion_pytorch_model.safetensors")[pe], stretched[pe])
    report = write(folder, "original", tmp_path / "out.safetensors")
    assert "64 positions" in report
    assert "sd-webui reads 24 or 32 positions only" in report
    again, facts = read_original(tmp_path / "out.safetensors")
    assert torch.equal(again[pe], stretched[pe])
    assert (facts.version, facts.positions) == ("v2", 64)


def test_a_stretched_v3_stays_one(module, tmp_path):
    long = {k: v.repeat_interleave(2, dim=1) if k.endswith(".pe") else v for k, v in module.items()}
    long = {key: value for key, value in long.items() if not key.startswith("mid_block")}
    header = {"dailies": json.dumps({"heads": 4, "version": "v3"})}
    save_file(to_original(long), tmp_path / "v3.safetensors", metadata=header)
    report = write(tmp_path / "v3.safetensors", "original", tmp_path / "again.safetensors")
    assert "ComfyUI will take it for a v1" in report
    write(tmp_path / "again.safetensors", "diffusers", tmp_path / "adapter")
    for path in (tmp_path / "again.safetensors", tmp_path / "adapter"):
        assert read_motion(path)[1].version == "v3"
        assert read_motion(path)[1].heads == 4


def test_a_header_is_not_believed_blindly(module, tmp_path):
    for number, facts in enumerate(('{"heads": "four", "version": "v9", "norm_semantics": ["x"]}', "[1]", "{", '"v3"')):
        save_file(to_original(module), tmp_path / f"{number}.safetensors", metadata={"dailies": facts})
        take = read_take(tmp_path / f"{number}.safetensors")
        assert take.meta == {}
        assert (take.facts.heads, take.facts.version) == (None, "v2")


def test_folders_of_diffusers_are_read(base, module, tmp_path):
    adapter = MotionAdapter.from_pretrained(base / "motion_adapter")
    adapter.save_pretrained(tmp_path / "shards", max_shard_size="200KB")
    assert (tmp_path / "shards" / "diffusion_pytorch_model.safetensors.index.json").is_file()
    adapter.save_pretrained(tmp_path / "pickle", safe_serialization=False)
    adapter.half().save_pretrained(tmp_path / "half", variant="fp16")
    for name in ("shards", "pickle", "half"):
        state, facts = read_motion(tmp_path / name)
        assert state.keys() == module.keys()
        assert (facts.heads, facts.groups, facts.positions) == (4, 8, 32)
        for key, value in state.items():
            torch.testing.assert_close(value.float(), module[key], atol=0 if name != "half" else 2e-3, rtol=0)
    alone = tmp_path / "shards2" / "diffusion_pytorch_model.safetensors"
    alone.parent.mkdir()
    shutil.copy(base / "motion_adapter" / alone.name, alone)
    assert read_motion(alone)[1].heads is None
    shutil.copy(base / "motion_adapter" / "config.json", alone.parent)
    assert read_motion(alone)[1].heads == 4, "the folder's config speaks for its file"


@pytest.fixture(scope="module")
def trained_unet(base) -> UNetMotionModel:
    """A UNetMotionModel as swift's full training saves it: its motion modules are not the adapter's."""
    model = sample_model(base, motion_adapter=str(base / "motion_adapter"))
    with torch.no_grad():
        for key, value in motion_part(model.unet.state_dict()).items():
            if not key.endswith(".pe"):
                value += torch.randn(value.shape, generator=seeded(len(key))) * 0.05
    return model.unet


def test_a_whole_denoiser_of_swift_is_read(base, module, trained_unet, tmp_path):
    folder = tmp_path / "iter-100"
    trained_unet.save_pretrained(folder)
    take = read_take(folder)
    assert take.kind == "full"
    assert take.meta["norm_semantics"] == "diffusers", "swift trains diffusers' own model"
    state, facts = read_motion(folder)
    assert state.keys() == module.keys()
    assert facts.heads == 4
    expected = trained_unet.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in state.items())
    model = sample_model(base, checkpoints=[str(folder)], motion_adapter=str(base / "motion_adapter"))
    model.load([(folder, 1.0)])
    assert all(torch.equal(value, expected[key]) for key, value in model.unet.state_dict().items())
    assert model.conventions.norm_semantics == "diffusers"
    report = write(folder, "original", tmp_path / "mm.safetensors")
    assert "its image model are no part of this format" in report
    assert all(torch.equal(v, expected[k]) for k, v in read_original(tmp_path / "mm.safetensors")[0].items())


def test_a_merged_pipeline_of_swift_is_read_where_it_was_merged(base, module, trained_unet, tmp_path):
    """Its motion_adapter is the one from before the merge."""
    merged = tmp_path / "iter-100-merged"
    trained_unet.save_pretrained(merged / "unet")
    shutil.copytree(base / "motion_adapter", merged / "motion_adapter")
    shutil.copy(base / "model_index.json", merged / "model_index.json")
    expected = trained_unet.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in read_motion(merged)[0].items())
    plain = tmp_path / "pipeline"
    shutil.copytree(base / "unet", plain / "unet")
    shutil.copytree(base / "motion_adapter", plain / "motion_adapter")
    shutil.copy(base / "model_index.json", plain / "model_index.json")
    assert all(torch.equal(value, module[key]) for key, value in read_motion(plain)[0].items())
    shutil.rmtree(plain / "motion_adapter")
    with pytest.raises(ModelError, match="is a pipeline without motion"):
        read_motion(plain)


# --- reading LoRAs ---------------------------------------------------------------------------------------------------


def test_the_originals_motion_lora_gives_the_originals_numbers(reference, tmp_path):
    """Unmerged as a take, and merged by our export."""
    inputs = load_file(DATA / "unet_inputs.safetensors")
    expected = load_file(DATA / "unet_outputs.safetensors")["v2_lora0.75_f3"]
    conditions = {"prompt_embeds": inputs["encoder_hidden_states"]}
    example = Example(inputs["sample_f3"], inputs["timesteps"], None, conditions=conditions)
    model = sample_model(reference, motion_adapter=str(reference / "v2.safetensors"))
    with torch.no_grad():
        plain = model.predict(example)
        model.load([(GOLDEN_LORA, 0.75)])
        unmerged = model.predict(example)
    report = merge_lora(GOLDEN_LORA, 0.75, reference / "v2.safetensors", tmp_path / "merged.safetensors")
    assert "the LoRA merged at strength 0.75" in report
    with torch.no_grad():
        merged = sample_model(reference, motion_adapter=str(tmp_path / "merged.safetensors")).predict(example)
    assert (plain - expected).abs().max() > 0.05
    assert (unmerged - expected).abs().max() < 1e-4
    assert (merged - expected).abs().max() < 1e-4


def original_naming(adapter: dict[str, Lora]) -> dict[str, torch.Tensor]:
    """As guoyww's files name them."""
    state = {}
    for path, layer in adapter.items():
        (name,) = original_names(path)
        attention, _, own = name.removesuffix(".0").rpartition(".")
        state[f"{attention}.processor.{own}_lora.down.weight"] = layer.down
        state[f"{attention}.processor.{own}_lora.up.weight"] = layer.up
    return state


def motion_director_naming(adapter: dict[str, Lora]) -> dict[str, torch.Tensor]:
    """As ExponentialML's trainer names them: .NAME.lora_up.weight has become .processor.NAME_lora.up.weight."""
    state = {}
    for path, layer in adapter.items():
        for side, value in (("down", layer.down), ("up", layer.up)):
            key = f"{original_names(path)[0]}.lora_{side}.weight"
            own = key.split(".")[-3]
            state[key.replace(f".{own}.lora_{side}.weight", f".processor.{own}_lora.{side}.weight")] = value
    return state


ATTENTION = tuple(f"{attn}.{layer}" for attn in ("attn1", "attn2") for layer in ("to_q", "to_k", "to_v", "to_out.0"))
FEED_FORWARD = ("ff.net.0.proj", "ff.net.2")
PROJECTIONS = ("proj_in", "proj_out")


@pytest.mark.parametrize(
    "form", ["guoyww", "wrapped", "module", "unet", "motion director", "old", "new", "now", "peft"]
)
def test_loras_of_every_naming_are_read(module, tmp_path, form):
    adapter = lora_of(module, ATTENTION + (FEED_FORWARD if form in ("motion director", "new", "now", "peft") else ()))
    halves = {"lora_A": "down", "lora_B": "up"}
    if form in ("guoyww", "wrapped", "module", "unet"):
        state = original_naming(adapter)
        assert f"{ORIGINAL_BLOCK}.attention_blocks.1.processor.to_out_lora.up.weight" in state
    elif form == "motion director":
        state = motion_director_naming(adapter)
        assert f"{ORIGINAL_BLOCK}.attention_blocks.0.to_out.processor.0_lora.down.weight" in state
        assert f"{ORIGINAL_BLOCK}.ff.net.processor.2_lora.up.weight" in state
        assert f"{ORIGINAL_BLOCK}.ff.net.0.processor.proj_lora.up.weight" in state
    elif form == "old":
        state = {}
        for path, layer in adapter.items():
            attention, _, own = path.removesuffix(".0").rpartition(".")
            state[f"unet.{attention}.processor.{own}_lora.down.weight"] = layer.down
            state[f"unet.{attention}.processor.{own}_lora.up.weight"] = layer.up
    else:
        name = {"new": "unet.{}.lora.{}.weight", "now": "unet.{}.{}.weight", "peft": "base_model.model.{}.{}.weight"}[
            form
        ]
        state = {
            name.format(path, side if form == "new" else half): getattr(layer, side)
            for path, layer in adapter.items()
            for half, side in halves.items()
        }
    if form == "module":
        state = {f"module.{key}": value for key, value in state.items()}
    if form == "unet":
        state = {f"unet.{key}": value for key, value in state.items()}
    if form == "wrapped":
        file = tmp_path / "v2_lora_PanLeft.ckpt"
        torch.save({"state_dict": {**state, "animatediff_config": {}}, "global_step": 3}, file)
    else:
        file = tmp_path / "lora.safetensors"
        save_file(state, file)
    take = read_take(file)
    assert take.kind == "lora"
    same(take.lora, adapter)


def swift_folder(path: Path, adapter: dict[str, Lora], suffix: str = ".default.weight", **settings) -> Path:
    """iter-100 as swift writes it."""
    (path / "default").mkdir(parents=True)
    state = {}
    for name, layer in adapter.items():
        state[f"{name}.lora_A{suffix}"], state[f"{name}.lora_B{suffix}"] = layer.down, layer.up
    torch.save(state, path / "default" / "adapter_model.bin")
    config = {"swift_type": "LORA", "peft_type": None, "r": 8, "lora_alpha": 32, "lora_dropout": 0.05,
              "target_modules": ".*motion_modules.*", "bias": "none", "use_rslora": False, "use_dora": False,
              "rank_pattern": {}, "alpha_pattern": {}, "init_lora_weights": True, **settings}  # fmt: skip
    (path / "default" / "adapter_config.json").write_text(json.dumps(config))
    (path / "configuration.json").write_text("{}")
    (path / "README.md").write_text("### Base model information\n")
    return path


@pytest.mark.parametrize("suffix", [".default.weight", ".weight"])
def test_swift_lora_folders_are_read_with_their_alpha(base, module, tmp_path, suffix):
    adapter = lora_of(module, (*ATTENTION, *FEED_FORWARD, *PROJECTIONS), rank=8)
    folder = swift_folder(tmp_path / "iter-100", adapter, suffix)
    expected = {path: Lora(layer.down, layer.up, 32.0) for path, layer in adapter.items()}
    for path in (folder, folder / "default", folder / "default" / "adapter_model.bin"):
        take = read_take(path)
        same(take.lora, expected)
        assert {layer.alpha / layer.rank for layer in take.lora.values()} == {4.0}
        assert take.meta["norm_semantics"] == "diffusers"
    model = sample_model(base, checkpoints=[str(folder)], motion_adapter=str(base / "motion_adapter"))
    model.load([(folder, 1.0)])
    unmerged = model.sample(REQUEST, Draws.seeded(1)).astype(int)
    write(folder, "diffusers", tmp_path / "merged", onto=str(base / "motion_adapter"))
    merged = sample_model(base, motion_adapter=str(tmp_path / "merged"), norm_semantics="diffusers")
    assert np.abs(merged.sample(REQUEST, Draws.seeded(1)).astype(int) - unmerged).max() <= 1


@pytest.mark.parametrize("rslora", [False, True])
def test_peft_folders_act_as_peft_applies_them(base, tmp_path, rslora):
    """PEFT's own save and PEFT's own merge are what ours is held against."""
    config = LoraConfig(
        r=4, lora_alpha=12, target_modules=r".*motion_modules.*(to_q|to_v|to_out\.0|ff\.net\.2)", use_rslora=rslora,
        rank_pattern={"to_v": 2, r".*up_blocks.*ff\.net\.2": 3}, alpha_pattern={"attn1.to_q": 5, "ff.net.2": 6},
    )  # fmt: skip
    unet = sample_model(base, motion_adapter=str(base / "motion_adapter")).unet
    before = {key: value.clone() for key, value in unet.state_dict().items()}
    peft = get_peft_model(unet, config)
    with torch.no_grad():
        for name, parameter in peft.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=seeded(len(name))) * 0.1)
    peft.save_pretrained(tmp_path / "peft")
    shutil.copytree(tmp_path / "peft", tmp_path / "pickle")
    (tmp_path / "pickle" / "adapter_model.safetensors").unlink()
    torch.save(load_file(tmp_path / "peft" / "adapter_model.safetensors"), tmp_path / "pickle" / "adapter_model.bin")
    merged = peft.merge_and_unload().state_dict()
    for folder in ("peft", "pickle"):
        take = read_take(tmp_path / folder)
        assert {layer.rank for layer in take.lora.values()} == {2, 3, 4}
        for path, layer in take.lora.items():
            torch.testing.assert_close(before[f"{path}.weight"] + layer.delta(), merged[f"{path}.weight"])
        changed = {key.removesuffix(".weight") for key in merged if not torch.equal(merged[key], before[key])}
        assert changed == take.lora.keys()


def test_training_goes_on_from_a_lora_of_another_alpha(base, module, tmp_path):
    """Its effect is kept: it is the run's alpha that is different, not what was learned."""
    adapter = lora_of(module, ATTENTION, rank=4)
    save_file(original_naming(adapter), tmp_path / "motion.safetensors")
    model = train_model(base, "lora", adapter={"rank": 4, "alpha": 16, "target_modules": list(ATTENTION)})
    model.load([(tmp_path / "motion.safetensors", 1.0)])
    same(read_take(saved(model, tmp_path / "own")).lora, adapter)


def test_a_domain_adapter_is_a_lora_of_the_image_model(base, tmp_path):
    model = sample_model(base, motion_adapter=str(base / "motion_adapter"))
    layers = [n for n, m in model.unet.named_modules() if ".attentions." in n and n.endswith(("to_q", "to_out.0"))]
    state = {}
    for path in layers:
        attention, _, own = path.removesuffix(".0").rpartition(".")
        weight = model.unet.get_submodule(path).weight
        state[f"{attention}.processor.{own}_lora.down.weight"] = torch.randn(2, weight.shape[1], generator=seeded(0))
        state[f"{attention}.processor.{own}_lora.up.weight"] = torch.randn(weight.shape[0], 2, generator=seeded(1))
    file = tmp_path / "v3_sd15_adapter.ckpt"
    torch.save({"state_dict": {**state, "animatediff_config": ""}}, file)
    assert set(read_take(file).lora) == set(layers)
    plain = model.sample(REQUEST, Draws.seeded(1))
    model.load([(file, 1.0)])
    assert not np.array_equal(model.sample(REQUEST, Draws.seeded(1)), plain), "it is applied where it belongs"
    with pytest.raises(
        ModelError,
        match=r"is a LoRA, not a motion module \(it lies on the image model, as a domain adapter is: .*attentions",
    ):
        read_motion(file)
    refused(
        "LoRA of the image model, .*no place for .*diffusers-lora has", file, "motion-lora", tmp_path / "x.safetensors"
    )
    refused("LoRA of the image model, .*no layers of a motion module", file, "original", tmp_path / "x.safetensors",
            onto=str(base / "motion_adapter"))  # fmt: skip
    write(file, "diffusers-lora", tmp_path / "domain.safetensors")
    same(read_take(tmp_path / "domain.safetensors").lora, read_take(file).lora)


# --- exports ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "target", ["original:mm.safetensors", "original:mm.ckpt", "original:mm.pth", "diffusers:adapter"]
)
def test_exports_act_as_the_checkpoint_does(base, checkpoints, tmp_path, method, target):
    format, name = target.split(":")
    report = write(checkpoints[method], format, tmp_path / name)
    assert f"wrote {tmp_path / name}" in report
    count = len(read_motion(base / "motion_adapter")[0])
    assert f"{count // 27 * 28 if format == 'original' else count} keys matched" in report
    state, facts = read_motion(tmp_path / name)
    model = sample_model(base, checkpoints=[str(checkpoints[method])])
    model.load([(checkpoints[method], 1.0)])
    if method == "lora":
        base_state, _ = read_motion(base / "motion_adapter")
        changed = {key for key, value in state.items() if not torch.equal(value, base_state[key])}
        assert changed
        assert all(".to_" in key for key in changed)
        if not facts.heads:
            return  # a pickle tells no head count, which matters to these tiny modules alone
        merged = sample_model(base, motion_adapter=str(tmp_path / name))
        clips = [m.sample(REQUEST, Draws.seeded(1)).astype(int) for m in (merged, model)]
        assert np.abs(clips[0] - clips[1]).max() <= 1
    else:
        assert "outputs equal" in report
        own = motion_part(model.unet.state_dict())
        assert own.keys() == state.keys()
        assert all(torch.equal(value, state[key]) for key, value in own.items())
    assert facts.positions == 32


def test_original_files_hold_bare_names_and_every_encoding_twice(checkpoints, tmp_path):
    write(checkpoints["motion_module"], "original", tmp_path / "mm.safetensors")
    keys = load_file(tmp_path / "mm.safetensors").keys()
    assert all(".temporal_transformer." in key for key in keys)
    assert len(keys) == 28 * len({key.split(".temporal_transformer.")[0] for key in keys})
    assert sum(key.endswith("pos_encoder.pe") for key in keys) == 2 * len(keys) / 28


@pytest.mark.parametrize("target", ["original:mm.safetensors", "original:mm.pth", "diffusers:adapter"])
def test_half_precision_keeps_the_encodings(checkpoints, tmp_path, target):
    format, name = target.split(":")
    report = write(checkpoints["motion_module"], format, tmp_path / name, dtype="fp16")
    assert "fp16" in report
    state, _ = read_motion(tmp_path / name)
    whole = read_take(checkpoints["motion_module"]).state
    for key, value in state.items():
        assert value.dtype == (torch.float32 if key.endswith(".pe") else torch.float16)
        assert torch.equal(value, whole[key].to(value.dtype))


def test_diffusers_reads_the_exports(base, checkpoints, tmp_path):
    """With its own loaders, and no network."""
    whole = read_take(checkpoints["motion_module"]).state
    for dtype in ("fp32", "fp16"):
        write(checkpoints["motion_module"], "diffusers", tmp_path / dtype, dtype=dtype)
        adapter, report = MotionAdapter.from_pretrained(tmp_path / dtype, output_loading_info=True)
        assert not report["missing_keys"]
        assert not report["unexpected_keys"]
        assert all(torch.equal(v, whole[k].to(torch.float16).float() if dtype == "fp16" and not k.endswith(".pe") else
                               whole[k]) for k, v in adapter.state_dict().items())  # fmt: skip
        assert (adapter.config.motion_num_attention_heads, adapter.config.motion_norm_num_groups) == (4, 8)
    for ending in (".safetensors", ".ckpt"):
        file = tmp_path / f"mm{ending}"
        write(checkpoints["motion_module"], "original", file)
        adapter = MotionAdapter.from_single_file(str(file), config=str(tmp_path / "fp32"))
        assert all(torch.equal(value, whole[key]) for key, value in adapter.state_dict().items())


@pytest.mark.parametrize("ending", [".safetensors", ".ckpt"])
def test_motion_loras_are_as_their_readers_want_them(base, module, tmp_path, ending):
    """ComfyUI-AnimateDiff-Evolved and guoyww's loader know no alpha and find layers by taking words out of keys."""
    adapter = lora_of(module, (*ATTENTION, *FEED_FORWARD, *PROJECTIONS), rank=8)
    folder = swift_folder(tmp_path / "iter-100", adapter)
    file = tmp_path / f"motion{ending}"
    report = write(folder, "motion-lora", file)
    assert f"{2 * len(adapter)} keys matched on {len(adapter)} layers, rank 8" in report
    state = load_file(file) if ending == ".safetensors" else torch.load(file, weights_only=True)
    assert f"{ORIGINAL_BLOCK}.attention_blocks.0.processor.to_out_lora.down.weight" in state
    assert f"{ORIGINAL_BLOCK}.ff.net.processor.2_lora.up.weight" in state
    assert not any(key.endswith("alpha") for key in state)
    original = to_original(module)
    for key, down in state.items():
        if "up." in key:
            continue
        up = state[key.replace(".down.", ".up.")]
        layer = key
        for word in ("processor.", "_lora", "down.", "up."):
            layer = layer.replace(word, "")
        layer = layer if "to_out.0." in layer else layer.replace("to_out.", "to_out.0.")
        original[layer] = original[layer] + up @ down  # KeyError: the reader would not have found its layer
    write(folder, "original", tmp_path / "merged.safetensors", onto=str(base / "motion_adapter"))
    merged = load_file(tmp_path / "merged.safetensors")
    for key, value in original.items():
        torch.testing.assert_close(merged[key], value, msg=lambda text, key=key: f"{key}: {text}")
    same(read_take(file).lora, read_take(folder).lora)


def test_attention_layers_have_the_names_of_the_originals_files(tmp_path):
    """What guoyww's own files hold comes out again under the same keys, number for number."""
    write(GOLDEN_LORA, "motion-lora", tmp_path / "same.safetensors", dtype="fp16")
    again, source = load_file(tmp_path / "same.safetensors"), load_file(GOLDEN_LORA)
    assert again.keys() == source.keys()
    assert all(torch.equal(value, source[key]) for key, value in again.items())


@pytest.mark.parametrize("out", ["lora", "lora.safetensors"])
def test_diffusers_applies_an_exported_lora_once(base, module, tmp_path, out):
    """At scale 1, whatever the alpha was, and whether its loader reads the header or not."""
    adapter = lora_of(module, ATTENTION + FEED_FORWARD, rank=8)
    folder = swift_folder(tmp_path / "iter-100", adapter, lora_alpha=20)
    report = write(folder, "diffusers-lora", tmp_path / out)
    assert f"{2 * len(adapter)} keys matched" in report
    ours = sample_model(base, checkpoints=[str(folder)], motion_adapter=str(base / "motion_adapter"))
    latents = torch.randn(1, 4, 4, 8, 8, generator=seeded(3))
    plain = ours.sample(REQUEST, Draws(given={"latents": latents})).astype(int)
    ours.load([(folder, 1.0)])
    frames = ours.sample(REQUEST, Draws(given={"latents": latents})).astype(int)
    assert np.abs(frames - plain).max() > 5
    file = tmp_path / out / lora.FILE_NAME if out == "lora" else tmp_path / out
    for given in (tmp_path / out, load_file(file)):  # a dict has no header
        theirs = pipeline(base)
        theirs.load_lora_weights(given)
        assert np.abs(frames - pipeline_frames(theirs, latents)).max() <= 1
    by_unet = pipeline(base)
    by_unet.unet.load_lora_adapter(load_file(file), prefix="unet")
    assert np.abs(frames - pipeline_frames(by_unet, latents)).max() <= 1


def test_layers_of_different_ranks_keep_their_scale_in_diffusers(base, module, tmp_path):
    adapter = {**lora_of(module, ("attn1.to_q",), rank=4), **lora_of(module, ("attn2.to_v",), rank=2, seed=1)}
    lora.write_folded(tmp_path / "mixed.safetensors", adapter, "unet", torch.float32, {})
    report = write(tmp_path / "mixed.safetensors", "diffusers-lora", tmp_path / "again.safetensors", strength=0.5)
    assert "rank 2 and 4" in report
    theirs = pipeline(base)
    before = {key: value.clone() for key, value in theirs.unet.state_dict().items()}
    theirs.load_lora_weights(tmp_path, weight_name="again.safetensors")
    theirs.fuse_lora()
    theirs.unload_lora_weights()
    after = theirs.unet.state_dict()
    for path, layer in adapter.items():
        torch.testing.assert_close(after[f"{path}.weight"], before[f"{path}.weight"] + 0.5 * layer.delta())


def test_a_lora_of_every_layer_reaches_diffusers_too(base, module, tmp_path):
    """PEFT's layers cannot be called by keyword, as diffusers calls proj_in and proj_out; fused they can."""
    adapter = lora_of(module, (*ATTENTION, *FEED_FORWARD, *PROJECTIONS))
    save_file(motion_director_naming(adapter), tmp_path / "motion.safetensors")
    report = write(tmp_path / "motion.safetensors", "diffusers-lora", tmp_path / "all.safetensors")
    assert "proj_in and proj_out after pipe.fuse_lora() and pipe.unload_lora_weights() only" in report
    latents = torch.randn(1, 4, 4, 8, 8, generator=seeded(3))
    theirs = pipeline(base)
    theirs.load_lora_weights(tmp_path / "all.safetensors")
    with pytest.raises(TypeError):
        pipeline_frames(theirs, latents)
    theirs.fuse_lora()
    theirs.unload_lora_weights()
    ours = sample_model(base, motion_adapter=str(base / "motion_adapter"), norm_semantics="diffusers")
    ours.load([(tmp_path / "motion.safetensors", 1.0)])
    frames = ours.sample(REQUEST, Draws(given={"latents": latents})).astype(int)
    assert np.abs(frames - pipeline_frames(theirs, latents)).max() <= 1


@pytest.mark.parametrize("format", ["motion-lora", "diffusers-lora"])
@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_our_own_lora_goes_out_and_comes_back(base, checkpoints, tmp_path, format, dtype):
    out = tmp_path / "lora.safetensors"
    report = write(checkpoints["lora"], format, out, dtype=dtype, strength=0.5)
    assert "strength 0.5" in report
    again, source = read_take(out), read_take(checkpoints["lora"])
    assert {layer.alpha / layer.rank for layer in again.lora.values()} == {1.0}
    assert {layer.alpha / layer.rank for layer in source.lora.values()} == {2.0}
    for path, layer in source.lora.items():
        torch.testing.assert_close(again.lora[path].delta(), layer.delta() / 2, atol=1e-3 if dtype == "fp16" else 1e-6,
                                   rtol=1e-2 if dtype == "fp16" else 1e-5)  # fmt: skip
    assert again.meta["norm_semantics"] == "original"
    model = sample_model(base, checkpoints=[str(checkpoints["lora"])])
    model.load([(checkpoints["lora"], 0.5)])
    clips = [model.sample(REQUEST, Draws.seeded(1)).astype(int)]
    told = sample_model(base, motion_adapter=str(base / "motion_adapter"))
    told.load([(out, 1.0)])
    clips.append(told.sample(REQUEST, Draws.seeded(1)).astype(int))
    assert np.abs(clips[0] - clips[1]).max() <= (1 if dtype == "fp32" else 4)


def test_a_lora_on_stretched_positions_is_merged_into_stretched_ones(base, module, tmp_path):
    model = train_model(base, "lora", motion_module_pe_multiplier=2, dataset={"num_frames": 40})
    fill_lora(model)
    folder = saved(model, tmp_path / "step")
    assert "64 positions" in write(folder, "original", tmp_path / "mm.safetensors")
    write(tmp_path / "mm.safetensors", "diffusers", tmp_path / "long")
    assert "64 positions" in write(folder, "diffusers", tmp_path / "again", onto=str(tmp_path / "long"))
    expected = module[f"{BLOCK}.pos_embed.pe"].repeat_interleave(2, dim=1)
    for path in ("mm.safetensors", "again"):
        assert torch.equal(read_motion(tmp_path / path)[0][f"{BLOCK}.pos_embed.pe"], expected)
    write(folder, "motion-lora", tmp_path / "lora.safetensors")
    told = sample_model(base, checkpoints=[str(tmp_path / "lora.safetensors")], motion_adapter=model._motion.source)
    assert told._facts.positions == 64


def test_conventions_travel_with_an_export(base, trained_unet, tmp_path):
    trained_unet.save_pretrained(tmp_path / "iter-100")
    write(tmp_path / "iter-100", "original", tmp_path / "mm.safetensors")
    write(tmp_path / "iter-100", "diffusers", tmp_path / "adapter")
    for path in (tmp_path / "mm.safetensors", tmp_path / "adapter"):
        model = sample_model(base, checkpoints=[str(path)])
        assert model.conventions.norm_semantics == "diffusers"
        assert read_motion(path)[1].heads == 4


def test_an_export_that_comes_back_changed_is_not_kept(checkpoints, tmp_path, monkeypatch):
    save = exports._save

    def careless(state, path, header):
        key = next(key for key in state if key.endswith("weight"))
        save({**state, key: state[key] * 1.001}, path, header)

    monkeypatch.setattr(exports, "_save", careless)
    refused("came back changed", checkpoints["motion_module"], "original", tmp_path / "mm.safetensors")
    refused("came back changed", checkpoints["motion_module"], "diffusers", tmp_path / "adapter")
    refused("came back changed", checkpoints["lora"], "motion-lora", tmp_path / "lora.safetensors")
    monkeypatch.undo()
    monkeypatch.setattr(exports, "merge", lambda state, adapter, source: dict(state))
    refused("computes something else", checkpoints["lora"], "original", tmp_path / "mm.safetensors")
    assert not list(tmp_path.iterdir())


def test_outputs_are_what_the_modules_compute(base, module):
    """The comparison sees every weight: each one, changed alone, changes an output."""
    _, facts = read_motion(base / "motion_adapter")
    with torch.no_grad():
        plain = exports.module_outputs(module, facts, {})
        assert len(plain) == len({key.split(".transformer_blocks")[0] for key in module if ".attn1." in key})
        for key in [key for key in module if key.startswith("mid_block.")]:
            changed = module[key] + torch.linspace(0, 1, module[key].shape[-1])
            moved = exports.module_outputs({**module, key: changed}, facts, {})
            assert not torch.equal(moved["mid_block.motion_modules.0"], plain["mid_block.motion_modules.0"]), key
            assert sum(not torch.equal(moved[name], plain[name]) for name in plain) == 1


# --- what a person may get wrong -------------------------------------------------------------------------------------


def test_exports_refuse_what_they_cannot_do(base, checkpoints, tmp_path):
    known = "known: original, diffusers, motion-lora, diffusers-lora"
    refused(known, checkpoints["full"], "nosuch", tmp_path / "x")
    (tmp_path / "here.safetensors").write_text("mine")
    with pytest.raises(ModelError, match="exists already"):
        write(checkpoints["full"], "original", tmp_path / "here.safetensors")
    assert (tmp_path / "here.safetensors").read_text() == "mine"
    refused("ending", checkpoints["full"], "original", tmp_path / "x")
    refused("ending", checkpoints["lora"], "motion-lora", tmp_path / "x")
    refused("not a checkpoint", tmp_path, "original", tmp_path / "x.safetensors")
    refused("does not exist", tmp_path / "nowhere", "original", tmp_path / "x.safetensors")
    for format in ("motion-lora", "diffusers-lora"):
        refused("is no LoRA.* formats that fit: original, diffusers", checkpoints["motion_module"], format,
                tmp_path / "x.safetensors")  # fmt: skip
    refused("only a LoRA", checkpoints["full"], "original", tmp_path / "x.safetensors", strength=0.5)
    refused("--onto is for a LoRA that is merged", checkpoints["lora"], "motion-lora", tmp_path / "x.safetensors",
            onto=str(base / "motion_adapter"))  # fmt: skip
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / lora.FILE_NAME).write_bytes((checkpoints["lora"] / lora.FILE_NAME).read_bytes())
    refused("does not say which motion adapter.*--onto", bare, "diffusers", tmp_path / "y")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bare", "here.safetensors"]


def test_numbers_beyond_half_precision_are_named(module, tmp_path):
    large = {**module, f"{BLOCK}.attn1.to_q.weight": module[f"{BLOCK}.attn1.to_q.weight"] * 1e7}
    save_file(to_original(large), tmp_path / "large.safetensors", metadata={"dailies": json.dumps({"heads": 4})})
    refused(r"numbers at .*attn1\.to_q\.weight that fp16 cannot hold; use --dtype fp32", tmp_path / "large.safetensors",
            "original", tmp_path / "half.safetensors", dtype="fp16")  # fmt: skip
    adapter = {path: Lora(layer.down * 1e6, layer.up, layer.alpha) for path, layer in lora_of(module).items()}
    save_file(original_naming(adapter), tmp_path / "lora.safetensors")
    refused("fp16 cannot hold", tmp_path / "lora.safetensors", "motion-lora", tmp_path / "x.safetensors", dtype="fp16")


def test_a_lora_is_no_motion_module(base, checkpoints, module, tmp_path):
    save_file(original_naming(lora_of(module)), tmp_path / "lora.safetensors")
    for path in (tmp_path / "lora.safetensors", checkpoints["lora"], GOLDEN_LORA):
        with pytest.raises(
            ModelError, match=r"is a LoRA, not a motion module \(it lies on motion modules: .*motion_modules\.0"
        ):
            train_model(base, motion_adapter=str(path))


def test_a_module_with_a_mid_block_is_not_for_a_model_without(base, module, tmp_path):
    v2, v3 = tmp_path / "v2.safetensors", tmp_path / "v3.safetensors"
    header = {"dailies": json.dumps({"heads": 4})}
    save_file(to_original(module), v2, metadata=header)
    save_file(to_original({k: v for k, v in module.items() if not k.startswith("mid_block")}), v3, metadata=header)
    model = sample_model(base, motion_adapter=str(v3))
    with pytest.raises(ModelError, match=r"v2.safetensors has a mid block \(mid_block\.motion_modules\.0.*have none"):
        model.load([(v2, 1.0)])
    with pytest.raises(ModelError, match=r"v3.safetensors has no mid block \(mid_block\.motion_modules\.0.*v1 or v3"):
        sample_model(base, motion_adapter=str(v2)).load([(v3, 1.0)])
    save_file(original_naming(lora_of(module)), tmp_path / "lora.safetensors")
    remedy = r"lora.safetensors has a mid block \(mid_block\.motion_modules\.0.*; name a motion_adapter with one, .* v2"
    with pytest.raises(ModelError, match=remedy):
        model.load([(tmp_path / "lora.safetensors", 1.0)])
    with pytest.raises(ModelError, match=remedy):
        train_model(base, "lora", motion_adapter=str(v3)).load([(tmp_path / "lora.safetensors", 1.0)])
    refused(remedy, tmp_path / "lora.safetensors", "original", tmp_path / "x.safetensors", onto=str(v3))


def test_a_place_where_nothing_can_be_written_is_named(module, tmp_path):
    save_file(to_original(module), tmp_path / "mm.safetensors", metadata={"dailies": json.dumps({"heads": 4})})
    (tmp_path / "taken").touch()
    for out, format in (("x.safetensors", "original"), ("x.ckpt", "original"), ("x", "diffusers")):
        with pytest.raises(ModelError, match=rf"taken/{out} cannot be written: ") as caught:
            write(tmp_path / "mm.safetensors", format, tmp_path / "taken" / out)
        assert "\n" not in str(caught.value)


def test_unmapped_keys_are_named(module, tmp_path):
    original = to_original(module)
    odd = f"{ORIGINAL_BLOCK}.attention_blocks.0.camera.weight"
    cases = {
        "odd": ({**original, odd: v0}, rf"odd.ckpt holds what no motion module has: {re.escape(odd)}"),
        "image": ({"conv.weight": v0}, "image.ckpt is not a motion module: it holds conv.weight"),
        "words": ({**original, "note": "hello"}, "words.ckpt is not a motion module: it holds note"),
        "empty": ({}, "is not a motion module: it is empty"),
        "alone": ({"conv_in.weight": v0, "conv_in.bias": v0}, "is not a motion module: it is an image model alone"),
        "list": ([v0], "holds no weights by name"),
        "torn": ({k: v for k, v in original.items() if "norms.1.bias" not in k}, r"lacks .*norm2\.bias"),
        "two": (
            {**original, f"{ORIGINAL_BLOCK}.attention_blocks.1.pos_encoder.pe": torch.zeros(1, 32, 32)},
            "differs from the block's other encoding",
        ),
    }
    for name, (state, text) in cases.items():
        torch.save(state, tmp_path / f"{name}.ckpt")
        refused(text, tmp_path / f"{name}.ckpt", "original", tmp_path / "x.safetensors")


def test_adapters_that_are_no_plain_loras_are_named(module, tmp_path):
    adapter = lora_of(module, rank=8)
    for settings, text in (
        ({"use_dora": True}, "is a DoRA"),
        ({"swift_type": "LONGLORA"}, "type LONGLORA; only LORA"),
        ({"init_lora_weights": "pissa_niter_4"}, "pissa_niter_4, which changes the weights beneath"),
        ({"alpha_pattern": {"(": 3}}, "settings that cannot be read"),
        ({"lora_alpha": "many"}, "settings that cannot be read"),
        ({"extra_state_keys": ["conv_in"]}, "holds more than a LoRA"),
    ):
        folder = swift_folder(tmp_path / f"swift{len(list(tmp_path.iterdir()))}", adapter, **settings)
        with pytest.raises(ModelError, match=text):
            read_take(folder)
    folder = swift_folder(tmp_path / "swift", adapter)
    shutil.copytree(folder / "default", folder / "other")
    with pytest.raises(ModelError, match="several adapters: give one of its folders default, other"):
        read_take(folder)
    (folder / "default" / "adapter_config.json").unlink()
    with pytest.raises(ModelError, match=r"needs its adapter_config\.json"):
        read_take(folder / "default" / "adapter_model.bin")
    (folder / "other" / "adapter_model.bin").unlink()
    with pytest.raises(ModelError, match=r"adapter_model\.safetensors does not exist"):
        read_take(folder / "other")


def test_bad_lora_files_are_named(module, tmp_path):
    good = original_naming(lora_of(module))
    first = next(iter(good))
    cases = {
        "half": ({key: value for key, value in good.items() if key != first}, r"cannot be read"),
        "torn": ({**good, first: torch.zeros(5, good[first].shape[1])}, "is damaged: .* rank 5 below and 2 above"),
        "text": ({**good, "text_encoder.x.lora_A.weight": v0}, r"text_encoder\.x\.lora_A\.weight cannot be read"),
        "kohya": ({"lora_unet_down_blocks_0.lora_down.weight": torch.zeros(2, 2)}, "lora_unet_down_blocks_0"),
        "odd": (
            {
                f"{ORIGINAL_BLOCK}.camera.processor.to_q_lora.{side}.weight": torch.zeros(2, 2)
                for side in ("down", "up")
            },
            r"no motion module has: .*camera\.to_q",
        ),
        "twice": (
            {**good, first.replace("processor.to_q_lora.down", "to_q.lora_A.default"): good[first]},
            "two adapters for",
        ),
    }
    for name, (state, text) in cases.items():
        torch.save(state, tmp_path / f"{name}.pth")
        with pytest.raises(ModelError, match=text):
            read_take(tmp_path / f"{name}.pth")


class Trap:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return (Path.touch, (self.file,))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol 4")
@pytest.mark.parametrize("protocol", [2, 4])
def test_code_in_a_pickle_is_never_run(module, tmp_path, protocol):
    ran = tmp_path / "ran"
    state = {**to_original(module), "animatediff_config": Trap(ran)}
    torch.save(state, tmp_path / "mm.ckpt", pickle_protocol=protocol)
    (tmp_path / "old.ckpt").write_bytes(pickle.dumps({"state_dict": Trap(ran)}, protocol=protocol))
    folder = swift_folder(tmp_path / "iter-100", lora_of(module))
    torch.save({"x": Trap(ran)}, folder / "default" / "adapter_model.bin")
    for path in (tmp_path / "mm.ckpt", tmp_path / "old.ckpt", folder):
        with pytest.raises(ModelError, match=r"holds more than plain tensors.*code in it would run"):
            read_take(path)
    (tmp_path / "page.ckpt").write_text("<html>not found</html>")
    with pytest.raises(ModelError, match=r"page\.ckpt cannot be read as weights"):
        read_take(tmp_path / "page.ckpt")
    assert not ran.exists()


# --- the door --------------------------------------------------------------------------------------------------------


def test_the_door_converts_files_from_elsewhere(base, module, tmp_path, capsys):
    torch.save(to_original(module), tmp_path / "mm.pth")
    adapter = lora_of(module, ATTENTION)
    save_file(original_naming(adapter), tmp_path / "v2_lora.safetensors")
    family = ["--family", "animatediff"]

    def run(*arguments: object) -> tuple[int, str]:
        code = door.main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    code, said = run(tmp_path / "mm.pth", "--format", "diffusers", "--out", tmp_path / "adapter")
    assert code == 1 and "say --family (animatediff" in said
    code, said = run(tmp_path / "mm.pth", "--format", "diffusers", "--out", tmp_path / "adapter", "--family", "nosuch")
    assert code == 2 and "known: animatediff" in said
    code, said = run(tmp_path / "none.pth", "--format", "diffusers", "--out", tmp_path / "adapter", *family)
    assert code == 1 and "does not exist" in said
    code, said = run(tmp_path / "mm.pth", "--format", "diffusers", "--out", tmp_path / "adapter", *family)
    assert code == 0 and f"{len(module)} keys matched" in said
    code, said = run(
        tmp_path / "adapter", "--format", "original", "--out", tmp_path / "again.pth", *family, "--dtype", "fp16"
    )
    assert code == 0 and f"{len(to_original(module))} keys matched" in said
    code, said = run(
        tmp_path / "v2_lora.safetensors", "--format", "original", "--out", tmp_path / "merged.safetensors", *family,
        "--onto", base / "motion_adapter", "--strength", "0.5",
    )  # fmt: skip
    assert code == 0 and "merged at strength 0.5" in said
    merged = from_original(load_file(tmp_path / "merged.safetensors"), "merged")
    for path, layer in adapter.items():
        torch.testing.assert_close(merged[f"{path}.weight"], module[f"{path}.weight"] + layer.delta() / 2)
    code, said = run(
        tmp_path / "v2_lora.safetensors", "--format", "diffusers-lora", "--out", tmp_path / "lora", *family
    )
    assert code == 0
    code, said = run(tmp_path / "lora", "--format", "motion-lora", "--out", tmp_path / "back.safetensors", *family)
    assert code == 0
    assert all(torch.equal(v, original_naming(adapter)[k]) for k, v in load_file(tmp_path / "back.safetensors").items())
    code, said = run(
        tmp_path / "lora", "--format", "motion-lora", "--out", tmp_path / "x.safetensors", *family, "--strength", "nan"
    )
    assert code == 1 and "must be a number" in said


def test_the_door_believes_a_checkpoints_own_family(checkpoints, tmp_path, capsys):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "meta.json").write_text('{"family": "mochi"}')
    arguments = ["--format", "original", "--out", str(tmp_path / "x.safetensors")]
    assert door.main([str(tmp_path / "other"), *arguments, "--family", "animatediff"]) == 1
    assert "is a checkpoint of family mochi, not of animatediff" in capsys.readouterr().err
    lora_arguments = ["--format", "motion-lora", "--out", str(tmp_path / "lora.safetensors"), "--dtype", "fp16"]
    assert door.main([str(checkpoints["lora"]), *lora_arguments, "--family", "animatediff"]) == 0
    assert "keys matched" in capsys.readouterr().out


def test_our_lora_moves_what_it_was_filled_with(base, tmp_path):
    """The exported file adds to each layer what the trained layer adds, alpha and all."""
    model = train_model(base, "lora", adapter={"rank": 4, "alpha": 10})
    fill_lora(model)
    folder = saved(model, tmp_path / "step")
    write(folder, "motion-lora", tmp_path / "out.safetensors")
    found = read_take(tmp_path / "out.safetensors").lora
    for path, layer in lora.layers(model.unet):
        torch.testing.assert_close(found[path].delta(), layer.get_delta_weight("default").detach())
