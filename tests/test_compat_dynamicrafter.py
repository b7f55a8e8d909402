"""What DynamiCrafter's trainer, its fork for LoRAs and its scripts are started with becomes the same run here."""

from __future__ import annotations

import copy
import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from compat_texts import checked, flat
from safetensors import safe_open

import trainers.train
from trainers.data.images import write_image
from trainers.data.video import write_video
from trainers.events import read
from trainers.families import FAMILIES, get_family, parse_config, parse_sample_config
from trainers.families.dynamicrafter import compat_config
from trainers.families.dynamicrafter.compat import SCRIPTS, from_arguments, read_foreign
from trainers.families.dynamicrafter.facts import CONFIG, PUBLISHED
from trainers.runs import RunFolder
from trainers.settings import ConfigError

ROOT = Path(__file__).resolve().parent.parent
FORK = (ROOT / "examples" / "dynamicrafter" / "from_fork.yaml").read_text(encoding="utf-8")

RUN = r"""# NCCL configuration
# export NCCL_DEBUG=INFO

# args
name="training_512_lora_v1.0"
config_file=configs/${name}/config.yaml

# save root dir for logs, checkpoints, tensorboard record, etc.
save_root="../trained"
HOST_GPU_NUM=1 # CHANGE TO ACTUAL GPU NUM

mkdir -p $save_root/$name

## run
CUDA_VISIBLE_DEVICES=0,1,2,3,4,5,6,7 python3 -m torch.distributed.launch \
--nproc_per_node=$HOST_GPU_NUM --nnodes=1 --master_addr=127.0.0.1 --master_port=12352 --node_rank=0 \
./main/trainer.py \
--base $config_file \
--train \
--name $name \
--logdir $save_root \
--devices $HOST_GPU_NUM \
lightning.trainer.num_nodes=1

## debugging
# CUDA_VISIBLE_DEVICES=0,1,2,3 python3 -m torch.distributed.launch \
# --nproc_per_node=4 --nnodes=1 --master_addr=127.0.0.1 --master_port=12352 --node_rank=0 \
# ./main/trainer.py \
# --base $config_file
"""

TOOLS = r"""python extract_lora.py --model=trained/a/checkpoints/epoch=0-step=20.ckpt
python apply_lora.py --base_model=checkpoints/dynamicrafter_512_v1/model.ckpt \
--lora=epoch=0-step=20_lora.safetensors --alpha=1.0
"""

DRAW = r"""ckpt=checkpoints/dynamicrafter_512_v1/model.ckpt
FS=24 ## This model adopts FPS=24, range recommended: 15-30 (smaller value -> larger motion)
CUDA_VISIBLE_DEVICES=0 python3 scripts/evaluation/inference.py \
--seed 123 \
--ckpt_path $ckpt \
--config configs/inference_512_v1.0.yaml \
--savedir results/dynamicrafter_512_seed123 \
--n_samples 1 \
--bs 1 --height 320 --width 512 \
--unconditional_guidance_scale 7.5 \
--ddim_steps 50 \
--ddim_eta 1.0 \
--prompt_dir prompts \
--text_input \
--video_length 16 \
--frame_stride ${FS} \
--timestep_spacing 'uniform_trailing' --guidance_rescale 0.7 --perframe_ae

## multi-cond CFG: the <unconditional_guidance_scale> is s_txt, <cfg_img> is s_img
#--multiple_cond_cfg --cfg_img 7.5
#--loop
"""


def translated(text):
    found = read_foreign(text)
    assert found is not None
    return checked(found)


def refused(text):
    with pytest.raises(ConfigError) as caught:
        found = read_foreign(text)
        (parse_config if found.kind == "train" else parse_sample_config)(found.settings)
    assert len(caught.value.problems) == 1
    return " ".join(caught.value.problems[0]).strip()


