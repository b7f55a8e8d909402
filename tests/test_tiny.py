"""The tiny models: small, loadable by the libraries' own pipelines, and able to spell any text."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import AnimateDiffPipeline, DiffusionPipeline, MotionAdapter, StableDiffusionPipeline
from transformers import CLIPTokenizer, T5Tokenizer

from examples import tiny
from studio.workspace import Workspace
from trainers.families import FAMILIES


def test_it_loads_as_the_libraries_own_pipelines_and_is_small(tmp_path):
    out = tmp_path / "tiny"
    tiny.write("animatediff", out)
    assert sum(file.stat().st_size for file in out.rglob("*") if file.is_file()) < 5_000_000
    base = StableDiffusionPipeline.from_pretrained(out, torch_dtype=torch.float32)
    adapter = MotionAdapter.from_pretrained(out / "motion_adapter")
    assert all(module.proj_out.weight.abs().max() > 0 for module in adapter.modules() if hasattr(module, "proj_out")), (
        "a trained motion module has an effect"
    )
    pipeline = AnimateDiffPipeline(
        vae=base.vae,
        text_encoder=base.text_encoder,
        tokenizer=base.tokenizer,
        unet=base.unet,
        motion_adapter=adapter,
        scheduler=base.scheduler,
    )
    pipeline.set_progress_bar_config(disable=True)
    frames = pipeline("a red circle", num_frames=4, height=64, width=64, num_inference_steps=2, output_type="np").frames
    assert frames.shape == (1, 4, 64, 64, 3)
    assert frames.std() > 0.01


def test_the_same_seed_writes_the_same_model_and_leaves_the_global_generator_alone(tmp_path):
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    tiny.write("animatediff", tmp_path / "a", seed=1)
    assert torch.equal(torch.rand(3), expected)
    tiny.write("animatediff", tmp_path / "b", seed=1)
    tiny.write("animatediff", tmp_path / "c", seed=2)

    def weights(name):
        return (tmp_path / name / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()

    assert weights("a") == weights("b") != weights("c")


def test_its_tokenizer_spells_any_text(tmp_path):
    vocabulary = tiny.write_clip_tokenizer(tmp_path)
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path)
    seen = set()
    for text in ("a red circle", "a blue circle", "Käse 🧀 \\ ${alert(1)} <img onerror=x>", "日本語", ""):
        ids = tokenizer(text, padding="max_length", max_length=77, truncation=True).input_ids
        assert len(ids) == 77
        assert max(ids) < len(vocabulary)
        seen.add(tuple(ids))
    assert len(seen) == 5
    end = vocabulary["<|endoftext|>"]
    assert tokenizer("a red circle").input_ids == [
        vocabulary["<|startoftext|>"], vocabulary["a</w>"], vocabulary["red</w>"], vocabulary["circle</w>"], end,
    ]  # fmt: skip


@pytest.mark.parametrize("kind", [kind for kind in tiny.VARIANTS if kind.startswith("cogvideox")])
def test_a_variant_is_small_and_names_its_pipeline(tmp_path, kind):
    settings = tiny.write(kind, tmp_path / kind)
    assert settings == {"base_model": str(tmp_path / kind)}
    assert sum(file.stat().st_size for file in (tmp_path / kind).rglob("*") if file.is_file()) < 1_000_000
    pipeline = DiffusionPipeline.from_pretrained(tmp_path / kind)
    assert type(pipeline).__name__ == ("CogVideoXImageToVideoPipeline" if "i2v" in kind else "CogVideoXPipeline")


def test_a_mochi_is_small_as_a_pipeline_and_as_genmos_files(tmp_path):
    assert tiny.write("mochi", tmp_path / "a") == {"base_model": str(tmp_path / "a")}
    settings = tiny.write("mochi-genmo", tmp_path / "b")
    assert settings == {"base_model": str(tmp_path / "b"), "text_encoder": str(tmp_path / "b" / "t5")}
    for folder in ("a", "b"):
        assert sum(file.stat().st_size for file in (tmp_path / folder).rglob("*") if file.is_file()) < 6_000_000
    assert type(DiffusionPipeline.from_pretrained(tmp_path / "a")).__name__ == "MochiPipeline"
    assert T5Tokenizer.from_pretrained(tmp_path / "b" / "t5")("a red circle").input_ids[-1] == 1


def test_its_t5_tokenizer_knows_the_words(tmp_path):
    size = tiny.write_t5_tokenizer(tmp_path)
    tokenizer = T5Tokenizer.from_pretrained(tmp_path)
    assert len(tokenizer) == size
    found = tokenizer("a red circle", padding="max_length", max_length=6, truncation=True).input_ids
    assert tokenizer.convert_ids_to_tokens(found) == ["▁a", "▁red", "▁circle", "</s>", "<pad>", "<pad>"]
    assert tokenizer("").input_ids == [1]
    assert len(set(map(tuple, tokenizer(["a blue circle", "zig", "zag", "\U0001f9c0"]).input_ids))) == 4


def test_an_unknown_family_lists_the_known_ones(tmp_path, capsys):
    assert tiny.main(["nosuch", str(tmp_path / "x")]) == 2
    assert "animatediff" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
    assert tiny.main(["animatediff", str(tmp_path / "y")]) == 0
    assert (tmp_path / "y" / "model_index.json").is_file()


def test_each_is_offered_to_its_family_alone(tmp_path):
    workspace = Workspace(tmp_path / "ws")
    for kind in (*tiny.FAMILIES, *tiny.VARIANTS):
        tiny.write(kind, workspace.models / kind)
    offered = {
        name: {Path(path).relative_to(workspace.models).parts[0] for path in workspace.base_models(family)}
        for name, family in FAMILIES.items()
    }
    assert offered == {
        name: {kind for kind in (*tiny.FAMILIES, *tiny.VARIANTS) if kind.split("-")[0] == name} for name in FAMILIES
    }
