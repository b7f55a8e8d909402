"""The parity program: it passes on the reference vectors, and on nothing that was moved, lost or added."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.parity.__main__ import main

VECTORS = Path(__file__).parent / "data"
DATA = VECTORS / "animatediff"
OUTPUTS = "unet_outputs.safetensors"
NETWORK = ("unet_config.json", "motion_module_v2_like.safetensors", "unet_inputs.safetensors", OUTPUTS)
PICTURES = ("pattern.mp4", "pixels.safetensors")


@pytest.fixture
def folder(tmp_path):
    """A copy of some of the vectors, in which the tests change what they like."""

    def copy(*names: str) -> Path:
        out = tmp_path / "vectors"
        out.mkdir()
        for name in names:
            shutil.copyfile(DATA / name, out / name)
        return out

    return copy


def keep(file: Path, *names: str) -> None:
    """Leave only these tensors in a file."""
    state = load_file(file)
    save_file({name: state[name] for name in names}, file)


def move(file: Path, name: str, by: float) -> None:
    state = load_file(file)
    moved = state[name].clone()
    moved.view(-1)[moved.numel() // 2] += by
    save_file(state | {name: moved}, file)


def test_the_vectors_of_this_project_pass(capsys):
    assert main(["animatediff", str(DATA)]) == 0
    *lines, totals = capsys.readouterr().out.splitlines()
    assert totals == f"totals passed={len(lines)} failed=0"
    assert all(line.startswith("ok  ") for line in lines)
    assert {line.split()[1].rstrip(":") for line in lines} >= {"v1_f3", "v2_f3", "v3_f1", "module_out", "pe_multiplied"}


def test_those_of_cogvideox_pass(capsys):
    assert main(["cogvideox", str(VECTORS / "cogvideox")]) == 0
    *lines, totals = capsys.readouterr().out.splitlines()
    assert totals == f"totals passed={len(lines)} failed=0"
    named = {line.split()[1].rstrip(":") for line in lines}
    assert named >= {"t2v_2b_native", "t2v_5b_rope_tall", "i2v_5b_today", "t2v_15_odd_prepend", "i2v_15_odd_today"}


def test_those_of_mochi_pass(capsys):
    assert main(["mochi", str(VECTORS / "mochi")]) == 0
    *lines, totals = capsys.readouterr().out.splitlines()
    assert totals == f"totals passed={len(lines)} failed=0"
    named = "\n".join(lines)
    for name in (
        "case4 output",
        "consistent gradients",
        "trajectory end",
        "apart, fused by us",
        "noise levels 0 values",
    ):
        assert f"ok   {name}: " in named


MOVED = {  # a tensor of a file -> how the line of its check begins
    ("dit_io.safetensors", "case1.out"): "case1 output",
    ("model_200.lora.safetensors", "blocks.0.attn.qkv_y.lora_B"): "diffusers-lora of",
    ("lora_genmo_from_independent.safetensors", "blocks.1.attn.qkv_x.lora_B"): "genmo-lora of",
    ("loss_io.safetensors", "grad_consistent.blocks.0.attn.qkv_x.lora_A"): "consistent gradients",
    ("trajectory.safetensors", "final.blocks.0.attn.proj_y.lora_A"): "trajectory end",
    ("latents.safetensors", "dit_space"): "dit_space",
}


def test_numbers_of_mochi_that_were_moved_fail(tmp_path, capsys):
    vectors = tmp_path / "vectors"
    shutil.copytree(VECTORS / "mochi", vectors)
    for file, name in MOVED:
        packed = vectors / f"{file}.gz"
        (vectors / file).write_bytes(gzip.decompress(packed.read_bytes()))
        packed.unlink()
        with safe_open(vectors / file, "pt") as opened:
            header = opened.metadata()
        state = load_file(vectors / file)
        state[name] = state[name].clone()
        state[name].view(-1)[state[name].abs().argmin()] += 1e-2
        save_file(state, vectors / file, metadata=header)
    assert main(["mochi", str(vectors)]) == 1
    failed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("FAIL")]
    for begins in MOVED.values():
        assert any(line.startswith(f"FAIL {begins}") for line in failed), failed


def test_packed_files_and_a_missing_base_pass(folder):
    vectors = folder(*NETWORK)
    keep(vectors / "unet_outputs.safetensors", "v3_f1")
    keep(vectors / "unet_inputs.safetensors", "sample_f1", "timesteps", "encoder_hidden_states")
    for file in list(vectors.iterdir()):
        (vectors / f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes()))
        file.unlink()
    assert main(["animatediff", str(vectors)]) == 0


@pytest.mark.parametrize(
    ("name", "inputs"),
    [
        ("v1_f3", ["sample_f3", "timesteps", "encoder_hidden_states"]),
        ("module_out", ["module_in"]),
        ("module_out_pe_multiplied", ["module_in_pe_multiplied"]),
        ("pe_multiplied", []),
    ],
)
def test_an_output_that_was_moved_fails(folder, name, inputs, capsys):
    vectors = folder(*NETWORK)
    keep(vectors / "unet_outputs.safetensors", name)
    keep(vectors / "unet_inputs.safetensors", *(inputs or ["module_in"]))
    if not inputs:
        (vectors / "unet_inputs.safetensors").unlink()
    move(vectors / "unet_outputs.safetensors", name, 1e-3)
    assert main(["animatediff", str(vectors)]) == 1
    assert f"FAIL {name}" in capsys.readouterr().out


@pytest.mark.parametrize("name", sorted(load_file(DATA / "pixels.safetensors")))
def test_pixels_that_were_moved_fail(folder, name):
    vectors = folder(*PICTURES)
    assert main(["animatediff", str(vectors)]) == 0
    state = load_file(vectors / "pixels.safetensors")
    by = 30 if name == "decoded_uint8" else 30 / 127.5
    value = state[name].clone()
    high = value.view(-1).float().argsort()[value.numel() // 2]
    value.view(-1)[high] += by
    save_file(state | {name: value}, vectors / "pixels.safetensors")
    assert main(["animatediff", str(vectors)]) == 1


@pytest.mark.parametrize("name", ["frame_indices.json", "context_windows.json"])
def test_a_number_that_was_moved_fails(folder, name):
    vectors = folder(name)
    assert main(["animatediff", str(vectors)]) == 0
    cases = json.loads((vectors / name).read_text())
    if name == "context_windows.json":
        cases[1]["windows"][-1][-1] += 1
    else:
        cases["swift_AnimateDiffDataset"][2]["indices"][3] += 1
    (vectors / name).write_text(json.dumps(cases))
    assert main(["animatediff", str(vectors)]) == 1


@pytest.mark.parametrize("damage", ["no cases", "no windows", "no tensors", "an empty tensor", "a new fact", "a shape"])
def test_a_file_that_compares_nothing_or_too_little_fails(folder, damage, capsys):
    vectors = folder("context_windows.json", "frame_indices.json", *PICTURES)
    indices = json.loads((vectors / "frame_indices.json").read_text())
    state = load_file(vectors / "pixels.safetensors")
    if damage == "no cases":
        indices["MultiTuneAVideoDataset"] = []
    elif damage == "no windows":
        (vectors / "context_windows.json").write_text("[]")
    elif damage == "no tensors":
        state = {}
    elif damage == "an empty tensor":
        state["multitune_w32_h16_frames_"] = state["multitune_w32_h16_frames_0_5"][:0]
    elif damage == "a new fact":
        indices["tumurzakov_AnimateDiffDataset"][0]["randomize"] = True
    else:
        indices["swift_AnimateDiffDataset"][0]["shape"][0] += 1
    (vectors / "frame_indices.json").write_text(json.dumps(indices))
    save_file(state, vectors / "pixels.safetensors")
    assert main(["animatediff", str(vectors)]) == 1
    assert "FAIL" in capsys.readouterr().out


def test_a_file_beside_its_packed_form_fails(folder, capsys):
    vectors = folder("context_windows.json")
    (vectors / "context_windows.json.gz").write_bytes(gzip.compress(b"[]"))
    assert main(["animatediff", str(vectors)]) == 1
    assert "FAIL context_windows.json.gz: no check uses it" in capsys.readouterr().out


@pytest.mark.parametrize(
    "damage", ["nothing", "unknown file", "a note", "unknown tensor", "unused input", "no folder", "garbage"]
)
def test_what_has_no_check_fails(folder, damage, capsys):
    vectors = folder("context_windows.json", "pattern.mp4", "pixels.safetensors")
    if damage == "a note":
        (vectors / "notes.txt").write_text("?")
    elif damage == "nothing":
        shutil.rmtree(vectors)
        vectors.mkdir()
    elif damage == "unknown file":
        (vectors / "more.json").write_text("{}")
    elif damage == "unknown tensor":
        state = load_file(vectors / "pixels.safetensors")
        save_file(state | {"else": next(iter(state.values())).clone()}, vectors / "pixels.safetensors")
    elif damage == "unused input":
        shutil.copyfile(DATA / "unet_inputs.safetensors", vectors / "unet_inputs.safetensors")
    elif damage == "garbage":
        (vectors / "pixels.safetensors").write_bytes(b"garbage")
    else:
        shutil.rmtree(vectors)
    assert main(["animatediff", str(vectors)]) == 1
    assert capsys.readouterr().out.splitlines()[-1].startswith("totals passed=")


def test_two_outputs_of_one_lora_at_one_strength_pass(folder, capsys):
    """Two outputs for which the same LoRA is merged at the same strength into the same module."""
    vectors = folder(*NETWORK, "motion_lora_original_naming.safetensors")
    keep(vectors / "unet_outputs.safetensors", "v2_lora0.75_f3")
    state = load_file(vectors / "unet_outputs.safetensors")
    inputs = load_file(vectors / "unet_inputs.safetensors")
    wanted = ("sample_f3", "timesteps", "encoder_hidden_states")
    save_file({name: inputs[name] for name in wanted}, vectors / "unet_inputs.safetensors")
    save_file(state | {"v2_lora0.750_f3": state["v2_lora0.75_f3"].clone()}, vectors / "unet_outputs.safetensors")
    assert main(["animatediff", str(vectors)]) == 0
    assert capsys.readouterr().out.count("merged") == 4