def changed(data: dict, /, **changes) -> dict:
    """Settings with dotted keys changed (a__b for a.b); ... takes one out."""
    for path, value in changes.items():
        *parents, last = path.split("__")
        here = data
        for parent in parents:
            here = here[parent]
        if value is ...:
            del here[last]
        else:
            here[last] = value
    return data


def fork(**changes) -> str:
    """The fork's YAML, with changes."""
    return yaml.safe_dump(changed(yaml.safe_load(FORK), **changes))


PARAMS, CLIPS, CALLBACKS = "model__params__", "data__params__train__params__", "lightning__callbacks__"


def note(found, word):
    (said,) = [one for one in found.notes if word in one]
    return said


# --- the fork's config ------------------------------------------------------------------------------------------------


def test_the_config_as_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = translated(FORK)
    assert (found.kind, found.run_dir, found.missing) == ("train", None, {})
    assert found.settings == {
        "family": "dynamicrafter",
        "method": "lora",
        "base_model": "checkpoints/dynamicrafter_512_v1/model.ckpt",
        "variant": "512",
        "start_from": None,
        "seed": 20230211,
        "max_train_steps": 100000,
        "mixed_precision": "fp16",
        "image_dropout": 0.1,
        "rand_cond_frame": True,
        "interp_mode": False,
        "fps_max": None,
        "dataset": {
            "path": "train/data.csv",
            "format": "webvid",
            "video_folder": "train/videos",
            "max_clips": None,
            "num_frames": 16,
            "height": 320,
            "width": 512,
            "frame_stride": 1,
            "frame_stride_min": None,
            "lower_stride": True,
            "fps": 16.0,
            "fps_rounding": "stride",
            "frame_selection": "random",
            "fit": "crop",
            "decode_small": False,
            "flip": False,
            "batch_size": 1,
            "caption_dropout": 0.1,
            "cache": False,
        },
        "adapter": {"rank": 64, "alpha": 32.0, "dropout": 0.1, "skip_layers": []},
        "optimizer": {
            "name": "adamw",
            "learning_rate": 1e-5,
            "lr_scheduler": "constant",
            "lr_warmup_steps": 0,
            "weight_decay": 0.01,
            "gradient_accumulation_steps": 16,
            "max_grad_norm": 0.5,
        },
        "memory": {"gradient_checkpointing": "full"},
        "validation": {
            "every_steps": None,
            "num_inference_steps": 50,
            "guidance_scale": 7.5,
            "guidance_rescale": 0.7,
            "eta": 1.0,
            "fps": 8,
        },
        "checkpoint": {"every_steps": 20, "keep_last": None},
        "tracking": {"tracker": "tensorboard", "every_steps": 5},
    }


def test_what_the_fork_marks_for_its_users_is_said_first():
    found = translated(FORK)
    assert found.notes[0].startswith("The lines marked # CONFIGURE: accumulate_grad_batches 16")
    for key in ("log_every_n_steps 5 is tracking.every_steps", "checkpoint.every_steps is 20", "model_checkpoint"):
        assert key in found.notes[0]
    assert "32 / 64" in note(found, "lora.alpha")
    assert "2 times" in note(found, "lora.alpha")
    assert "empty cell" in note(found, "upstream_defects")


