"""What Mochi's trainers are started with becomes the same run here: every key is mapped or spoken of."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from compat_texts import check_probe, checked, flat
from mochi_texts import CLI, EXAMPLE, FACTORY, GENMO, GUIDE, PREPROCESS, RUN

import trainers.export
import trainers.sample
import trainers.train
from trainers.data.video import read_frames
from trainers.events import read
from trainers.families import FAMILIES, get_family, load_config, parse_config, parse_sample_config, read_settings
from trainers.families.mochi import compat_commands, compat_factory, compat_genmo
from trainers.families.mochi.compat import SCRIPTS, from_arguments, read_foreign
from trainers.families.mochi.compat_code import LinearQuadratic, read_code, schedule_of
from trainers.families.mochi.schedule import linear_quadratic
from trainers.runs import RunFolder
from trainers.settings import ConfigError

ROOT = Path(__file__).resolve().parent.parent
BOTH_STREAMS = ["to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"]


def translated(text):
    found = read_foreign(text)
    assert found is not None
    return checked(found)


def of(script, *words):
    return checked(from_arguments(script, words))


def refused(text):
    with pytest.raises(ConfigError) as caught:
        found = read_foreign(text)
        (parse_config if found.kind == "train" else parse_sample_config)(found.settings)
    assert len(caught.value.problems) == 1
    return str(caught.value)


def genmo(**changes):
    """Genmo's YAML with dotted keys changed (a__b for a.b); ... takes one out."""
    data = yaml.safe_load(GENMO)
    for path, value in changes.items():
        *parents, last = path.split("__")
        here = data
        for parent in parents:
            here = here[parent]
        if value is ...:
            del here[last]
        else:
            here[last] = value
    return yaml.safe_dump(data)


# --- lora.yaml --------------------------------------------------------------------------------------------------------