def test_every_key_of_the_config_is_mapped_or_spoken_of():
    """A key that is changed changes our settings, or a note, or is refused with its name."""
    other = {
        "scale_lr": True, "uncond_type": "zero_embed", "conditioning_key": "concat", "layer": "last",
        "gradient_clip_algorithm": "value", "strategy": "ddp", "fps_condition_type": "fs",
        "parameterization": "eps", "first_stage_key": "image", "cond_stage_key": "txt", "lora_path": "a.ckpt",
        "spatial_transform": "resize", "precision": "bf16", "timestep_spacing": "uniform", "image_size": [8, 8],
        "resolution": [64, 128], "skip_layers": ["time_embed"], "attention_resolutions": [2, 1],
        "attn_resolutions": [8], "channel_mult": [1, 2], "ch_mult": [1, 2], "temporal_length": 8, "video_length": 8,
        "fixed_fps": 8,
    }  # fmt: skip
    #: What names a class, a file of upstream's own, or a value that nothing reads.
    silent = {
        "target", "freeze", "embed_dim", "monitor", "double_z", "resolution", "in_channels", "out_ch", "dropout",
        "attn_resolutions", "filename", "save_weights_only", "num_timesteps_cond", "max_images", "to_local",
        "batch_frequency", "timestep_spacing", "perframe_ae", "default_fs", "num_workers", "log_every_t", "num_nodes",
        "benchmark", "val_check_interval", "save_only_lora", "optimize_matmul", "compile", "strategy",
        "image_proj_model_trainable", "scale_lr", "image_size",
    }  # fmt: skip
    before = translated(FORK)
    whole = yaml.safe_load(FORK)
    checked_keys = 0
    for path, value in flat(whole).items():
        name = path.rpartition(".")[2]
        new = other.get(name)
        if new is None:
            new = not value if isinstance(value, bool) else value * 2 if isinstance(value, (int, float)) else "other"
        try:
            after = compat_config.translate(changed(copy.deepcopy(whole), **{path.replace(".", "__"): new}))
        except ConfigError as error:
            assert path in str(error) or name in str(error), path
            checked_keys += 1
            continue
        if (after.settings, after.notes) == (before.settings, before.notes):
            assert name in silent, path
        else:
            checked_keys += 1
    assert checked_keys > 60


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"lightning__lora__rank": 32}, {"adapter.rank": 32, "adapter.alpha": 16.0}),
        ({"lightning__lora__alpha": 1.0}, {"adapter.alpha": 64.0}),
        ({"lightning__lora__dropout": ...}, {"adapter.dropout": 0.0}),
        ({"lightning__lora__skip_layers": ["time_embed", "fps_embedding"]},
         {"adapter.skip_layers": ["time_embed", "fps_embedding"]}),
        ({"lightning__lora__skip_layers": ["resblocks", "middle_block"]}, {"adapter.skip_layers": ["middle_block"]}),
        ({"lightning__lora__enabled": False}, {"method": "full"}),
        ({"lightning__lora": ...}, {"method": "full"}),
        ({"lightning__precision": "bf16-mixed"}, {"mixed_precision": "bf16"}),
        ({"lightning__precision": 32}, {"mixed_precision": "no"}),
        ({"lightning__trainer__max_steps": 300}, {"max_train_steps": 300}),
        ({"lightning__trainer__gradient_clip_val": 0}, {"optimizer.max_grad_norm": None}),
        ({"model__scale_lr": True, "data__params__batch_size": 4}, {"optimizer.learning_rate": 4e-5}),
        ({"model__scale_lr": ..., "data__params__batch_size": 2}, {"optimizer.learning_rate": 2e-5}),
        ({"model__lora_path": "trained/a.ckpt"}, {"start_from": "trained/a.ckpt"}),
        ({PARAMS + "uncond_prob": 0.1}, {"dataset.caption_dropout": 0.2, "image_dropout": 0.2}),
        ({PARAMS + "rand_cond_frame": False}, {"rand_cond_frame": False}),
        ({PARAMS + "interp_mode": True}, {"interp_mode": True, "variant": "512-interp"}),
        ({PARAMS + "base_scale": 0.3}, {"variant": "1024"}),
        ({PARAMS + "unet_config__params__use_checkpoint": False}, {"memory.gradient_checkpointing": "none"}),
        ({CLIPS + "random_fs": True, CLIPS + "frame_stride": 6, CLIPS + "fixed_fps": ...},
         {"dataset.frame_stride": 6, "dataset.frame_stride_min": 1, "dataset.fps": None}),
        ({CLIPS + "random_fs": True, CLIPS + "frame_stride": 6, CLIPS + "frame_stride_min": 2},
         {"dataset.frame_stride_min": 2}),
        ({CLIPS + "fps_max": 8}, {"fps_max": 8}),
        ({CLIPS + "load_raw_resolution": ...}, {"dataset.decode_small": True}),
        ({CLIPS + "resolution": [576, 1024]}, {"dataset.height": 576, "dataset.width": 1024}),
        ({CLIPS + "spatial_transform": "center_crop"}, {"dataset.fit": "middle"}),
        ({CLIPS + "spatial_transform": "random_crop", CLIPS + "crop_resolution": [320, 512]}, {"dataset.fit": "piece"}),
        ({CLIPS + "spatial_transform": "resize"}, {"dataset.fit": "stretch"}),
        ({CLIPS + "subsample": 10}, {"dataset.max_clips": 10, "dataset.max_clips_at_random": True}),
        ({CALLBACKS + "metrics_over_trainsteps_checkpoint__params": {"every_n_train_steps": 25}},
         {"checkpoint.every_steps": 25, "checkpoint.keep_last": None}),
        ({CALLBACKS + "metrics_over_trainsteps_checkpoint": ...},
         {"checkpoint.every_steps": 20, "checkpoint.keep_last": 1}),
    ],
)  # fmt: skip
def test_a_change_arrives(changes, expected):
    settings = flat(translated(fork(**changes)).settings)
    assert {field: settings[field] for field in expected} == expected