def test_the_shipped_yaml(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = translated(GENMO)
    assert (found.kind, found.run_dir, found.numbered) == ("train", "finetunes/my_mochi_lora", False)
    settings = found.settings
    assert len(settings["validation"].pop("prompts")) == 5
    assert settings == {
        "family": "mochi",
        "method": "lora",
        "base_model": "weights",
        "latent_normalisation": "consistent",
        "threshold_noise": 0.025,
        "linear_steps": None,
        "guidance_schedule": [],
        "seed": 42,
        "max_train_steps": 2000,
        "mixed_precision": "bf16",
        "dataset": {
            "path": "videos_prepared",
            "format": "prepared",
            "subfolders": True,
            "num_frames": 37,
            "height": 480,
            "width": 848,
            "caption_dropout": 0.1,
            "batch_size": 1,
        },
        "adapter": {
            "rank": 16,
            "alpha": 16.0,
            "dropout": 0.0,
            "out_rank": None,
            "out_alpha": None,
            "out_dropout": None,
            "tie_qkv": True,
            "target_modules": BOTH_STREAMS,
        },
        "optimizer": {
            "name": "adamw",
            "learning_rate": 2e-4,
            "lr_scheduler": "cosine",
            "lr_warmup_steps": 200,
            "beta1": 0.9,
            "beta2": 0.999,
            "weight_decay": 0.01,
            "epsilon": 1e-8,
            "gradient_accumulation_steps": 1,
            "max_grad_norm": None,
        },
        "memory": {"gradient_checkpointing": "sac", "checkpointed_blocks": None, "compile_blocks": False},
        "validation": {
            "every_steps": 200,
            "num_frames": 37,
            "height": 480,
            "width": 848,
            "seed": 12345,
            "num_inference_steps": 64,
            "guidance_scale": 6.0,
            "fps": 30,
        },
        "checkpoint": {"every_steps": 200, "keep_last": None},
    }
    said = "\n".join(found.notes)
    assert found.notes[0].startswith("latent_normalisation is consistent")
    assert "set latent_normalisation to genmo, or to none for what it did before 2025-01-08" in said
    assert "python -m trainers.export finetunes/my_mochi_lora/checkpoints/step-002000 --format genmo-lora" in said
    assert "training.num_post_attn_checkpoint (upstream's trainer does not pass it on" in said
    assert "seed is 42" in said


def test_every_door_reads_the_shipped_yaml(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert read_settings(GENMO, "train").settings == read_foreign(GENMO).settings
    config = load_config(EXAMPLE, ["dataset.num_frames=31"])
    assert (config.family, config.dataset.num_frames, config.dataset.format) == ("mochi", 31, "prepared")
    door = [sys.executable, "-m", "trainers.families.mochi.compat"]
    done = subprocess.run([*door, str(EXAMPLE)], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("# to run: python -m trainers.train --config FILE --run-dir finetunes/my_mochi_lora")
    assert yaml.safe_load(done.stdout) == read_foreign(GENMO).settings
    words = ["preprocess.bash", "-v", "videos"]
    done = subprocess.run([*door, *words], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "--weights_dir: must be set" in done.stderr


def test_no_torch_is_needed_to_read_it():
    code = (
        "import sys; from trainers.families import read_settings; read_settings(open(sys.argv[1]).read(), 'train'); "
        "assert not {'torch', 'diffusers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(EXAMPLE)], cwd=ROOT, check=True, timeout=120)


#: key -> (a value, what it changes), where the shipped file began.
PROBES = {
    "init_checkpoint_path": ("other/dit.safetensors", {"base_model": "other"}),
    "checkpoint_dir": ("o\\p", {"run_dir": "o/p"}),
    "train_data_dir": ("d\\e", {"dataset.path": "d/e"}),
    "attention_mode": ("flash", "attention_mode (PyTorch's own attention"),
    "single_video_mode": (True, {"dataset.max_clips": 1, "validation.prompts": []}),
    "wandb": ({"project": "mochi_1_lora", "name": "${checkpoint_dir}"}, "wandb (nothing is sent there"),
    "optimizer__lr": (1e-4, {"optimizer.learning_rate": 1e-4}),
    "optimizer__weight_decay": (0.0, {"optimizer.weight_decay": 0.0}),
    "optimizer__betas": ([0.8, 0.99], {"optimizer.beta1": 0.8, "optimizer.beta2": 0.99}),
    "optimizer__eps": (1e-6, {"optimizer.epsilon": 1e-6}),
    "optimizer__fused": (True, "optimizer.fused ("),
    "model__type": ("full", {"method": "full"}),
    "model__kwargs__qkv_proj_lora_rank": (8, {"adapter.rank": 8, "adapter.out_rank": 16}),
    "model__kwargs__qkv_proj_lora_alpha": (32, {"adapter.alpha": 32.0, "adapter.out_alpha": 16.0}),
    "model__kwargs__qkv_proj_lora_dropout": (0.1, {"adapter.dropout": 0.1, "adapter.out_dropout": 0.0}),
    "model__kwargs__out_proj_lora_rank": (8, {"adapter.out_rank": 8}),
    "model__kwargs__out_proj_lora_alpha": (32, {"adapter.out_alpha": 32.0}),
    "model__kwargs__out_proj_lora_dropout": (0.1, {"adapter.out_dropout": 0.1}),
    "training__model_dtype": (..., {}),
    "training__warmup_steps": (20, {"optimizer.lr_warmup_steps": 20}),
    "training__num_qkv_checkpoint": (47, "memory.checkpointed_blocks is 48"),
    "training__num_ff_checkpoint": (0, "Upstream does so for 48 and 0 blocks"),
    "training__num_post_attn_checkpoint": (..., {}),
    "training__num_steps": (400, {"max_train_steps": 400}),
    "training__save_interval": (50, {"checkpoint.every_steps": 50}),
    "training__caption_dropout": (0.2, {"dataset.caption_dropout": 0.2}),
    "training__grad_clip": (1.0, {"optimizer.max_grad_norm": 1.0}),
    "training__save_safetensors": (False, "training.save_safetensors (weights are always"),
    "sample__interval": (50, {"validation.every_steps": 50}),
    "sample__output_dir": ("elsewhere", "sample.output_dir (samples lie in the run folder)"),
    "sample__decoder_path": ("other/decoder.safetensors", "sample.decoder_path other/decoder.safetensors is left out"),
    "sample__prompts": (["one", "one", "two"], {"validation.prompts": ["one", "two"]}),
    "sample__seed": (7, {"validation.seed": 7}),
    "sample__kwargs__height": (240, {"validation.height": 240}),
    "sample__kwargs__width": (432, {"validation.width": 432}),
    "sample__kwargs__num_frames": (61, {"validation.num_frames": 61}),
    "sample__kwargs__batch_cfg": (True, {}),
}


@pytest.mark.parametrize("key", PROBES)
def test_a_key_has_its_effect(key, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    value, wanted = PROBES[key]
    check_probe(translated(GENMO), translated(genmo(**{key: value})), key, wanted)


def test_every_key_is_probed():
    """But those of AdamW that nobody sets, and the three that belong together, which have a test of their own."""
    tables = {"": compat_genmo.TOP, "training__": compat_genmo.TRAINING, "sample__": compat_genmo.SAMPLE,
              "sample__kwargs__": compat_genmo.SAMPLE_KWARGS, "model__kwargs__": compat_genmo.KWARGS,
              "model__": compat_genmo.MODEL, "optimizer__": compat_genmo.OPTIMIZER}  # fmt: skip
    keys = {prefix + name for prefix, table in tables.items() for name in table}
    sections = {"optimizer", "model", "model__kwargs", "training", "sample", "sample__kwargs"}
    others = {f"optimizer__{name}" for name in ("amsgrad", "maximize", "foreach", "capturable", "differentiable")}
    together = {f"sample__kwargs__{name}" for name in ("num_inference_steps", "sigma_schedule", "cfg_schedule")}
    assert keys - sections - together - others <= set(PROBES)
    assert set(flat(yaml.safe_load(GENMO), "")) - {"wandb"} <= {key.replace("__", ".") for key in keys} | {
        f"sample.kwargs.{name}_schedule_python_code" for name in ("sigma", "cfg")
    }


def test_what_is_left_out_has_the_shipped_value(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    short = {
        "init_checkpoint_path": "weights/dit.safetensors",
        "checkpoint_dir": "out",
        "train_data_dir": "clips",
        "optimizer": {"lr": 2e-4},
        "model": yaml.safe_load(GENMO)["model"],
    }
    now, then = flat(translated(yaml.safe_dump(short)).settings), flat(translated(GENMO).settings)
    assert {key: now[key] for key in now if now[key] != then[key]} == {
        "dataset.path": "clips",
        "validation.every_steps": None,  # neither samples nor checkpoints, as upstream
        "validation.prompts": [],
        "checkpoint.every_steps": None,
    }
    assert flat(translated(genmo(optimizer={})).settings)["optimizer.learning_rate"] == 1e-3, "AdamW's own"


@pytest.mark.parametrize(
    ("qkv", "feed_forward", "policy", "blocks"),
    [(48, 48, "sac", None), (0, 0, "none", None), (20, 20, "sac", 20), (20, 0, "sac", 20), (64, 3, "sac", None)],
)
def test_what_is_computed_again(qkv, feed_forward, policy, blocks):
    found = translated(genmo(training__num_qkv_checkpoint=qkv, training__num_ff_checkpoint=feed_forward))
    memory = found.settings["memory"]
    assert (memory["gradient_checkpointing"], memory["checkpointed_blocks"]) == (policy, blocks)
    assert any("num_ff_checkpoint" in note for note in found.notes) == (qkv != feed_forward)


def test_a_lora_on_a_part_of_the_layers():
    found = translated(genmo(model__kwargs__out_proj_lora_rank=0, model__kwargs__out_proj_lora_dropout=0.1))
    assert found.settings["adapter"]["target_modules"] == [n for n in BOTH_STREAMS if "out" not in n]
    assert found.settings["adapter"]["out_rank"] is None
    assert any("out_proj_lora_dropout (these layers have no LoRA" in note for note in found.notes)
    found = translated(genmo(model__kwargs__qkv_proj_lora_rank=0, model__kwargs__out_proj_lora_rank=4))
    assert found.settings["adapter"]["target_modules"] == ["to_out.0", "to_add_out"]
    assert (found.settings["adapter"]["rank"], found.settings["adapter"]["alpha"]) == (4, 16.0)


def test_the_base_is_the_folder_of_its_file():
    for path, base in (
        ("weights/dit.safetensors", "weights"), ("dit.safetensors", "."), ("/dit.safetensors", "/"),
        ("~/w/dit.safetensors", "~/w"), ("genmo/mochi-1-preview", "genmo/mochi-1-preview"), ("weights/", "weights/"),
        ("base/transformer/diffusion_pytorch_model.safetensors", "base"),
    ):  # fmt: skip
        assert translated(genmo(init_checkpoint_path=path)).settings["base_model"] == base


def test_a_run_of_upstream_goes_on():
    path = "finetunes/my_mochi_lora/model_1000.lora.safetensors"
    found = translated(genmo(init_checkpoint_path=path))
    expected = {"base_model": "weights", "start_from": path, "start_step": 1000, "method": "lora"}
    assert {key: found.settings[key] for key in expected} == expected
    assert any("leaves the base model at random values" in note for note in found.notes)
    whole = translated(genmo(init_checkpoint_path="x/model_200.checkpoint.safetensors", model__type="full"))
    assert (whole.settings["start_step"], whole.settings["base_model"]) == (200, "weights")
    assert not any("random" in note for note in whole.notes)
    nothing = translated(genmo(init_checkpoint_path=path, sample__decoder_path=...))
    assert nothing.missing.keys() == {"base_model"}
    assert "raise num_steps" in refused(genmo(init_checkpoint_path=path, training__num_steps=1000))


def test_one_clip_and_its_caption(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = translated(genmo(single_video_mode=True))
    assert found.settings["validation"]["prompts"] == []
    assert any("cannot be read here, so no samples are drawn: set validation.prompts" in note for note in found.notes)
    Path("videos_prepared").mkdir()
    for name in ("b.mp4", "a.recon.mp4", "a.mp4", "a.latent.pt"):
        Path("videos_prepared", name).touch()
    Path("videos_prepared", "a.txt").write_text("a teacup\n", encoding="utf-8")
    found = translated(genmo(single_video_mode=True))
    assert found.settings["validation"]["prompts"] == ["a teacup"]
    assert (found.settings["dataset"]["max_clips"], found.settings["dataset"]["format"]) == (1, "prepared")
    assert any("a.mp4 alone is trained on" in note for note in found.notes)


def test_a_folder_that_nobody_prepared_is_prepared_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("videos_prepared").mkdir()
    Path("videos_prepared/a.mp4").touch()
    found = translated(genmo(sample__kwargs__num_frames=61))
    expected = {"format": "sidecar", "num_frames": 61, "fit": "cut", "fps": 30.0, "fps_rounding": "earlier",
                "upscale": False, "frame_selection": "first"}  # fmt: skip
    assert {key: found.settings["dataset"][key] for key in expected} == expected
    assert any("holds videos that are not prepared" in note for note in found.notes)
    Path("videos_prepared/a.latent.pt").touch()
    Path("videos_prepared/below").mkdir()
    Path("videos_prepared/below/b.mp4").touch()
    found = translated(GENMO)
    assert found.settings["dataset"]["format"] == "prepared"
    assert any("set dataset.subfolders to false" in note for note in found.notes)


def test_interpolation():
    found = translated(
        genmo(
            checkpoint_dir="out/${sample.seed}",
            train_data_dir="${checkpoint_dir}/data",
            training__warmup_steps="${training.save_interval}",
            training__save_interval="${sample.interval}",
            sample__kwargs__width="${.height}",
            sample__kwargs__cfg_schedule_python_code="[5.0] * ${.num_inference_steps}",
        )
    )
    settings = flat(found.settings)
    assert (found.run_dir, settings["dataset.path"]) == ("out/12345", "out/12345/data")
    assert (settings["optimizer.lr_warmup_steps"], settings["checkpoint.every_steps"]) == (200, 200)
    assert (settings["validation.width"], settings["validation.guidance_scale"]) == (480, 5.0)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"init_checkpont_path": "x"}, "init_checkpont_path: is unknown to Genmo's fine-tuner; did you mean init_chec"),
        ({"training__num_step": 1}, "training.num_step: is unknown to Genmo's fine-tuner; did you mean num_steps?"),
        ({"model__kwargs__qkv_lora_rank": 1}, "model.kwargs.qkv_lora_rank: is unknown"),
        ({"sample__kwargs__guidance": 1}, "sample.kwargs.guidance: is unknown"),
        ({"training__num_steps": "many"}, "training.num_steps: is 'many', but must be a number"),
        ({"training__model_dtype": "fp16"}, "training.model_dtype: is 'fp16', but must be bf16"),
        ({"attention_mode": "xformers"}, "attention_mode: is 'xformers'; choose sdpa, flash or sage"),
        ({"optimizer__betas": 0.9}, "optimizer.betas: is 0.9; write two numbers"),
        ({"optimizer__amsgrad": True}, "optimizer.amsgrad: is not part of Dailies"),
        ({"model__kwargs__qkv_proj_lora_alpha": 0}, "qkv_proj_lora_alpha: is 0, with which a LoRA has no effect"),
        ({"model__kwargs__qkv_proj_lora_alpha": ...}, "qkv_proj_lora_alpha: must be set"),
        ({"model__kwargs__qkv_proj_lora_rank": 0, "model__kwargs__out_proj_lora_rank": 0}, "nothing would be trained"),
        ({"init_checkpoint_path": "w/mochi.safetensors"}, "a base model is a folder with dit.safetensors, encoder"),
        ({"init_checkpoint_path": "???"}, "init_checkpoint_path: must be set"),
        (
            {"sample__kwargs__num_frames": 36},
            "sample.kwargs.num_frames: is 36, but Mochi takes 6k + 1 frames: set 31 or 37",
        ),
        ({"sample__kwargs__height": 100}, "height: is 100, but must be a multiple of 16: set 96 or 112"),
        ({"checkpoint_dir": "${train_dir}"}, "checkpoint_dir: refers to ${train_dir}, which is not set in this file"),
        ({"checkpoint_dir": "${oc.env:HOME}/x"}, "refers to ${oc.env:HOME}, which is not followed here"),
        ({"checkpoint_dir": "x${checkpoint_dir}"}, "which refers back to it"),
        ({"checkpoint_dir": "x${optimizer}"}, "but that is no single value"),
    ],
)
def test_what_cannot_be_meant_is_one_sentence(changes, says):
    with pytest.raises(ConfigError) as caught:
        parse_config(read_foreign(genmo(**changes)).settings)
    assert says in str(caught.value)
    assert len(caught.value.problems) <= 2  # the key that is unknown, and the one that is missing for it


# --- the keys that hold Python ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "value"),
    [
        ("linear_quadratic_schedule(64, 0.025)", LinearQuadratic(64, 0.025)),
        (" linear_quadratic_schedule(8, 0.1, 6)\n", LinearQuadratic(8, 0.1, 6)),
        ("linear_quadratic_schedule(64, 0.025, 32)", LinearQuadratic(64, 0.025)),
        ("linear_quadratic_schedule(num_steps=8, threshold_noise=.1, linear_steps=None)", LinearQuadratic(8, 0.1)),
        ("linear_quadratic_schedule(128 // 2, 0.05 / 2)", LinearQuadratic(64, 0.025)),
        ("[6.0] * 64", [6.0] * 64),
        ("3 * [6, 4.5]", [6, 4.5] * 3),
        ("[5.0] * (64 // 2) + [4.5] * 32", [5.0] * 32 + [4.5] * 32),
        ("[1, -2.5, 3e-1]", [1, -2.5, 0.3]),
        ("(6.0, 5.0)", [6.0, 5.0]),
        ([6.0, 5.0], [6.0, 5.0]),
        ("64", 64),
        (64, 64),
    ],
)
def test_code_that_is_a_schedule(code, value):
    assert read_code("key", code) == value


@pytest.mark.parametrize(
    "code",
    [
        "__import__('os')",
        "__import__('os').system('touch pwned')",
        "[__import__('os').getpid()] * 64",
        "[6.0] * len([1])",
        "[x for x in range(64)]",
        "(lambda: [6.0])()",
        "open('pwned', 'w')",
        "linear_quadratic_schedule.__globals__",
        "linear_quadratic_schedule(*[64, 0.025])",
        "linear_quadratic_schedule(64, 0.025, 32, 1)",
        "linear_quadratic_schedule(64, 0.025, threshold_noise=1)",
        "linear_quadratic_schedule(64, 0.025) + [0.0]",
        "other_schedule(64, 0.025)",
        "[[6.0]] * 64",
        "[True] * 64",
        "['6.0'] * 64",
        "[6.0] * 6.0",
        "f'{6}'",
        "2 ** 64",
        "steps := 64",
        "import os",
        "",
        "[6.0",
        "\0",
        "(" * 5000 + ")" * 5000,
        "-" * 9000 + "1",
        "[6.0]" + " + [6.0]" * 20_000,
        True,
        {"a": 1},
    ],
)
def test_code_that_is_none_is_never_run(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as caught:
        read_code("sample.kwargs.sigma_schedule_python_code", code)
    assert list(tmp_path.iterdir()) == []
    (where, what), = caught.value.problems  # fmt: skip
    assert where == "sample.kwargs.sigma_schedule_python_code"
    assert what.endswith("a list of numbers or a sum of such lists; code is never run")
    assert len(what) < 300


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("[6.0] * 1000000000", "makes a list of 1000000000 numbers; 1000 steps are the most"),
        ("[1, 2] * 501", "makes a list of 1002 numbers"),
        ("[6.0] * 1000 + [6.0] * 1000", "has 2000 numbers"),
        ("[1e400]", "holds a number that is too large"),
        ("99999 * 99999", "too large"),
        ("1 / 0", "divides by zero"),
        ("linear_quadratic_schedule(64)", "does not say threshold_noise"),
        ("linear_quadratic_schedule(64.5, 0.025)", "has 64.5 steps; write a whole number"),
        ("linear_quadratic_schedule(1, 0.025)", "has 1 steps"),
        ("linear_quadratic_schedule(64, 1)", "has a threshold of 1"),
        ("linear_quadratic_schedule(64, 0.025, 64)", "has 64 linear steps of 64"),
    ],
)
def test_numbers_that_make_no_schedule(code, says):
    with pytest.raises(ConfigError, match="key: ") as caught:
        read_code("key", code)
    assert says in str(caught.value)


@pytest.mark.parametrize("key", ["sigma_schedule", "cfg_schedule", "num_frames"])
def test_code_in_a_yaml_is_one_sentence_with_the_key(key, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    changes = {f"sample__kwargs__{key}": ..., f"sample__kwargs__{key}_python_code": "__import__('os').mkdir('pwned')"}
    if key != "num_frames":
        del changes[f"sample__kwargs__{key}"]
    said = refused(genmo(**changes))
    assert said.startswith(f"sample.kwargs.{key}_python_code: is \"__import__('os')")
    assert "\n" not in said
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ConfigError, match=f"{key}_python_code"):
        read_settings(genmo(**changes), "train")


def test_a_schedule_that_is_written_out():
    for schedule in (LinearQuadratic(64, 0.025), LinearQuadratic(8, 0.1, 6), LinearQuadratic(5, 0.2, 1)):
        levels = [*linear_quadratic(schedule.num_steps, schedule.threshold_noise, schedule.linear_steps), 0.0]
        assert schedule_of(levels) == schedule
    assert schedule_of([1.0, 0.75, 0.5, 0.25, 0.0]) in (None, LinearQuadratic(4, 0.25, 1), LinearQuadratic(4, 0.5))
    assert schedule_of([1.0, 0.9, 0.1, 0.0]) is None
    assert schedule_of([1.0]) is None
    levels = [*linear_quadratic(8, 0.1, 6), 0.0]
    changes = {f"sample__kwargs__{name}_schedule_python_code": ... for name in ("sigma", "cfg")}
    found = translated(genmo(**changes, sample__kwargs__sigma_schedule=levels, sample__kwargs__num_inference_steps=...))
    expected = {"threshold_noise": 0.1, "linear_steps": 6}
    assert {key: found.settings[key] for key in expected} == expected
    assert found.settings["validation"]["num_inference_steps"] == 8


def test_steps_schedule_and_guidance_belong_together():
    def kwargs(steps, sigma, cfg):
        names = {"num_inference_steps": steps, "sigma_schedule_python_code": sigma, "cfg_schedule_python_code": cfg}
        return genmo(**{f"sample__kwargs__{name}": value for name, value in names.items()})

    found = translated(kwargs(8, "linear_quadratic_schedule(8, 0.1, 6)", "[1.5] * 8")).settings
    assert (found["threshold_noise"], found["linear_steps"], found["guidance_schedule"]) == (0.1, 6, [])
    assert (found["validation"]["num_inference_steps"], found["validation"]["guidance_scale"]) == (8, 1.5)
    found = translated(kwargs(4, "linear_quadratic_schedule(4, 0.1)", "[6.0] * 2 + [1, 0.5]")).settings
    assert found["guidance_schedule"] == [6.0, 6.0, 1.0, 0.5]
    assert translated(kwargs(4, ..., "[0.5] * 4")).settings["guidance_schedule"] == [0.5] * 4
    assert translated(kwargs(..., ..., "[2.0] * 3")).settings["validation"]["num_inference_steps"] == 3
    for text, says in (
        (kwargs(32, "linear_quadratic_schedule(64, 0.025)", "[6.0] * 32"), "sigma_schedule_python_code: is for 64"),
        (kwargs(64, "linear_quadratic_schedule(64, 0.025)", "[6.0] * 32"), "cfg_schedule_python_code: is a list for"),
        (kwargs(64, "[0.5] * 65", "[6.0] * 64"), "sigma_schedule_python_code: is no schedule that can be drawn here"),
        (kwargs(64, ..., "linear_quadratic_schedule(64, 0.025)"), "cfg_schedule_python_code: is no list of numbers"),
        (kwargs(64, ..., "6.0"), "cfg_schedule_python_code: is no list of numbers"),
        (genmo(sample__kwargs__cfg_schedule=[6.0] * 64), "leave one of them"),
    ):  # fmt: skip
        assert says in refused(text)


# --- the commands -----------------------------------------------------------------------------------------------------


def test_the_guides_two_commands_are_one_config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("demos/fine_tuner/configs").mkdir(parents=True)
    Path("demos/fine_tuner/configs/lora.yaml").write_text(GENMO, encoding="utf-8")
    for text in (GUIDE, f"{PREPROCESS}\n{RUN}\n", f"set -e\n{PREPROCESS} && \\\n  {RUN}"):
        found = translated(text)
        now, then = flat(found.settings), flat(translated(GENMO).settings)
        assert {key: now.get(key) for key in now.keys() | then.keys() if now.get(key) != then.get(key)} == {
            "dataset.path": "videos/",
            "dataset.format": "sidecar",
            "dataset.fps": 30.0,
            "dataset.fps_rounding": "earlier",
            "dataset.frame_selection": "first",
            "dataset.fit": "cut",
            "dataset.upscale": False,
            "memory.compile_blocks": True,
        }
        assert found.run_dir == "finetunes/my_mochi_lora"
        assert any("The clips of videos/ are prepared when the run begins" in note for note in found.notes)
    run = translated(RUN)
    assert run.settings["dataset"]["format"] == "prepared"
    assert read_settings(GUIDE, "train").settings == translated(GUIDE).settings


def test_the_yaml_may_stand_in_the_same_text(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = translated(f"```bash\n{PREPROCESS} && {RUN}\n```\nwith\n```yaml\n{genmo(training__num_steps=900)}```\n")
    assert (found.settings["max_train_steps"], found.settings["dataset"]["path"]) == (900, "videos/")
    found = translated(f"```yaml\n{GENMO}```\n```bash\n{PREPROCESS}\n```\n")
    assert found.settings["dataset"]["path"] == "videos/"
    assert found.settings["memory"]["compile_blocks"] is False


def test_without_its_yaml_the_guide_trains_as_shipped(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = translated(GUIDE.replace("--num_frames 37", "-n 61"))
    assert found.settings["base_model"] == "weights"
    assert (found.settings["dataset"]["num_frames"], found.settings["validation"]["num_frames"]) == (61, 61)
    assert found.settings["adapter"]["rank"] == 16
    assert any("lora.yaml is not here" in note for note in found.notes)
    said = refused(RUN)
    assert said.startswith("--config: names ./demos/fine_tuner/configs/lora.yaml, which is not in ")
    Path("other.yaml").write_text("a: 1\n", encoding="utf-8")
    assert "other.yaml is no config of Genmo's fine-tuner" in refused("bash run.bash -c other.yaml")


def test_preparing_alone():
    for text in (PREPROCESS, PREPROCESS.replace("-v", "--videos_dir").replace("-o", "--output_dir")):
        found = translated(text)
        dataset = found.settings["dataset"]
        assert (found.settings["base_model"], found.run_dir) == ("weights/", None)
        assert (dataset["path"], dataset["num_frames"], dataset["height"], dataset["width"]) == (
            "videos/",
            37,
            480,
            848,
        )
        assert dataset["subfolders"] is True
    assert refused(PREPROCESS.replace("37", "36")).startswith("--num_frames: is 36")
    assert "set 31 or 37" in refused(PREPROCESS.replace("37", "36"))
    assert "--output_dir: must be set" in refused(PREPROCESS.replace("-o videos_prepared/ ", ""))
    assert "--frames: is unknown to preprocess.bash; did you mean num_frames?" in refused(f"{PREPROCESS} --frames 37")
    assert "is the last word of preprocess.bash's command" in refused(f"{PREPROCESS} -v")
    assert "the clips are prepared in videos_prepared/" in refused(
        f"```\n{PREPROCESS}\n```\n```\n{genmo(train_data_dir='elsewhere')}```\n"
    )
    assert "prepares clips more than once" in refused(f"{PREPROCESS}\n{PREPROCESS}")


def test_preparing_step_by_step():
    text = """
    python3 demos/fine_tuner/trim_and_crop_videos.py videos/ out/ -d 1.4 -r 432x240
    python3 demos/fine_tuner/encode_videos.py out/ --model_dir weights/ --num_gpus 1 --shape 25x240x432 -ow
    python3 demos/fine_tuner/embed_captions.py out/
    """
    found = translated(text)
    dataset = found.settings["dataset"]
    assert (dataset["path"], dataset["num_frames"], dataset["height"], dataset["width"]) == ("videos/", 25, 240, 432)
    assert found.settings["base_model"] == "weights/"
    assert any("--duration (the frames that are encoded are all that is used)" in note for note in found.notes)
    alone = translated("python trim_and_crop_videos.py videos out")
    assert alone.missing.keys() == {"base_model"}
    factorys = of("trim_and_crop_videos.py", "in", "out", "--num_frames=37", "--resolution=240x432", "--force_upsample")
    dataset = factorys.settings["dataset"]
    assert (dataset["num_frames"], dataset["height"], dataset["width"], dataset["upscale"]) == (37, 240, 432, True)
    for wrong, says in (
        (text.replace("-r 432x240", "-r 240x432"), "--resolution: of trim_and_crop_videos.py is 240x432, but --shape"),
        (
            text.replace("25x240x432", "25x240"),
            "--shape: of encode_videos.py is '25x240'; write frames x height x width",
        ),
        (text.replace("videos/ out/", "videos/ other/"), "give both the same folder"),
        ("python trim_and_crop_videos.py videos -d 5", "must be followed by OUTPUT_FOLDER"),
        ("python trim_and_crop_videos.py a b c -d 5", "'c' stands where"),
        ("python trim_and_crop_videos.py a b -d 5 -f 37", "leave one"),
    ):
        assert says in refused(wrong)


@pytest.mark.parametrize(
    ("text", "compiled"),
    [
        ("bash run.bash -c lora.yaml -n 1", True),
        ("COMPILE_DIT=1 bash run.bash --config lora.yaml", True),
        ("export COMPILE_DIT=1\nbash run.bash -c lora.yaml", True),
        ("COMPILE_DIT=0 bash run.bash -c lora.yaml", False),
        ("COMPILE_DIT=1 python demos/fine_tuner/train.py --config-path lora.yaml", True),
        ("export COMPILE_DIT=1\npython demos/fine_tuner/train.py --config-path=lora.yaml", True),
        ("python demos/fine_tuner/train.py --config-path lora.yaml", False),
    ],
)
def test_compiled_blocks(text, compiled, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("lora.yaml").write_text(GENMO, encoding="utf-8")
    assert translated(text).settings["memory"]["compile_blocks"] is compiled


def test_several_gpus_are_used_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("lora.yaml").write_text(GENMO, encoding="utf-8")
    said = "\n".join(translated("bash run.bash -c lora.yaml -n 4").notes)
    assert "--num_gpus 4: upstream trains on one GPU whatever it says" in said
    assert "--num_gpus" not in "\n".join(translated("bash run.bash -c lora.yaml").notes)


def test_what_is_none_of_them():
    for text in (
        "python train.py --config train.yaml",
        "python -m trainers.train --config examples/mochi/lora.yaml",
        "python tools/cli.py --prompt a",
        "The script preprocess.bash takes four options and run.bash two.",
        "family: mochi\nmethod: lora\n",
        "checkpoint_dir: x\n",
        "bash train.bash -c x.yaml",
    ):
        assert read_foreign(text) is None
    reads = get_family("mochi").reads
    assert all(name in reads for name in ("lora.yaml", "preprocess.bash", "run.bash", "cli.py", "mochi-1"))


def test_two_runs_are_too_many():
    for text in (f"```\n{GENMO}```\n```\n{GENMO}```\n", f"{RUN}\n{RUN}", f"{PREPROCESS}\n{CLI}", f"{FACTORY}\n{RUN}"):
        assert "there are 2 configs or commands in this text; give one of them" in refused(text)


# --- drawing ----------------------------------------------------------------------------------------------------------


def test_the_guides_last_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = translated(CLI)
    assert (found.kind, found.run_dir, found.numbered) == ("sample", "outputs", True)
    assert found.settings == {
        "family": "mochi",
        "base_model": "weights/",
        "checkpoints": ["finetunes/my_mochi_lora/model_2000.lora.safetensors"],
        "strengths": [1.0],
        "include_base": False,
        "prompts": ["A delicate porcelain teacup sits on a marble countertop."],
        "negative_prompt": "",
        "seeds": [1710977262],
        "num_frames": 37,
        "height": 480,
        "width": 848,
        "num_inference_steps": 64,
        "guidance_scale": 6.0,
        "guidance_schedule": [],
        "threshold_noise": 0.025,
        "linear_steps": None,
        "fps": 30,
        "mixed_precision": "bf16",
        "vae_tiling": True,
        "cpu_offload": True,
    }
    assert read_settings(f"```bash\n{CLI}\n```", "sample").settings == found.settings
    with pytest.raises(ConfigError, match="draws samples with Mochi; give it to"):
        read_settings(CLI, "train")
    Path("finetunes/my_mochi_lora/checkpoints/step-002000").mkdir(parents=True)
    found = translated(CLI)
    assert found.settings["checkpoints"] == ["finetunes/my_mochi_lora/checkpoints/step-002000"]
    assert any("the same step of a run of Dailies" in note for note in found.notes)


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["--prompt", "other"], {"prompts": ["other"]}),
        (["--negative_prompt", "blur"], {"negative_prompt": "blur"}),
        (["--width", "432"], {"width": 432}),
        (["--height", "240"], {"height": 240}),
        (["--num_frames", "61"], {"num_frames": 61}),
        (["--seed", "7"], {"seeds": [7]}),
        (["--cfg_scale", "4.5"], {"guidance_scale": 4.5}),
        (["--cfg_scale", "0.5", "--num_steps", "3"], {"guidance_schedule": [0.5] * 3}),
        (["--num_steps", "8"], {"num_inference_steps": 8}),
        (["--model_dir", "other"], {"base_model": "other"}),
        (["--lora_path", "x.lora.safetensors"], {"checkpoints": ["x.lora.safetensors"], "include_base": False}),
        (["--cpu_offload"], {"cpu_offload": True}),
        (["--out_dir", "o"], {"run_dir": "o"}),
        (["--threshold-noise", "0.1"], {"threshold_noise": 0.1}),
        (["--linear-steps", "6"], {"linear_steps": 6}),
    ],
)
def test_an_option_of_the_demo(words, wanted):
    base = ["--model_dir", "weights/", "--prompt", "a"]
    check_probe(of("cli.py", *base), of("cli.py", *base, *words), words[0], wanted)


def test_prompts_of_the_demo(tmp_path):
    assert of("cli.py", "--model_dir", "w", "--cpu_offload").missing.keys() == {"prompts"}
    file = tmp_path / "sweep.jsonl"
    words = ("--model_dir", "w", "--prompt", "p", "--sweep-file", str(file))

    def swept(*lines):
        file.write_text("\n\n".join(map(json.dumps, lines)), encoding="utf-8")
        return of("cli.py", *words).settings

    assert swept({"prompt": "a", "seed": 3}, {"prompt": "b", "seed": 3})["prompts"] == ["a", "b"]
    assert swept({"prompt": "a", "seed": 3, "num_steps": 8})["seeds"] == [3]
    assert swept({"num_steps": 8, "linear_steps": 6})["prompts"] == ["p"]
    for lines, says in (
        ([{"prompt": "a", "cfg_scale": 1}, {"prompt": "b"}], "lines of different cfg_scale"),
        ([{"prompt": "a", "num_steps": "x"}], "has 'x' for num_steps"),
        ([["a"]], "must hold a JSON object in each line"),
    ):
        with pytest.raises(ConfigError, match=says):
            swept(*lines)
    file.write_text("{", encoding="utf-8")
    with pytest.raises(ConfigError, match="a line that is no JSON"):
        of("cli.py", *words)
    file.unlink()
    with pytest.raises(ConfigError, match="does not exist"):
        of("cli.py", *words)


# --- cogvideox-factory ------------------------------------------------------------------------------------------------


def test_the_factorys_shell_script(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = translated(FACTORY)
    settings = flat(found.settings)
    expected = {
        "base_model": "genmo/mochi-1-preview",
        "latent_normalisation": "consistent",
        "max_train_steps": 2000,
        "dataset.format": "prepared",
        "dataset.path": "videos_prepared",
        "dataset.caption_dropout": 0.1,
        "adapter.rank": 16,
        "adapter.tie_qkv": False,
        "adapter.target_modules": ["to_k", "to_q", "to_v", "to_out.0"],
        "optimizer.learning_rate": 2e-4,
        "optimizer.lr_scheduler": "cosine",
        "optimizer.lr_warmup_steps": 200,
        "optimizer.weight_decay": 0.01,
        "memory.gradient_checkpointing": "full",
        "memory.compile_blocks": False,
        "memory.vae_tiling": True,
        "validation.prompts": ["A black and white goat, surrounded by notes", "A mouse"],
        "validation.num_frames": 19,
        "validation.seed": 42,
        "checkpoint.every_steps": None,
        "tracking.tracker": "none",
    }
    assert {key: settings[key] for key in expected} == expected
    assert found.run_dir == "mochi-lora"
    said = "\n".join(found.notes)
    assert "for its losses set latent_normalisation to none" in said
    assert "time_embed.pooler.to_q gets no LoRA" in said
    assert "--report_to (nothing is sent to wandb" in said


STEPS = ["--max_train_steps", "2000"]
LEAST = ["--pretrained_model_name_or_path", "base", "--data_root", "data"]
SAMPLES = ["--validation_prompt", "a:::b"]
#: flag -> (words around it, its own values, what it changes).
FACTORY_PROBES = {
    "pretrained_model_name_or_path": ([], ["other\\base"], {"base_model": "other/base"}),
    "revision": ([], ["v1"], "--revision ("),
    "variant": ([], ["fp16"], "--variant ("),
    "cache_dir": ([], ["c"], "--cache_dir ("),
    "cast_dit": ([], [], "--cast_dit ("),
    "compile_dit": ([], [], {"memory.compile_blocks": True}),
    "data_root": ([], ["d\\e"], {"dataset.path": "d/e"}),
    "caption_dropout": ([], ["0.2"], {"dataset.caption_dropout": 0.2}),
    "dataloader_num_workers": ([], ["4"], "--dataloader_num_workers ("),
    "pin_memory": ([], [], "--pin_memory ("),
    "validation_prompt": ([], ["one ::: two"], {"validation.prompts": ["one", "two"]}),
    "validation_images": ([], ["x.png"], "--validation_images ("),
    "validation_prompt_separator": (["--validation_prompt", "a;b"], [";"], {"validation.prompts": ["a", "b"]}),
    "num_validation_videos": (SAMPLES, ["3"], {"validation.samples_per_prompt": 3}),
    "validation_epochs": (SAMPLES, ["7"], "upstream draws them every 7 epochs, whose steps cannot be counted"),
    "enable_slicing": ([], [], {"memory.vae_slicing": True}),
    "enable_tiling": ([], [], {"memory.vae_tiling": True}),
    "enable_model_cpu_offload": ([], [], "--enable_model_cpu_offload ("),
    "fps": ([], ["24"], "--fps ("),
    "height": ([], ["240"], {"validation.height": 240}),
    "width": ([], ["432"], {"validation.width": 432}),
    "seed": ([], ["7"], {"seed": 7, "validation.seed": 7}),
    "rank": ([], ["8"], {"adapter.rank": 8}),
    "lora_alpha": ([], ["8"], {"adapter.alpha": 8.0}),
    "target_modules": ([], ["to_q", "to_v"], {"adapter.target_modules": ["to_q", "to_v"]}),
    "output_dir": ([], ["o"], {"run_dir": "o"}),
    "train_batch_size": ([], ["2"], {"dataset.batch_size": 2}),
    "num_train_epochs": ([], ["3"], "--num_train_epochs (--max_train_steps decides"),
    "max_train_steps": ([], ["77"], {"max_train_steps": 77}),
    "gradient_checkpointing": ([], [], {"memory.gradient_checkpointing": "full"}),
    "learning_rate": ([], ["1e-3"], {"optimizer.learning_rate": 1e-3}),
    "scale_lr": (["--train_batch_size", "2"], [], {"optimizer.learning_rate": 4e-4}),
    "lr_warmup_steps": ([], ["20"], {"optimizer.lr_warmup_steps": 20}),
    "checkpointing_steps": ([], ["100"], {"checkpoint.every_steps": 100}),
    "resume_from_checkpoint": ([], ["c.pt"], "--resume."),
    "optimizer": ([], ["Adam"], "--optimizer (upstream takes adamw"),
    "weight_decay": ([], ["0.1"], {"optimizer.weight_decay": 0.1}),
    "tracker_name": ([], ["mine"], "--tracker_name ("),
    "push_to_hub": ([], [], "--push_to_hub (nothing is uploaded)"),
    "hub_token": ([], ["secret"], "--hub_token (nothing is uploaded)"),
    "hub_model_id": ([], ["a/b"], "--hub_model_id (nothing is uploaded)"),
    "allow_tf32": ([], [], "--allow_tf32 ("),
    "report_to": ([], ["wandb"], "--report_to (nothing is sent to wandb"),
}


@pytest.mark.parametrize("name", FACTORY_PROBES)
def test_a_flag_of_the_factory_has_its_effect(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    around, values, wanted = FACTORY_PROBES[name]
    base = [*LEAST, *STEPS, *around]
    before = of(compat_factory.SCRIPT, *base)
    check_probe(before, of(compat_factory.SCRIPT, *base, f"--{name}", *values), name, wanted)


def test_every_flag_of_the_factory_is_probed():
    assert set(FACTORY_PROBES) == set(compat_factory.FLAGS)


def test_epochs_of_the_factory_are_counted(tmp_path):
    for name in "abcde":
        for suffix in ("mp4", "latent.pt", "embed.pt"):
            (tmp_path / f"{name}.{suffix}").touch()
    (tmp_path / "e.embed.pt").unlink()
    words = ["--pretrained_model_name_or_path", "base", "--data_root", str(tmp_path), "--num_train_epochs", "10"]
    found = of(compat_factory.SCRIPT, *words, "--validation_epochs", "2", *SAMPLES, "--train_batch_size", "3")
    assert (found.settings["max_train_steps"], found.settings["validation"]["every_steps"]) == (20, 4)
    assert found.settings["optimizer"]["lr_warmup_steps"] == 20
    assert any("max_train_steps is 20: 10 epochs of 4 clips (batch 3)." in note for note in found.notes)
    assert any("--lr_warmup_steps 200 is more than the whole run" in note for note in found.notes)
    found = of(compat_factory.SCRIPT, "--pretrained_model_name_or_path", "base", "--data_root", str(tmp_path / "none"))
    assert found.settings["max_train_steps"] == 1000


def test_the_factorys_clips_are_prepared_as_well():
    prepare = (
        "python trim_and_crop_videos.py videos videos_prepared --num_frames=37 --resolution=480x848 --force_upsample"
    )
    found = translated(f"{prepare}\n{FACTORY}")
    dataset = found.settings["dataset"]
    assert (dataset["path"], dataset["format"], dataset["upscale"]) == ("videos", "sidecar", True)
    assert dataset["caption_dropout"] == 0.1
    assert "--data_root: is elsewhere" in refused(f"{prepare}\n{FACTORY.replace('videos_prepared', 'elsewhere')}")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--rnk", "3"], "--rnk: is unknown to cogvideox-factory's text_to_video_lora.py; did you mean rank?"),
        (["--optimizer", "prodigy"], "--optimizer: is 'prodigy'; choose adam or adamw"),
        (["--validation_prompt_separator="], "is empty; write what stands between"),
    ],
)
def test_what_the_factory_does_not_take(words, says):
    with pytest.raises(ConfigError) as caught:
        of(compat_factory.SCRIPT, *LEAST, *STEPS, *words)
    assert says in str(caught.value)


# --- presets and examples ---------------------------------------------------------------------------------------------


def test_every_script_has_a_table():
    assert set(SCRIPTS) == {*compat_commands.SCRIPTS, compat_factory.SCRIPT}


def test_presets_make_runs():
    family = FAMILIES["mochi"]
    frames = []
    for name, preset in family.presets.items():
        settings = {
            "family": "mochi",
            "method": "lora",
            "base_model": "genmo/mochi-1-preview",
            "dataset": {"path": "."},
        }
        settings = json.loads(json.dumps(settings))
        for path, value in preset.items():
            *parents, last = path.split(".")
            here = settings
            for parent in parents:
                here = here.setdefault(parent, {})
            here[last] = value
        config = parse_config(settings)
        assert "calculated" in name
        assert config.memory.gradient_checkpointing != "none"
        if "published" in name:
            frames.append(config.dataset.num_frames)
            assert name.startswith(f"{config.dataset.num_frames} frames")
            assert config.memory.gradient_checkpointing == "sac", "as it was published"
    assert frames == [37, 61, 79, 85]
    assert [preset["method"] for name, preset in family.presets.items() if "every weight" in name] == ["full"]


# --- the road ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def genmos_folder(tmp_path_factory):
    """A folder as Genmo's guide leaves it: weights/ (with a text encoder beside), and three clips prepared."""
    import torch

    from examples import tiny
    from examples.demo import shapes

    folder = tmp_path_factory.mktemp("genmo")
    tiny.write("mochi-genmo", folder / "weights")
    clips = folder / "videos_prepared"
    chosen = shapes.scenes(seed=0, count=3)
    shapes.write(folder / "dataset", chosen, [scene.caption() for scene in chosen], num_frames=8)
    clips.mkdir()
    text = json.loads((folder / "weights" / "t5" / "config.json").read_text(encoding="utf-8"))["d_model"]
    for number, file in enumerate(sorted((folder / "dataset" / "clips").iterdir())):
        noise = torch.Generator().manual_seed(number)
        latents = torch.randn(2, 1, 12, 2, 8, 8, generator=noise)
        mask = torch.arange(256)[None] < 5 + number
        feat = torch.randn(1, 256, text, generator=noise) * mask[..., None]
        (clips / f"{number}.mp4").write_bytes(file.read_bytes())
        torch.save({"mean": latents[0], "logvar": latents[1] - 4}, clips / f"{number}.latent.pt")
        torch.save({"y_mask": [mask], "y_feat": [feat]}, clips / f"{number}.embed.pt")
        (clips / f"{number}.txt").write_text(f"clip {number}", encoding="utf-8")
    return folder


def test_the_shipped_yaml_trains_draws_saves_and_draws_again(genmos_folder, tmp_path, monkeypatch):
    """With other sizes and fewer steps alone, and a text encoder that is here."""
    monkeypatch.chdir(tmp_path)
    for name in ("weights", "videos_prepared"):
        Path(name).symlink_to(genmos_folder / name)
    sizes = {
        "training__warmup_steps": 1, "training__save_interval": 2, "sample__interval": 2,
        "sample__prompts": ["a circle"], "sample__kwargs__height": 64, "sample__kwargs__width": 64,
        "sample__kwargs__num_frames": 7, "sample__kwargs__num_inference_steps": 2,
        "sample__kwargs__sigma_schedule_python_code": "linear_quadratic_schedule(2, 0.025)",
        "sample__kwargs__cfg_schedule_python_code": "[6.0] * 2",
    }  # fmt: skip
    encoder = ["--set", "text_encoder=weights/t5"]
    Path("lora.yaml").write_text(genmo(**sizes, training__num_steps=3), encoding="utf-8")
    assert trainers.train.main(["--config", "lora.yaml", *encoder]) == 0
    run = RunFolder(Path("finetunes/my_mochi_lora"))
    events, _ = read(run.events)
    assert (events[-1]["type"], events[-1]["status"]) == ("run_finished", "finished")
    assert [checkpoint.step for checkpoint in run.checkpoints()] == [2, 3]
    drawn = {event["step"]: run.path / event["path"] for event in events if event["type"] == "sample"}
    assert list(drawn) == [0, 2, 3]

    lora = "finetunes/model_2.lora.safetensors"
    words = [str(run.checkpoints()[0].path), "--format", "genmo-lora", "--out", lora]
    assert trainers.export.main(words) == 0
    text = genmo(**sizes, training__num_steps=3, init_checkpoint_path=lora, checkpoint_dir="finetunes/again")
    Path("again.yaml").write_text(text, encoding="utf-8")
    assert trainers.train.main(["--config", "again.yaml", *encoder]) == 0
    again = RunFolder(Path("finetunes/again"))
    events, _ = read(again.events)
    assert (events[-1]["type"], events[-1]["status"]) == ("run_finished", "finished")
    assert [checkpoint.step for checkpoint in again.checkpoints()] == [3]
    begun = next(again.path / event["path"] for event in events if event["type"] == "sample")
    frames = {step: read_frames(file, range(7)).astype(float) for step, file in {**drawn, "again": begun}.items()}
    assert np.abs(frames["again"] - frames[2]).mean() < np.abs(frames[0] - frames[2]).mean() / 10

    command = CLI.replace("2000", "3").replace("--num_frames 37", "--num_frames 7 --height 64 --width 64 --num_steps 2")
    Path("draw.sh").write_text(command, encoding="utf-8")
    assert trainers.sample.main(["--config", "draw.sh", *encoder]) == 0
    (compared,) = Path("outputs").iterdir()
    events, _ = read(RunFolder(compared).events)
    takes = [event["take"] for event in events if event["type"] == "sample"]
    assert takes == ["finetunes/my_mochi_lora/checkpoints/step-000003"]