def test_sections_without_which_the_fork_ends_may_be_missing():
    found = translated(
        fork(
            lightning__lora=...,
            model__lora_path=...,
            lightning__optimize_matmul=...,
            lightning__compile=...,
            **{CALLBACKS + "batch_logger": ...},
        )
    )
    assert found.settings["method"] == "full"
    assert "adapter" not in found.settings


def test_the_older_config_of_the_fork():
    """As it was first published: rank 32, no dropout, two layers skipped, neither lora_path nor save_only_lora."""
    lora = {"skip_layers": ["time_embed", "fps_embedding"], "enabled": True, "rank": 32, "alpha": 0.5}
    found = translated(fork(lightning__lora=lora, model__lora_path=...))
    assert found.settings["adapter"] == {**{k: lora[k] for k in ("rank", "skip_layers")}, "alpha": 16.0, "dropout": 0.0}


def test_the_original_trainer_s_config_trains_network_and_resampler():
    """DynamiCrafter's own config for the model between two frames."""
    clips = {"frame_stride": 6, "random_fs": True, "fixed_fps": ...}
    found = translated(
        fork(
            **{PARAMS + "interp_mode": True, PARAMS + "rand_cond_frame": False},
            **{CLIPS + name: value for name, value in clips.items()},
            lightning__lora=...,
            lightning__strategy="ddp",
            lightning__trainer__accumulate_grad_batches=2,
            model__lora_path=...,
            data__params__batch_size=2,
            **{CALLBACKS + "metrics_over_trainsteps_checkpoint__params": {"every_n_train_steps": 10000}},
        )
    )
    settings = found.settings
    assert (settings["method"], settings["variant"], settings["interp_mode"]) == ("full", "512-interp", True)
    assert settings["checkpoint"] == {"every_steps": 10000, "keep_last": None}
    assert settings["dataset"]["batch_size"] == settings["optimizer"]["gradient_accumulation_steps"] == 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"lightning__lora__alpha": 0}, "lightning.lora.alpha is 0: a LoRA of that strength does not learn"),
        ({"lightning__lora__rnak": 3}, "lightning.lora.rnak is unknown to DynamiCrafter's trainer; did you mean rank"),
        ({"model__pretrained_checkpoint": ...}, "model.pretrained_checkpoint must be set"),
        ({PARAMS + "uncond_type": "zero_embed"}, "model.params.uncond_type is 'zero_embed'"),
        ({PARAMS + "timesteps": 500}, "model.params.timesteps is 500, but this model has 1000"),
        ({PARAMS + "unet_config__params__temporal_conv": False}, "temporal_conv"),
        ({PARAMS + "unet_config__params__chanels": 1}, "unet_config.params.chanels is no part of this network"),
        ({PARAMS + "cond_stage_config__params__layer": "last"}, "'penultimate'"),
        ({"lightning__trainer__max_steps": -1}, "lightning.trainer.max_steps must be set"),
        ({"lightning__trainer__gradient_clip_algorithm": "value"}, "only the norm"),
        ({"lightning__precision": 8}, "lightning.precision is '8'"),
        ({"data": ...}, "describes a model alone"),
        ({"data__params__train__target": "lvdm.data.frames.Frames"}, "only clips of lvdm.data.webvid.WebVid"),
        ({CLIPS + "spatial_transform": "pad"}, "choose resize_center_crop, center_crop, random_crop, resize"),
        ({CLIPS + "spatial_transform": "random_crop", CLIPS + "crop_resolution": 256}, "crop_resolution is 256"),
        ({CLIPS + "random_fs": True, CLIPS + "frame_stride_min": 3}, "frame_stride_min is 3"),
        ({CLIPS + "meta_path": ...}, "meta_path must be set"),
        ({CALLBACKS + "other": {}}, "lightning.callbacks.other is unknown"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_its_name(changes, words):
    assert words in refused(fork(**changes))


def test_a_network_of_other_sizes_is_spoken_of():
    found = translated(fork(**{PARAMS + "unet_config__params__model_channels": 64}))
    assert "unet_config is other than in the published model, 512" in note(found, "beside the weights")


def test_what_lies_beside_the_weights_counts(dynamicrafter_bases):
    base = dynamicrafter_bases("512")
    found = translated(fork(model__pretrained_checkpoint=str(base / "model.safetensors")))
    assert found.settings["variant"] is None
    assert "unet_config" in note(found, "beside the weights says")
    params = yaml.safe_load((base / CONFIG).read_text(encoding="utf-8"))["model"]["params"]
    own = translated(fork(model__pretrained_checkpoint=str(base / "model.safetensors"), model__params=params))
    assert not [said for said in own.notes if "beside the weights" in said]


def test_an_epoch_is_counted_where_the_table_is_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_clips(tmp_path / "train", 40)
    found = translated(FORK)
    assert found.settings["checkpoint"] == {"every_steps": 3, "keep_last": None}
    assert "checkpoint.every_steps is 3" in found.notes[0]
    assert "every 20 steps is left out" in found.notes[0]


def write_clips(folder: Path, rows: int, frames: int = 20) -> None:
    """The fork's example of a dataset: one clip, in as many rows as it takes."""
    (folder / "videos" / "cat").mkdir(parents=True)
    noise = np.random.default_rng(0).integers(0, 255, (frames, 64, 64, 3), dtype=np.uint8)
    write_video(folder / "videos" / "cat" / "sniff.mp4", noise, 30)
    with (folder / "data.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["videoid", "contentUrl", "duration", "page_dir", "name", "dynamic_confidence"])
        writer.writerows([["sniff", "https://localhost", "PT00H00M20S", "cat", "cat sniff and licks", 95]] * rows)


# --- the command -----------------------------------------------------------------------------------------------------


def test_run_sh_with_the_config_that_it_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs" / "training_512_lora_v1.0").mkdir(parents=True)
    (tmp_path / "configs" / "training_512_lora_v1.0" / "config.yaml").write_text(FORK, encoding="utf-8")
    found = translated(RUN)
    assert found.run_dir == "trained/training_512_lora_v1.0"
    assert found.settings == translated(FORK).settings
    together = translated(f"```yaml\n{FORK}\n```\nand\n```bash\n{RUN}\n```")
    assert (together.run_dir, together.settings) == (found.run_dir, found.settings)


def test_run_sh_alone_says_what_it_lacks(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "names configs/training_512_lora_v1.0/config.yaml, which is not in" in refused(RUN)


def test_dotted_overrides_and_options(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.yaml").write_text(FORK, encoding="utf-8")
    (tmp_path / "b.yaml").write_text("lightning: {lora: {rank: 8}, trainer: {max_steps: 9}}\n", encoding="utf-8")
    found = checked(
        from_arguments(
            "trainer.py",
            ["-b", "a.yaml", "b.yaml", "-t", "-s", "7", "--name=mine", "-l", "logs", "lightning.lora.alpha=0.25",
             "data.params.train.params.resolution=[64,128]", "lightning.lora.skip_layers=[ff.net, proj_in]",
             "data.params.train.params.fixed_fps=null"],
        )
    )  # fmt: skip
    settings = flat(found.settings)
    expected = {
        "seed": 7, "adapter.rank": 8, "adapter.alpha": 2.0, "max_train_steps": 9, "dataset.height": 64,
        "dataset.width": 128, "adapter.skip_layers": ["ff.net", "proj_in"], "dataset.fps": None,
    }  # fmt: skip
    assert {field: settings[field] for field in expected} == expected
    assert found.run_dir == "logs/mine"


def test_several_processes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.yaml").write_text(fork(model__scale_lr=True), encoding="utf-8")
    line = "torchrun --nproc_per_node=4 main/trainer.py --base a.yaml --train --name x --logdir ../trained"
    found = translated(line)
    assert found.settings["optimizer"]["learning_rate"] == 4e-5
    assert "--num_processes 4" in note(found, "starts 4 processes")
    unset = translated(line.replace("4", "$HOST_GPU_NUM"))
    assert unset.settings["optimizer"]["learning_rate"] == 1e-5


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--train"], "--base must name the YAML file"),
        (["--base", "a.yaml", "--sead", "3"], "--sead is unknown"),
        (["--base", "a.yaml", "--seed", "x"], "--seed is 'x'"),
        (["--base", "a.yaml", "--name"], "--name is the last word"),
        (["--base", "a.yaml", "--train", "rest"], "'rest' stands where"),
    ],
)
def test_a_command_that_cannot_be_meant(tmp_path, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.yaml").write_text(FORK, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        from_arguments("trainer.py", words)
    assert said in " ".join(caught.value.problems[0])


def test_the_lines_for_lora_files_are_explained():
    said = refused(TOOLS)
    assert "python -m trainers.export extract --model trained/a/checkpoints/epoch=0-step=20.ckpt." in said
    assert "python -m trainers.export apply --base_model checkpoints/dynamicrafter_512_v1/model.ckpt" in said
    assert "--alpha 1.0; leave --alpha out" in said
    found = translated(f"```\n{FORK}\n```\n```\n{TOOLS}```")
    assert note(found, "extract --model")
    assert note(found, "apply --base_model")
    assert "checkpoints, and the share in strengths" in refused("python merge_models.py --left a.ckpt --right b.ckpt")
    assert "--model FILE" in refused("python extract_lora.py --format ckpt")


def test_the_explained_lines_are_commands_that_exist():
    family = get_family("dynamicrafter")
    assert {"extract", "apply"} <= set(family.export_commands)


def test_how_clips_are_read_alone():
    """The lines with which the fork's guide returns to DynamiCrafter's own clips."""
    guide = """you can return to defaults:
```
video_length: 16
frame_stride: 6
load_raw_resolution: true
resolution: [320, 512]
spatial_transform: resize_center_crop
random_fs: true  ## if true, we uniformly sample fs with max_fs=frame_stride (above)
```
"""
    found = translated(guide)
    assert set(found.missing) == {"base_model", "dataset.path"}
    clips = found.settings["dataset"]
    assert (clips["frame_stride"], clips["frame_stride_min"], clips["fps"], clips["fit"]) == (6, 1, None, "crop")
    whole = {**found.settings, "base_model": "-", "dataset": {**clips, "path": "clips"}}
    assert parse_config(whole).dataset.frame_stride_min == 1


# --- inference -------------------------------------------------------------------------------------------------------


@pytest.fixture
def prompts(tmp_path, monkeypatch):
    """The folder that inference.py reads: one text file, and a picture for each of its lines."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "prompts"
    folder.mkdir()
    (folder / "test_prompts.txt").write_text("a bear\n\na fire\n", encoding="utf-8")
    for number in range(4):
        write_image(folder / f"{number}.png", np.full((40, 64, 3), 60 * number, np.uint8))
    return folder


def test_inference_as_a_comparison(prompts):
    found = translated(DRAW)
    assert (found.kind, found.run_dir) == ("sample", "results/dynamicrafter_512_seed123")
    expected = {
        "base_model": "checkpoints/dynamicrafter_512_v1/model.ckpt", "variant": None, "prompts": ["a bear", "a fire"],
        "images": ["prompts/0.png", "prompts/1.png"], "end_images": [], "interp_mode": False, "loop": False,
        "seeds": [123], "num_frames": 16, "height": 320, "width": 512, "num_inference_steps": 50,
        "guidance_scale": 7.5, "image_guidance_scale": None, "guidance_rescale": 0.7, "eta": 1.0, "fs": 24,
        "mixed_precision": "fp16", "include_base": True, "checkpoints": [], "fps": 8.0,
    }  # fmt: skip
    assert {name: found.settings[name] for name in expected} == expected


def test_inference_between_two_pictures_in_a_circle_and_by_image(prompts):
    between = translated(DRAW.replace("--perframe_ae", "--interp").replace("_512_v1/", "_512_interp_v1/"))
    assert between.settings["interp_mode"] is True
    assert between.settings["images"] == ["prompts/0.png", "prompts/2.png"]
    assert between.settings["end_images"] == ["prompts/1.png", "prompts/3.png"]
    loop = translated(DRAW.replace("--perframe_ae", "--loop --n_samples 3"))
    assert (loop.settings["loop"], loop.settings["seeds"]) == (True, [123, 124, 125])
    image = translated(DRAW.replace("--perframe_ae", "--multiple_cond_cfg --cfg_img 5"))
    assert image.settings["image_guidance_scale"] == 5
    silent = translated(DRAW.replace("--text_input \\\n", "").replace("ckpts", ""))
    assert silent.settings["prompts"] == ["", ""]


def test_inference_with_a_base_of_another_name(prompts):
    other = DRAW.replace("dynamicrafter_512_v1/model", "mine/model")
    assert translated(other).settings["variant"] == "512"
    assert translated(other.replace("--perframe_ae", "--interp")).settings["variant"] == "512-interp"
    assert "steps are spaced" in note(translated(DRAW.replace("uniform_trailing", "uniform")), "timestep_spacing")


def test_inference_without_its_folder_asks_for_prompts_and_images(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert set(translated(DRAW).missing) == {"prompts", "images"}
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts" / "a.txt").write_text("a bear\n", encoding="utf-8")
    assert "has 0 pictures for 1 prompts" in refused(DRAW)


# --- presets ---------------------------------------------------------------------------------------------------------


def test_presets_make_runs_that_the_published_models_can_do():
    sizes = {}
    for name, preset in FAMILIES["dynamicrafter"].presets.items():
        settings = {"family": "dynamicrafter", "base_model": "Doubiiu/DynamiCrafter_512", "dataset": {"path": "."}}
        for path, value in preset.items():
            section, _, last = path.rpartition(".")
            (settings.setdefault(section, {}) if section else settings)[last] = value
        config = parse_config(settings)
        assert "calculated" in name
        assert config.method == ("full" if "every weight" in name else "lora")
        assert config.memory.gradient_checkpointing == "full"
        model = next(size for size in ("256", "512", "1024") if size in name)
        sizes[model] = config.dataset.height, config.dataset.width
    assert sizes == {name: PUBLISHED[name].native for name in ("256", "512", "1024")}


# --- the doors -------------------------------------------------------------------------------------------------------


def test_no_other_family_takes_these_for_its_own():
    for text in (FORK, RUN, DRAW):
        for name, family in FAMILIES.items():
            if name != "dynamicrafter":
                try:
                    assert family.read_foreign(text) is None, name
                except ConfigError as error:
                    pytest.fail(f"{name}: {error}")


def test_texts_of_others_are_not_taken():
    for text in ("", "a: 1", "python train.py --base x", "python inference.py --steps 3", "model: {target: a.b}"):
        assert read_foreign(text) is None


def test_the_door_prints_our_yaml(tmp_path):
    command = [sys.executable, "-m", "trainers.families.dynamicrafter.compat", "examples/dynamicrafter/from_fork.yaml"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert yaml.safe_load(done.stdout)["adapter"]["rank"] == 64
    assert done.stdout.splitlines()[1].startswith("# The lines marked # CONFIGURE")
    assert set(SCRIPTS) == {"trainer.py", "inference.py", "extract_lora.py", "apply_lora.py", "merge_models.py"}


def test_the_fork_s_config_trains_and_its_files_go_both_ways(dynamicrafter_bases, tmp_path, monkeypatch):
    """With only paths and sizes changed: a checkpoint whose LoRA has the fork's names, and which is extracted and
    applied by the commands that stand for the fork's own."""
    monkeypatch.chdir(tmp_path)
    write_clips(tmp_path / "train", 3)
    base = dynamicrafter_bases("512")
    text = fork(
        model__pretrained_checkpoint=str(base / "model.safetensors"),
        **{CLIPS + "video_length": 4, CLIPS + "resolution": [64, 64]},
        lightning__trainer__max_steps=2,
        lightning__trainer__accumulate_grad_batches=2,
        lightning__lora__rank=4,
        lightning__lora__skip_layers=["time_embed", "fps_embedding"],
    )
    (tmp_path / "config.yaml").write_text(text, encoding="utf-8")
    assert trainers.train.main(["--config", "config.yaml", "--run-dir", "run"]) == 0
    run = RunFolder(Path("run"))
    events, _ = read(run.events)
    assert events[-1]["status"] == "finished"
    assert [event["step"] for event in events if event["type"] == "step"]
    last = run.checkpoints()[-1]
    assert (last.step, last.meta()["rank"], last.meta()["alpha"]) == (2, 4, 2.0)
    door = [sys.executable, "-m", "trainers.export"]
    for words in (
        ["extract", "--model", str(last.path), "--out", "a_lora.safetensors"],
        [
            "apply",
            "--base_model",
            str(base / "model.safetensors"),
            "--lora",
            "a_lora.safetensors",
            "--out",
            "a.safetensors",
        ],
    ):
        done = subprocess.run(
            [*door, *words], capture_output=True, text=True, timeout=300, env={"PYTHONPATH": str(ROOT), "PATH": "/bin"}
        )
        assert done.returncode == 0, done.stdout + done.stderr
    with safe_open("a_lora.safetensors", "pt") as file:
        names = list(file.keys())
    assert all(name.startswith("model.diffusion_model.") and ".lora_" in name for name in names)
    assert not [name for name in names if "time_embed" in name or "fps_embedding" in name]
    with safe_open("a.safetensors", "pt") as merged, safe_open(base / "model.safetensors", "pt") as before:
        assert set(merged.keys()) == set(before.keys())
        keys = list(before.keys())
        changed_ones = [key for key in keys if not merged.get_tensor(key).equal(before.get_tensor(key))]
    assert {key.removesuffix(".weight") for key in changed_ones} <= {name.split(".lora_")[0] for name in names}
    assert json.loads((last.path / "meta.json").read_text(encoding="utf-8"))["family"] == "dynamicrafter"
