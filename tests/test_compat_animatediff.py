"""What AnimateDiff's other trainers are started with becomes the same run here: every key is mapped or spoken of."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import trainers.sample
import trainers.train
from studio.tabs.configure import form_of, read_config
from studio.workspace import Workspace
from trainers.events import read
from trainers.families import get_family, parse_config, parse_sample_config
from trainers.families.animatediff import compat_guoyww, compat_parts, compat_swift, compat_tumurzakov
from trainers.families.animatediff.compat import read_foreign
from trainers.families.animatediff.names import diffusers_name
from trainers.runs import RunFolder
from trainers.settings import ConfigError, apply_overrides, parse_yaml

ROOT = Path(__file__).resolve().parent.parent
FAMILY = get_family("animatediff")

#: As a person published it, with the spaces at the ends of its lines.
TUMURZAKOV = r"""pretrained_model_path: models\StableDiffusion\stable-diffusion-v1-5
output_dir: models\Motion_Module\YourNewMotionModel
train_data:
  video_path: 
  - I:\animetest\anime\AnimateDiff\data\0066.mp4
  - I:\animetest\anime\AnimateDiff\data\0075.mp4
  - I:\animetest\anime\AnimateDiff\data\0082.mp4 
  prompt: 
  - describe your prompt here
  - describe your prompt here
  - describe your prompt here
  n_sample_frames: 24 
  width: 768
  height: 512
  sample_start_idx: 0
  sample_frame_rate: 1
validation_data:
  prompts:
  - validation
  video_length: 24
  temporal_context: 32
  width: 768
  height: 512
  num_inference_steps: 20
  guidance_scale: 8
  use_inv_latent: true
  num_inv_steps: 40
validation_steps: 10000
train_whole_module: true
trainable_modules:
- to_q
train_batch_size: 1
max_train_steps: 2000
learning_rate: 1.0e-04
scale_lr: false
lr_scheduler: cosine
lr_warmup_steps: 10
adam_beta1: 0.9
adam_beta2: 0.999
adam_weight_decay: 0.008
adam_epsilon: 1.0e-08
max_grad_norm: 1.0
gradient_accumulation_steps: 1
gradient_checkpointing: true
checkpointing_steps: 200
start_global_step: 0
resume_from_checkpoint: null
mixed_precision: fp16
use_8bit_adam: false
enable_xformers_memory_efficient_attention: true
seed: 34
motion_module: models\Motion_Module\mm_sd_v14.ckpt
inference_config_path: configs/inference/inference.yaml
motion_module_pe_multiplier: 1
dataset_class: MultiTuneAVideoDataset
"""  # noqa: W291

SWIFT_FULL = """# 该文件在swift/examples/pytorch/animatediff/scripts/full中
# Experimental environment: A100 * 4
# 200GB GPU memory totally
PYTHONPATH=../../.. \\
CUDA_VISIBLE_DEVICES=0,1,2,3 \\
torchrun --nproc_per_node=4 animatediff_sft.py \\
  --model_id_or_path wyj123456/Realistic_Vision_V5.1_noVAE \\
  --csv_path webvid/results_2M_train.csv \\
  --video_folder webvid/videos2 \\
  --sft_type full \\
  --lr_scheduler_type constant \\
  --trainable_modules .*motion_modules.* \\
  --batch_size 4 \\
  --eval_steps 100 \\
  --gradient_accumulation_steps 16
"""

SWIFT_LORA = """# Experimental environment: A100
# 20GB GPU memory
PYTHONPATH=../../.. \\
CUDA_VISIBLE_DEVICES=0 \\
python animatediff_sft.py \\
  --model_id_or_path wyj123456/Realistic_Vision_V5.1_noVAE \\
  --csv_path webvid/results_2M_train.csv \\
  --video_folder webvid/videos2 \\
  --motion_adapter_id_or_path Shanghai_AI_Laboratory/animatediff-motion-adapter-v1-5-2 \\
  --sft_type lora \\
  --lr_scheduler_type constant \\
  --trainable_modules .*motion_modules.* \\
  --batch_size 1 \\
  --eval_steps 200 \\
  --dataset_sample_size 10000 \\
  --gradient_accumulation_steps 16
"""

SWIFT_INFER = """PYTHONPATH=../../.. \\
CUDA_VISIBLE_DEVICES=0 \\
python animatediff_infer.py \\
  --model_id_or_path wyj123456/Realistic_Vision_V5.1_noVAE \\
  --motion_adapter_id_or_path Shanghai_AI_Laboratory/animatediff-motion-adapter-v1-5-2 \\
  --sft_type lora \\
  --ckpt_dir /output/path/like/checkpoints/iter-xxx \\
  --eval_human true
"""

GUOYWW = """
image_finetune: false
output_dir: outputs
pretrained_model_path: models/StableDiffusion
unet_additional_kwargs:
  use_motion_module              : true
  motion_module_resolutions      : [ 1,2,4,8 ]
  unet_use_cross_frame_attention : false
  unet_use_temporal_attention    : false
  use_inflated_groupnorm         : true
  motion_module_mid_block        : true
  motion_module_type: Vanilla
  motion_module_kwargs:
    num_attention_heads                : 8
    num_transformer_block              : 1
    attention_block_types              : [ "Temporal_Self", "Temporal_Self" ]
    temporal_position_encoding         : true
    temporal_position_encoding_max_len : 24
    temporal_attention_dim_div         : 1
    zero_initialize                    : true
noise_scheduler_kwargs:
  num_train_timesteps: 1000
  beta_start:          0.00085
  beta_end:            0.012
  beta_schedule:       "linear"
  steps_offset:        1
  clip_sample:         false
train_data:
  csv_path:        webvid/results_2M_train.csv
  video_folder:    webvid/videos
  sample_size:     256
  sample_stride:   4
  sample_n_frames: 16
validation_data:
  prompts:
    - "Snow rocky mountains peaks canyon."
  num_inference_steps: 25
  guidance_scale: 8.
trainable_modules:
  - "motion_modules."
unet_checkpoint_path: ""
learning_rate:    1.e-4
train_batch_size: 4
max_train_epoch:      -1
max_train_steps:      100
checkpointing_epochs: -1
checkpointing_steps:  60
validation_steps:       30
validation_steps_tuple: [2, 50]
global_seed: 42
mixed_precision_training: true
enable_xformers_memory_efficient_attention: True
is_debug: False
"""


def flat(data, prefix=""):
    """{dotted key: value} of nested settings."""
    found = {}
    for key, value in data.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def translated(text):
    found = read_foreign(text)
    assert found is not None
    assert len(set(found.notes)) == len(found.notes)
    if not found.missing:
        (parse_config if found.kind == "train" else parse_sample_config)(found.settings)
    return found


def refused(text):
    with pytest.raises(ConfigError) as caught:
        read_foreign(text)
    return str(caught.value)


def with_keys(text, **changes):
    """YAML with dotted keys changed (a__b for a.b); ... takes one out."""
    data = parse_yaml(text)
    for path, value in changes.items():
        *parents, last = path.split("__")
        here = data
        for parent in parents:
            here = here.setdefault(parent, {})
        if value is ...:
            here.pop(last, None)
        else:
            here[last] = value
    return yaml.safe_dump(data, allow_unicode=True)


def check_probe(before, after, key, wanted):
    """A changed key changed what it should: {our field: value}, or a note (a text that it holds)."""
    if isinstance(wanted, str):
        said = [note for note in after.notes if note not in before.notes]
        assert any(wanted in note for note in said), (key, after.notes)
        return
    now, then = flat(after.settings), flat(before.settings)
    for field, value in wanted.items():
        if field == "run_dir":
            assert after.run_dir == value
        else:
            assert now[field] == value, (key, field)
            assert now[field] != then.get(field), f"{key}: {field} is {value!r} without it"


# --- the two documents, as they are printed ---------------------------------------------------------------------------


def test_the_published_yaml():
    found = translated(TUMURZAKOV)
    assert (found.kind, found.run_dir, found.missing) == ("train", "models/Motion_Module/YourNewMotionModel", {})
    assert found.settings == {
        "family": "animatediff",
        "method": "motion_module",
        "base_model": "models/StableDiffusion/stable-diffusion-v1-5",
        "motion_adapter": "models/Motion_Module/mm_sd_v14.ckpt",
        "motion_module_pe_multiplier": 1,
        "trainable_modules": [],
        "norm_semantics": "original",
        "beta_schedule": "linear",
        "prediction_type": "epsilon",
        "context_length": 32,
        "context_stride": 3,
        "context_overlap": 4,
        "num_inversion_steps": 40,
        "seed": 34,
        "max_train_steps": 2000,
        "start_step": 0,
        "mixed_precision": "fp16",
        "dataset": {
            "path": ".",
            "format": "list",
            "videos": [f"I:/animetest/anime/AnimateDiff/data/{n}.mp4" for n in ("0066", "0075", "0082")],
            "prompts": ["describe your prompt here"] * 3,
            "num_frames": 24,
            "height": 512,
            "width": 768,
            "frame_stride": 1,
            "frame_selection": "first",
            "start_frame": 0,
            "fit": "stretch",
            "frame_buckets": True,
            "flip": False,
            "caption_dropout": 0.0,
            "batch_size": 1,
        },
        "optimizer": {
            "name": "adamw",
            "learning_rate": 1e-4,
            "lr_scheduler": "cosine",
            "lr_warmup_steps": 10,
            "beta1": 0.9,
            "beta2": 0.999,
            "weight_decay": 0.008,
            "epsilon": 1e-8,
            "gradient_accumulation_steps": 1,
            "max_grad_norm": 1.0,
        },
        "memory": {"gradient_checkpointing": "full", "attention": "xformers"},
        "validation": {
            "every_steps": 10000,
            "prompts": ["validation"],
            "negative_prompt": "",
            "num_frames": 24,
            "height": 512,
            "width": 768,
            "num_inference_steps": 20,
            "guidance_scale": 8.0,
            "seed": 34,
            "fps": 8,
        },
        "checkpoint": {"every_steps": 200, "keep_last": None},
        "tracking": {"tracker": "none"},
    }
    assert [note.split()[0] for note in found.notes] == [
        "Upstream", "use_inv_latent:", "validation_steps", "inference_config_path", "trainable_modules",
    ]  # fmt: skip
    assert "beta_schedule to base" in found.notes[0]


def test_the_published_full_command():
    found = translated(SWIFT_FULL)
    assert (found.kind, found.run_dir, found.numbered) == ("train", "output", True)
    assert found.settings == {
        "family": "animatediff",
        "method": "motion_module",
        "base_model": "wyj123456/Realistic_Vision_V5.1_noVAE",
        "motion_adapter": None,
        "trainable_modules": [],
        "motion_max_seq_length": 32,
        "norm_semantics": "original",
        "beta_schedule": "linear",
        "prediction_type": "epsilon",
        "seed": 42,
        "max_train_steps": 1000,
        "mixed_precision": "fp16",
        "dataset": {
            "path": "webvid/results_2M_train.csv",
            "format": "webvid",
            "video_folder": "webvid/videos2",
            "max_clips": None,
            "num_frames": 16,
            "height": 256,
            "width": 256,
            "frame_stride": 4,
            "frame_selection": "random",
            "fit": "crop",
            "repeat_frames": True,
            "flip": True,
            "caption_dropout": 0.1,
            "batch_size": 4,
            "cache": False,
        },
        "optimizer": {
            "name": "adamw",
            "learning_rate": 1e-4,
            "lr_scheduler": "constant",
            "lr_warmup_steps": 0,
            "weight_decay": 0.01,
            "gradient_accumulation_steps": 16,
            "max_grad_norm": 1.0,
        },
        "memory": {"gradient_checkpointing": "none", "attention": "xformers"},
        "validation": {
            "every_steps": 6,
            "prompts": [],
            "negative_prompt": "bad quality, worse quality",
            "seed": 42,
            "num_inference_steps": 25,
            "guidance_scale": 8.0,
            "fps": 10.0,
        },
        "checkpoint": {"every_steps": 6, "keep_last": None},
    }
    said = "\n".join(found.notes)
    assert "set it to clips x epochs / 256 (4 x 4 x 16)" in said
    assert "accelerate launch --num_processes 4" in said
    assert "set validation.prompts" in said
    assert "Hugging Face Hub" in said


def test_the_published_lora_command():
    found = translated(SWIFT_LORA)
    settings = flat(found.settings)
    expected = {
        "method": "lora",
        "motion_adapter": "Shanghai_AI_Laboratory/animatediff-motion-adapter-v1-5-2",
        "max_train_steps": 625,
        "dataset.max_clips": 10000,
        "dataset.batch_size": 1,
        "adapter.rank": 8,
        "adapter.alpha": 32.0,
        "adapter.dropout": 0.05,
        "adapter.target_modules": [".*motion_modules.*"],
        "optimizer.lr_scheduler": "constant",
        "optimizer.gradient_accumulation_steps": 16,
        "validation.every_steps": 12,
        "checkpoint.every_steps": 12,
    }
    assert {key: settings[key] for key in expected} == expected
    same = {key: value for key, value in settings.items() if key not in expected}
    full = {key: value for key, value in flat(translated(SWIFT_FULL).settings).items() if key not in expected}
    assert same == full


def test_the_published_inference_command():
    found = read_foreign(SWIFT_INFER)
    assert (found.kind, found.run_dir, found.numbered) == ("sample", "./generated", True)
    assert found.settings == {
        "family": "animatediff",
        "base_model": "wyj123456/Realistic_Vision_V5.1_noVAE",
        "motion_adapter": "Shanghai_AI_Laboratory/animatediff-motion-adapter-v1-5-2",
        "beta_schedule": "linear",
        "checkpoints": ["/output/path/like/checkpoints/iter-xxx"],
        "strengths": [1.0],
        "include_base": False,
        "prompts": [],
        "negative_prompt": "bad quality, worse quality",
        "seeds": [42],
        "num_frames": 16,
        "height": 512,
        "width": 512,
        "num_inference_steps": 25,
        "guidance_scale": 7.5,
        "fps": 10.0,
        "mixed_precision": "no",
    }
    assert "eval_human" in found.missing["prompts"]
    parse_sample_config(found.settings | {"prompts": ["a"]})


# --- tumurzakov: every key --------------------------------------------------------------------------------------------

#: key -> (another value, what it changes)
TOP = {
    "pretrained_model_path": ("other\\base", {"base_model": "other/base"}),
    "output_dir": ("other\\run", {"run_dir": "other/run"}),
    "train_data": ({"video_path": "a.mp4", "prompt": "b"}, {"dataset.videos": ["a.mp4"], "dataset.num_frames": 8}),
    "validation_data": ({"prompts": "a"}, {"validation.prompts": ["a"], "validation.num_inference_steps": 50}),
    "validation_steps": (50, {"validation.every_steps": 50}),
    "train_whole_module": (False, {"trainable_modules": ["to_q"]}),
    "trainable_modules": (["ff"], "not tried with train_whole_module"),
    "train_batch_size": (2, {"dataset.batch_size": 2}),
    "max_train_steps": (900, {"max_train_steps": 900}),
    "learning_rate": ("2e-05", {"optimizer.learning_rate": 2e-5}),
    "scale_lr": (True, "scale_lr"),
    "lr_scheduler": ("linear", {"optimizer.lr_scheduler": "linear"}),
    "lr_warmup_steps": (20, {"optimizer.lr_warmup_steps": 20}),
    "adam_beta1": (0.8, {"optimizer.beta1": 0.8}),
    "adam_beta2": (0.99, {"optimizer.beta2": 0.99}),
    "adam_weight_decay": (0.1, {"optimizer.weight_decay": 0.1}),
    "adam_epsilon": (1e-6, {"optimizer.epsilon": 1e-6}),
    "max_grad_norm": (0.5, {"optimizer.max_grad_norm": 0.5}),
    "gradient_accumulation_steps": (4, {"optimizer.gradient_accumulation_steps": 4}),
    "gradient_checkpointing": (False, {"memory.gradient_checkpointing": "none"}),
    "checkpointing_steps": (77, {"checkpoint.every_steps": 77}),
    "start_global_step": (100, {"start_step": 100}),
    "resume_from_checkpoint": ("latest", "resume_from_checkpoint is left out"),
    "mixed_precision": ("bf16", {"mixed_precision": "bf16"}),
    "use_8bit_adam": (True, {"optimizer.name": "adamw8bit"}),
    "enable_xformers_memory_efficient_attention": (False, {"memory.attention": "sdpa"}),
    "seed": (7, {"seed": 7, "validation.seed": 7}),
    "motion_module": ("m\\mm_sd_v15.ckpt", {"motion_adapter": "m/mm_sd_v15.ckpt"}),
    "inference_config_path": (..., "not said any more"),
    "motion_module_pe_multiplier": (2, {"motion_module_pe_multiplier": 2}),
    "dataset_class": ("FramesDataset", "not tried with these train_data"),
    "dreambooth_path": ("d\\b.safetensors", {"base_model": "d/b.safetensors"}),
    "use_optimizer": ("AdamW8bit", {"optimizer.name": "adamw8bit"}),
    "train_dreambooth": (True, {"method": "full"}),
    "train_lora": (True, {"method": "lora", "adapter.rank": 4, "adapter.dropout": 0.0}),
    "train_text_encoder": (True, "text encoder is not trained"),
    "lora_rank": (8, "No effect without train_lora: lora_rank"),
    "lora_path": ("l.safetensors", "No effect without train_lora: lora_path"),
    "lora_resume_from_checkpoint": ("l", "No effect without train_lora: lora_resume_from_checkpoint"),
    "report_to": ("tensorboard", {"tracking.tracker": "tensorboard"}),
    "report_facenet_distance": (True, "Not sent anywhere: report_facenet_distance"),
    "report_facenet_reference_path": ("x", "Not sent anywhere: report_facenet_reference_path"),
    "report_aesthetic_score": (True, "Not sent anywhere: report_aesthetic_score"),
}
ELSEWHERE = ("trainable_modules", "inference_config_path", "dataset_class")
MULTI_TUNE = {
    "video_path": (["a.mp4", "b\\c.mp4", "d.mp4"], {"dataset.videos": ["a.mp4", "b/c.mp4", "d.mp4"]}),
    "prompt": ("for all", {"dataset.prompts": ["for all"]}),
    "width": (640, {"dataset.width": 640}),
    "height": (640, {"dataset.height": 640}),
    "n_sample_frames": (8, {"dataset.num_frames": 8}),
    "sample_start_idx": (5, {"dataset.start_frame": 5}),
    "sample_frame_rate": (3, {"dataset.frame_stride": 3}),
}
VALIDATION = {
    "prompts": (["a", "b"], {"validation.prompts": ["a", "b"]}),
    "negative_prompt": ("ugly", {"validation.negative_prompt": "ugly"}),
    "video_length": (16, {"validation.num_frames": 16}),
    "temporal_context": (24, {"context_length": 24}),
    "strides": (2, {"context_stride": 2}),
    "overlap": (6, {"context_overlap": 6}),
    "width": (512, {"validation.width": 512}),
    "height": (768, {"validation.height": 768}),
    "num_inference_steps": (30, {"validation.num_inference_steps": 30}),
    "guidance_scale": (2.5, {"validation.guidance_scale": 2.5}),
    "use_inv_latent": (False, {"num_inversion_steps": None}),
    "num_inv_steps": (20, {"num_inversion_steps": 20}),
}


def test_every_key_is_in_the_tables():
    assert set(TOP) == set(compat_tumurzakov.TOP)
    assert set(MULTI_TUNE) == set(compat_tumurzakov.MULTI_TUNE)
    assert set(VALIDATION) == set(compat_tumurzakov.VALIDATION)


@pytest.mark.parametrize("key", [key for key in TOP if key not in ELSEWHERE])
def test_a_key_of_tumurzakov_has_its_effect(key):
    value, wanted = TOP[key]
    before = read_foreign(TUMURZAKOV)
    check_probe(before, read_foreign(with_keys(TUMURZAKOV, **{key: value})), key, wanted)


@pytest.mark.parametrize("key", MULTI_TUNE)
def test_a_key_of_train_data_has_its_effect(key):
    value, wanted = MULTI_TUNE[key]
    check_probe(
        translated(TUMURZAKOV), read_foreign(with_keys(TUMURZAKOV, **{f"train_data__{key}": value})), key, wanted
    )


@pytest.mark.parametrize("key", VALIDATION)
def test_a_key_of_validation_data_has_its_effect(key):
    value, wanted = VALIDATION[key]
    after = read_foreign(with_keys(TUMURZAKOV, **{f"validation_data__{key}": value}))
    check_probe(translated(TUMURZAKOV), after, key, wanted)


def test_a_key_that_is_left_out_has_upstreams_default():
    text = """
        pretrained_model_path: base
        output_dir: out
        train_data: {video_path: a.mp4, prompt: one}
        validation_data: {prompts: [p], video_length: 8, temporal_context: 8, use_inv_latent: false, num_inv_steps: 50}
        """
    settings = flat(translated(text).settings)
    expected = {
        "motion_adapter": "models/Motion_Module/mm_sd_v15.ckpt",
        "trainable_modules": ["to_q"],
        "seed": 42,
        "max_train_steps": 500,
        "mixed_precision": "fp16",
        "dataset.num_frames": 8,
        "dataset.height": 512,
        "dataset.width": 512,
        "dataset.frame_stride": 1,
        "dataset.start_frame": 0,
        "dataset.batch_size": 1,
        "optimizer.learning_rate": 3e-5,
        "optimizer.lr_scheduler": "constant",
        "optimizer.lr_warmup_steps": 0,
        "optimizer.weight_decay": 0.01,
        "memory.gradient_checkpointing": "full",
        "memory.attention": "xformers",
        "validation.every_steps": 100,
        "validation.height": 512,
        "validation.num_inference_steps": 50,
        "validation.guidance_scale": 7.5,
        "num_inversion_steps": None,
        "checkpoint.every_steps": 500,
    }
    assert {key: settings[key] for key in expected} == expected
    assert any("seed is empty" in note for note in translated(text).notes)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"train_data__prompt": ["one", "two"]}, "train_data.prompt: has 2 for 3 videos; give one for each"),
        ({"train_data__prompt": ["one"]}, "train_data.prompt: has 1 for 3 videos"),
        ({"train_data__video_path": ...}, "train_data.video_path: must be set"),
        ({"train_data__n_sample_frame": 9}, "train_data.n_sample_frame: is unknown to tumurzakov/AnimateDiff; did you"),
        ({"learning_rat": 1}, "learning_rat: is unknown to tumurzakov/AnimateDiff; did you mean learning_rate?"),
        ({"max_train_steps": "many"}, "max_train_steps: is 'many', but must be a number"),
        ({"train_whole_module": False, "trainable_modules": ["attn1.to_q", "attn_temp"]}, "nothing would be trained"),
        ({"train_whole_module": False, "trainable_modules": []}, "nothing would be trained"),
        ({"validation_data__num_inv_steps": ...}, "validation_data.num_inv_steps: must be set"),
        ({"use_optimizer": "Prodigy"}, "use_optimizer: Prodigy finds its own learning rate"),
        ({"train_data": {"samples_dir": "x"}, "dataset_class": "FramesDatase", "validation_data": "no"}, "a section"),
    ],
)
def test_what_tumurzakovs_trainer_could_not_do_is_refused(changes, says):
    assert says in refused(with_keys(TUMURZAKOV, **changes))


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"validation_data__video_length": 16}, "num_inversion_steps"),
        ({"validation_data__width": 512}, "num_inversion_steps"),
        ({"start_global_step": 2000}, "start_step"),
        ({"lr_scheduler": "warm"}, "optimizer.lr_scheduler"),
        ({"train_data__width": 500, "validation_data__use_inv_latent": False}, "dataset.width"),
    ],
)
def test_combinations_that_cannot_run_are_refused_by_the_schema(changes, where):
    with pytest.raises(ConfigError) as caught:
        parse_config(read_foreign(with_keys(TUMURZAKOV, **changes)).settings)
    assert [field for field, _ in caught.value.problems] == [where]


@pytest.mark.parametrize(
    ("changes", "says", "settings"),
    [
        (
            {"scale_lr": True, "gradient_accumulation_steps": 4, "train_batch_size": 2},
            "0.0001 x 8 (accumulation x batch)",
            {"optimizer.learning_rate": 8e-4},
        ),
        ({"gradient_accumulation_steps": 4}, "upstream stretches them 4 times", {"optimizer.lr_warmup_steps": 10}),
        ({"lr_warmup_steps": 20, "max_train_steps": 4}, "lr_warmup_steps 20 is more", {"optimizer.lr_warmup_steps": 4}),
        ({"train_data__prompt": ["a", "b", "c", "d"]}, "has 4 for 3 videos", {"dataset.prompts": ["a", "b", "c"]}),
        (
            {"validation_data__prompts": ["a", "b", "a"]},
            "of equal ones one is drawn",
            {"validation.prompts": ["a", "b"]},
        ),
        ({"validation_data__eta": 0.5, "validation_data__fps": 8}, "No effect here: validation_data.eta, ", {}),
        ({"seed": None}, "seed is empty", {"seed": 42, "validation.seed": 42}),
        ({"start_global_step": 5}, "upstream began its schedule anew", {"start_step": 5}),
        ({"use_optimizer": "SGD"}, "use_optimizer SGD is none that upstream knows", {"optimizer.name": "adamw"}),
        ({"report_to": "wandb"}, "Not sent anywhere: report_to", {"tracking.tracker": "none"}),
        (
            {"train_whole_module": False, "trainable_modules": ["to_q", "x"]},
            "ends in x",
            {"trainable_modules": ["to_q"]},
        ),
        (
            {"validation_data__use_inv_latent": False},
            "No effect without use_inv_latent: validation_data.num_inv_steps",
            {"num_inversion_steps": None},
        ),
    ],
)
def test_what_differs_is_said_once(changes, says, settings):
    found = translated(with_keys(TUMURZAKOV, **changes))
    assert sum(says in note for note in found.notes) == 1, found.notes
    assert {key: flat(found.settings)[key] for key in settings} == settings


def test_mixed_precision_in_every_spelling():
    for value, ours in ((False, "no"), ("no", "no"), ("bf16", "bf16"), (None, "fp16")):
        assert translated(with_keys(TUMURZAKOV, mixed_precision=value)).settings["mixed_precision"] == ours
    assert (
        translated(TUMURZAKOV.replace("mixed_precision: fp16", "mixed_precision: no")).settings["mixed_precision"]
        == "no"
    )


def test_windows_of_one_clip_need_no_overlap():
    """A window that is shorter than the default overlap, as on a small test, where everything fits into it."""
    changes = {
        "validation_data__temporal_context": 4,
        "validation_data__video_length": 4,
        "train_data__n_sample_frames": 4,
    }
    found = translated(with_keys(TUMURZAKOV, **changes))
    assert (found.settings["context_length"], found.settings["context_overlap"]) == (4, 3)


def test_the_base_models_own_schedule_and_prediction_are_looked_at(tmp_path):
    (tmp_path / "scheduler").mkdir()
    for own, noted, predicts in (
        ({"beta_schedule": "linear"}, 0, "epsilon"),
        ({"beta_schedule": "scaled_linear", "prediction_type": "v_prediction"}, 1, "v_prediction"),
    ):
        (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(own), encoding="utf-8")
        found = translated(with_keys(TUMURZAKOV, pretrained_model_path=str(tmp_path)))
        assert sum("noise schedule" in note for note in found.notes) == noted
        assert (found.settings["beta_schedule"], found.settings["prediction_type"]) == ("linear", predicts)


# --- tumurzakov: which parts are trained ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny_unet(tiny_base):
    """The denoiser of the tiny base, with its motion modules."""
    config = {
        "family": "animatediff",
        "method": "motion_module",
        "base_model": str(tiny_base),
        "motion_adapter": str(tiny_base / "motion_adapter"),
        "mixed_precision": "no",
        "dataset": {"path": ".", "num_frames": 4, "height": 64, "width": 64},
    }
    return FAMILY.load(parse_config(config), "train").denoiser["denoiser"]


@pytest.mark.parametrize(
    "endings",
    [
        ["to_q"],
        ["to_q", "to_v"],
        ["to_out"],
        ["to_out.0"],
        ["attention_blocks.0"],
        ["attention_blocks"],
        ["attention_blocks.1.to_k", "ff"],
        ["norm"],
        ["norms.0", "proj_out"],
        ["net.2"],
        ["q"],
        ["transformer_blocks.0"],
        ["temporal_transformer"],
        ["motion_modules"],
        ["down_blocks.0.motion_modules"],
        ["down_blocks.0.motion_modules.0"],
        ["motion_modules.0.temporal_transformer.proj_in"],
        ["up_blocks.1.motion_modules.0.temporal_transformer.transformer_blocks.0.attention_blocks.1.to_q"],
    ],
)
def test_parts_are_the_ones_that_upstream_trains(endings, tiny_unet):
    """Upstream's own rule, on its own names of the tiny denoiser's layers, against what our settings train."""
    from trainers.families.animatediff.denoiser import chosen_parameters

    ours = {name: parameter for name, parameter in tiny_unet.named_parameters() if ".motion_modules." in name}
    theirs = {}
    for place in {re.match(r".*\.motion_modules\.\d+", name).group() for name in ours}:
        for layer in compat_parts.LAYERS:
            for kind in (".weight", ".bias"):
                upstream = f"{place}.temporal_transformer.{layer}{kind}"
                if diffusers_name(upstream) in ours:
                    theirs[upstream] = ours[diffusers_name(upstream)]
    assert len(theirs) == len(ours), "LAYERS has every layer"

    def under_a_module_that_ends_so(name):
        parts = name.split(".")
        modules = [".".join(parts[:count]) for count in range(1, len(parts))]
        return any("motion_modules" in module and module.endswith(tuple(endings)) for module in modules)

    wanted = {id(parameter) for name, parameter in theirs.items() if under_a_module_that_ends_so(name)}
    assert wanted
    text = with_keys(TUMURZAKOV, train_whole_module=False, trainable_modules=endings)
    lines = translated(text).settings["trainable_modules"]
    assert {id(parameter) for parameter in chosen_parameters(tiny_unet, lines)} == wanted, lines


def test_a_line_says_as_much_as_it_can():
    def lines(*endings):
        return compat_parts.our_modules(endings, [])

    assert lines("to_q") == ["to_q"]
    assert lines("attention_blocks.0", "ff_norm") == ["attn1", "norm3"]
    assert lines("attention_blocks") == ["attn1", "attn2"]
    assert lines("norm", "proj_in", "transformer_blocks", "proj_out") == []


def test_the_lora_lies_on_all_attention_of_images_and_motion(tiny_unet):
    from trainers.families.animatediff.denoiser import lora_targets

    found = lora_targets(tiny_unet, compat_tumurzakov.LORA_TARGETS)
    names = {name for name, _ in tiny_unet.named_modules()}
    assert set(found) == {name for name in names if re.search(r"\.(to_q|to_k|to_v|to_out\.0)$", name)}
    assert {".motion_modules." in name for name in found} == {True, False}


# --- tumurzakov: train_with_lora and the other datasets ---------------------------------------------------------------


def test_train_with_lora_trains_the_lora():
    base = with_keys(
        TUMURZAKOV, train_whole_module=..., trainable_modules=..., train_lora=True, lora_path="l.safetensors"
    )
    found = translated(with_keys(base, lora_rank=16))
    settings = flat(found.settings)
    assert (settings["method"], settings["adapter.rank"], settings["adapter.alpha"]) == ("lora", 16, None)
    assert settings["adapter.target_modules"] == [r".*\.(to_q|to_k|to_v|to_out\.0)"]
    assert found.notes[0].startswith("trainable_modules (to_q) is left out")
    assert any("lora_path l.safetensors is not continued" in note for note in found.notes)
    assert any("clips nothing by mistake" in note for note in found.notes)
    assert not any("trainable_modules" in note for note in translated(with_keys(base, trainable_modules=[])).notes)


def test_of_what_one_run_cannot_do_at_once_the_choice_is_said_first():
    found = translated(with_keys(TUMURZAKOV, train_lora=True))
    assert found.settings["method"] == "lora"
    assert found.notes[0].startswith("train_whole_module is left out")
    found = translated(with_keys(TUMURZAKOV, train_lora=True, train_dreambooth=True))
    assert found.settings["method"] == "full"
    assert found.notes[0].startswith("train_lora is left out")
    found = translated(with_keys(TUMURZAKOV, train_text_encoder=True))
    assert found.notes[0].startswith("train_text_encoder")


ANIMATE_DIFF = {
    "samples_dir": ("other", {"dataset.path": "other"}),
    "video_length": (12, {"dataset.num_frames": 12}),
    "width": (320, {"dataset.width": 320}),
    "height": (320, {"dataset.height": 320}),
    "randomize": (False, {"dataset.frame_selection": "first", "dataset.cache": True}),
}
FRAMES = {
    "samples_dir": ("other", {"dataset.path": "other"}),
    "prompt_map_path": ("map.json", "train_data.prompt_map_path"),
    "width": (320, {"dataset.width": 320}),
    "height": (320, {"dataset.height": 320}),
    "video_length": (12, {"dataset.num_frames": 12}),
    "sample_start_index": (3, "train_data.sample_start_index"),
    "sample_count": (5, "train_data.sample_count"),
    "sample_frame_rate": (12, "train_data.sample_frame_rate"),
    "variance_threshold": (10, "train_data.variance_threshold"),
}


def test_every_key_of_the_other_datasets_is_in_the_tables():
    assert set(ANIMATE_DIFF) == set(compat_tumurzakov.ANIMATE_DIFF)
    assert set(FRAMES) == set(compat_tumurzakov.FRAMES)


OTHER = with_keys(
    TUMURZAKOV, validation_data__use_inv_latent=False, dataset_class=..., train_data={"samples_dir": "clips"}
)


@pytest.mark.parametrize("key", ANIMATE_DIFF)
def test_a_key_of_animate_diff_dataset_has_its_effect(key):
    text = with_keys(OTHER, train_data={"samples_dir": "clips", "video_length": 16, "width": 256, "height": 256})
    before = translated(text)
    assert flat(before.settings)["dataset.format"] == "sidecar"
    assert flat(before.settings)["dataset.frame_selection"] == "random"
    value, wanted = ANIMATE_DIFF[key]
    check_probe(before, translated(with_keys(text, **{f"train_data__{key}": value})), key, wanted)


@pytest.mark.parametrize("key", FRAMES)
def test_a_key_of_frames_dataset_has_its_effect(key):
    text = with_keys(OTHER, dataset_class="FramesDataset")
    before = translated(text)
    settings = flat(before.settings)
    assert (settings["dataset.format"], settings["dataset.num_frames"]) == ("sidecar", 16)
    assert (settings["dataset.frame_selection"], settings["dataset.start_frame"]) == ("first", 0)
    value, wanted = FRAMES[key]
    check_probe(before, translated(with_keys(text, **{f"train_data__{key}": value})), key, wanted)


def test_any_other_dataset_class_is_a_frames_dataset():
    found = translated(with_keys(OTHER, dataset_class="MultiTuneAVideoDatset"))
    assert found.settings["dataset"]["format"] == "sidecar"
    assert any("dataset_class MultiTuneAVideoDatset is no class of upstream" in note for note in found.notes)


def test_videos_keep_their_size_where_none_is_asked_for(tmp_path, tiny_dataset):
    text = with_keys(OTHER, train_data={"samples_dir": str(tmp_path / "clips"), "video_length": 8})
    dataset = translated(text).settings["dataset"]
    assert (dataset["height"], dataset["width"], dataset["fit"]) == (512, 512, "buckets")
    shutil.copytree(tiny_dataset / "clips", tmp_path / "clips")
    (tmp_path / "clips" / "a.json").write_text("{}", encoding="utf-8")
    dataset = translated(text).settings["dataset"]
    assert (dataset["height"], dataset["width"], dataset["fit"]) == (64, 64, "buckets")


# --- guoyww -----------------------------------------------------------------------------------------------------------

GUOYWW_TOP = {
    "image_finetune": (True, {"method": "full", "dataset.num_frames": 1}),
    "name": ("x", "name"),
    "launcher": ("slurm", "launcher"),
    "use_wandb": (True, "use_wandb"),
    "output_dir": ("o", {"run_dir": "o"}),
    "pretrained_model_path": ("m\\b", {"base_model": "m/b"}),
    "train_data": ({"csv_path": "c.csv", "video_folder": "v"}, {"dataset.path": "c.csv", "dataset.video_folder": "v"}),
    "validation_data": ({"prompts": "a"}, {"validation.prompts": ["a"]}),
    "cfg_random_null_text": (False, {"dataset.caption_dropout": 0.0}),
    "cfg_random_null_text_ratio": (0.3, {"dataset.caption_dropout": 0.3}),
    "unet_additional_kwargs": ({}, "new motion modules are of the newer form"),
    "ema_decay": (0.99, "ema_decay (upstream ignores it)"),
    "noise_scheduler_kwargs": ({"beta_schedule": "scaled_linear"}, {"beta_schedule": "scaled_linear"}),
    "max_train_epoch": (2, "max_train_epoch has no effect beside max_train_steps"),
    "max_train_steps": (50, {"max_train_steps": 50}),
    "validation_steps": (10, {"validation.every_steps": 10}),
    "learning_rate": (1e-5, {"optimizer.learning_rate": 1e-5}),
    "scale_lr": (True, "scale_lr (upstream ignores it)"),
    "lr_warmup_steps": (7, {"optimizer.lr_warmup_steps": 7}),
    "lr_scheduler": ("cosine", {"optimizer.lr_scheduler": "cosine"}),
    "trainable_modules": (["."], {"method": "full"}),
    "num_workers": (4, "num_workers"),
    "train_batch_size": (2, {"dataset.batch_size": 2}),
    "adam_beta1": (0.8, {"optimizer.beta1": 0.8}),
    "adam_beta2": (0.99, {"optimizer.beta2": 0.99}),
    "adam_weight_decay": (0.1, {"optimizer.weight_decay": 0.1}),
    "adam_epsilon": (1e-6, {"optimizer.epsilon": 1e-6}),
    "max_grad_norm": (0.5, {"optimizer.max_grad_norm": 0.5}),
    "gradient_accumulation_steps": (4, "gradient_accumulation_steps is 1: upstream has the key"),
    "gradient_checkpointing": (True, {"memory.gradient_checkpointing": "full"}),
    "checkpointing_epochs": (3, "checkpointing_epochs"),
    "checkpointing_steps": (20, {"checkpoint.every_steps": 20}),
    "mixed_precision_training": (False, {"mixed_precision": "no"}),
    "enable_xformers_memory_efficient_attention": (False, {"memory.attention": "sdpa"}),
    "global_seed": (7, {"seed": 7, "validation.seed": 7}),
    "is_debug": (True, "is_debug"),
    "validation_steps_tuple": ([1], "validation_steps_tuple"),
}
GUOYWW_INNER = {
    "train_data__csv_path": ("c.csv", {"dataset.path": "c.csv"}),
    "train_data__video_folder": ("v", {"dataset.video_folder": "v"}),
    "train_data__sample_size": ([256, 384], {"dataset.width": 384}),
    "train_data__sample_stride": (2, {"dataset.frame_stride": 2}),
    "train_data__sample_n_frames": (8, {"dataset.num_frames": 8}),
    "validation_data__prompts": (["b"], {"validation.prompts": ["b"]}),
    "validation_data__num_inference_steps": (9, {"validation.num_inference_steps": 9}),
    "validation_data__guidance_scale": (3, {"validation.guidance_scale": 3.0}),
    "noise_scheduler_kwargs__beta_schedule": ("scaled_linear", {"beta_schedule": "scaled_linear"}),
    "noise_scheduler_kwargs__num_train_timesteps": (900, "num_train_timesteps: AnimateDiff's own numbers"),
    "noise_scheduler_kwargs__beta_start": (0.001, "beta_start"),
    "noise_scheduler_kwargs__beta_end": (0.02, "beta_end"),
    "noise_scheduler_kwargs__steps_offset": (0, "steps_offset"),
    "noise_scheduler_kwargs__clip_sample": (True, "clip_sample"),
    "unet_additional_kwargs__motion_module_mid_block": (False, "motion_module_mid_block"),
    "unet_additional_kwargs__use_inflated_groupnorm": (False, "use_inflated_groupnorm"),
    "unet_additional_kwargs__motion_module_decoder_only": (True, "motion_module_decoder_only"),
    "unet_additional_kwargs__motion_module_kwargs__num_attention_heads": (4, "num_attention_heads"),
    "unet_additional_kwargs__motion_module_kwargs__temporal_position_encoding_max_len": (
        32,
        {"motion_max_seq_length": 32},
    ),
}


def test_every_key_of_guoyww_is_in_the_tables():
    assert {*GUOYWW_TOP, "unet_checkpoint_path"} == set(compat_guoyww.TOP)
    for section, keys in (
        ("train_data", compat_guoyww.TRAIN_DATA),
        ("validation_data", compat_guoyww.VALIDATION),
        ("noise_scheduler_kwargs", compat_guoyww.SCHEDULER),
    ):
        assert {key.split("__")[1] for key in GUOYWW_INNER if key.startswith(f"{section}__")} == set(keys)


@pytest.mark.parametrize("key", [*GUOYWW_TOP, *GUOYWW_INNER])
def test_a_key_of_guoyww_has_its_effect(key):
    value, wanted = (GUOYWW_TOP | GUOYWW_INNER)[key]
    text = with_keys(GUOYWW, **({} if key != "validation_steps_tuple" else {key: ...}))
    if key in ("is_debug", "checkpointing_epochs"):
        text = with_keys(text, **{key: ...})
    check_probe(translated(text), translated(with_keys(text, **{key: value})), key, wanted)


def test_guoyww_trains_new_motion_modules_on_webvid():
    found = translated(GUOYWW)
    settings = flat(found.settings)
    expected = {
        "method": "motion_module",
        "motion_adapter": None,
        "motion_max_seq_length": 24,
        "trainable_modules": [],
        "mixed_precision": "fp16",
        "dataset.format": "webvid",
        "dataset.repeat_frames": True,
        "dataset.flip": True,
        "dataset.caption_dropout": 0.1,
        "checkpoint.every_steps": 60,
        "optimizer.gradient_accumulation_steps": 1,
    }
    assert {key: settings[key] for key in expected} == expected
    assert (found.run_dir, found.numbered) == ("outputs", True)
    part = translated(with_keys(GUOYWW, trainable_modules=["attention_blocks.0."])).settings["trainable_modules"]
    assert part == [r".*attn1\..*"]
    assert "unet_checkpoint_path: names a whole UNet" in refused(with_keys(GUOYWW, unet_checkpoint_path="a.ckpt"))
    assert "did you mean global_seed?" in refused(with_keys(GUOYWW, global_sed=1))


def test_guoywws_epochs_are_counted(webvid):
    file, folder = webvid
    changes = {"train_data__csv_path": str(file), "train_data__video_folder": str(folder), "train_batch_size": 1}
    found = translated(with_keys(GUOYWW, max_train_steps=-1, max_train_epoch=5, checkpointing_steps=-1, **changes,
                                 checkpointing_epochs=2))  # fmt: skip
    assert (found.settings["max_train_steps"], found.settings["checkpoint"]["every_steps"]) == (15, 6)
    found = translated(with_keys(GUOYWW, max_train_steps=-1, max_train_epoch=5))
    assert any("max_train_steps is 1000" in note for note in found.notes)
    assert "max_train_epoch must be at least 1" in refused(with_keys(GUOYWW, max_train_steps=-1))


# --- swift ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def webvid(tmp_path, tiny_dataset):
    """A CSV file of four rows, of which three have their video, and the folder of these."""
    folder = tmp_path / "videos"
    shutil.copytree(tiny_dataset / "clips", folder)
    names = sorted(file.name for file in folder.iterdir())
    with (tmp_path / "train.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["videoid", "name", "contentUrl"])
        rows.writerows([Path(n).stem, f"a clip {n}", f"https://example.org/{n}"] for n in [*names, "gone.mp4"])
    return tmp_path / "train.csv", folder


BASE = ["--model_id_or_path", "base", "--motion_adapter_id_or_path", "mm", "--csv_path", "a.csv", "--video_folder", "v"]
SWIFT = {
    "motion_adapter_id_or_path": ("other\\mm", {"motion_adapter": "other/mm"}),
    "motion_adapter_revision": ("v1", "motion_adapter_revision is left out"),
    "model_id_or_path": ("other\\base", {"base_model": "other/base"}),
    "model_revision": ("v1", "model_revision is left out"),
    "sft_type": ("full", {"method": "motion_module"}),
    "seed": ("7", {"seed": 7, "validation.seed": 7}),
    "enable_xformers_memory_efficient_attention": ("false", {"memory.attention": "sdpa"}),
    "num_inference_steps": ("9", {"validation.num_inference_steps": 9}),
    "sample_size": ("128", {"dataset.height": 128, "dataset.width": 128}),
    "sample_stride": ("2", {"dataset.frame_stride": 2}),
    "sample_n_frames": ("8", {"dataset.num_frames": 8}),
    "motion_num_attention_heads": ("4", "motion_num_attention_heads (swift ignores it)"),
    "motion_max_seq_length": ("24", "motion_max_seq_length (swift ignores it)"),
    "num_train_timesteps": ("900", "num_train_timesteps: AnimateDiff's own numbers"),
    "beta_start": ("0.001", "beta_start"),
    "beta_end": ("0.02", "beta_end"),
    "beta_schedule": ("scaled_linear", {"beta_schedule": "scaled_linear"}),
    "steps_offset": ("0", "steps_offset"),
    "clip_sample": ("true", "clip_sample"),
    "guidance_scale": ("3", {"validation.guidance_scale": 3.0}),
    "dataset_sample_size": ("320", {"dataset.max_clips": 320, "max_train_steps": 20}),
    "output_dir": ("o", {"run_dir": "o"}),
    "ddp_backend": ("gloo", "No effect: ddp_backend"),
    "lora_rank": ("4", {"adapter.rank": 4}),
    "lora_alpha": ("8", {"adapter.alpha": 8.0}),
    "lora_dropout": ("0.2", {"adapter.dropout": 0.2}),
    "lora_dropout_p": ("0.3", {"adapter.dropout": 0.3}),
    "lora_dtype": ("bf16", "lora_dtype bf16 (a LoRA is always trained in 32 bits)"),
    "gradient_checkpointing": ("true", {"memory.gradient_checkpointing": "full"}),
    "batch_size": ("2", {"dataset.batch_size": 2}),
    "num_train_epochs": ("3", "3 epochs"),
    "max_steps": ("10", "max_steps (swift ignores it)"),
    "learning_rate": ("3e-5", {"optimizer.learning_rate": 3e-5}),
    "weight_decay": ("0.1", {"optimizer.weight_decay": 0.1}),
    "gradient_accumulation_steps": ("4", {"optimizer.gradient_accumulation_steps": 4, "validation.every_steps": 12}),
    "max_grad_norm": ("0.5", {"optimizer.max_grad_norm": 0.5}),
    "lr_scheduler_type": ("linear", {"optimizer.lr_scheduler": "linear"}),
    "warmup_ratio": ("0.1", {"optimizer.lr_warmup_steps": 100}),
    "eval_steps": ("160", {"validation.every_steps": 10, "checkpoint.every_steps": 10}),
    "save_steps": ("320", {"checkpoint.every_steps": 20}),
    "dataloader_num_workers": ("4", "No effect: dataloader_num_workers"),
    "push_to_hub": ("true", "Nothing is uploaded: push_to_hub"),
    "hub_model_id": ("a/b", "Nothing is uploaded: hub_model_id"),
    "hub_private_repo": ("true", "hub_private_repo (swift ignores it)"),
    "push_hub_strategy": ("all_checkpoints", "Nothing is uploaded: push_hub_strategy"),
    "hub_token": ("secret", "Nothing is uploaded: hub_token"),
    "text_dropout_rate": ("0.3", {"dataset.caption_dropout": 0.3}),
    "trainable_modules": (
        ".*up_blocks.*motion_modules.*",
        {"adapter.target_modules": [".*up_blocks.*motion_modules.*"]},
    ),
    "mixed_precision": ("false", {"mixed_precision": "no"}),
    "csv_path": ("b.csv", {"dataset.path": "b.csv"}),
    "video_folder": ("w", {"dataset.video_folder": "w"}),
    "use_wandb": ("true", "use_wandb is left out"),
    "validation_prompts_path": ("gone.txt", "validation_prompts_path gone.txt is not here"),
}


def test_every_argument_of_swift_is_in_the_tables():
    assert {*SWIFT, "ignore_args_error"} == set(compat_swift.TRAINING)
    assert {*SWIFT_SAMPLING, "ignore_args_error"} == set(compat_swift.INFERENCE)


@pytest.mark.parametrize("name", SWIFT)
def test_an_argument_of_swifts_training_has_its_effect(name):
    value, wanted = SWIFT[name]
    check_probe(
        compat_swift.from_arguments(BASE), compat_swift.from_arguments([*BASE, f"--{name}", value]), name, wanted
    )


def test_swift_has_its_own_defaults():
    settings = flat(compat_swift.from_arguments(BASE).settings)
    expected = {
        "method": "lora",
        "adapter.rank": 8,
        "adapter.alpha": 32.0,
        "adapter.dropout": 0.05,
        "optimizer.learning_rate": 1e-4,
        "optimizer.lr_scheduler": "cosine",
        "optimizer.gradient_accumulation_steps": 16,
        "validation.every_steps": 3,
        "checkpoint.every_steps": 3,
        "dataset.caption_dropout": 0.1,
    }
    assert {key: settings[key] for key in expected} == expected


def test_what_swift_counts_in_batches_is_counted_in_optimizer_steps(webvid):
    file, folder = webvid
    words = [*BASE[:4], "--csv_path", str(file), "--video_folder", str(folder), "--num_train_epochs", "40"]
    words += ["--gradient_accumulation_steps", "4", "--eval_steps", "30", "--save_steps", "60"]
    found = compat_swift.from_arguments(words)
    settings = flat(found.settings)
    assert settings["max_train_steps"] == 30, "40 times 3 clips, 4 a step"
    assert settings["optimizer.lr_warmup_steps"] == 1, "int(0.05 x 120) // 4"
    assert (settings["validation.every_steps"], settings["checkpoint.every_steps"]) == (8, 15)
    assert any("40 x 3 clips" in note for note in found.notes)
    assert flat(compat_swift.from_arguments([*words, "--dataset_sample_size", "2"]).settings)["max_train_steps"] == 20
    short = compat_swift.from_arguments([*words, "--num_train_epochs", "1"])
    assert short.settings["max_train_steps"] == 1
    parse_config(short.settings)
    several = translated(f"torchrun --nproc_per_node 3 animatediff_sft.py {' '.join(words)}")
    assert several.settings["max_train_steps"] == 10


def test_swifts_prompts_are_read_from_their_file(tmp_path):
    (tmp_path / "prompts.txt").write_text("a house\n\na girl\n", encoding="utf-8")
    words = ["--validation_prompts_path", str(tmp_path / "prompts.txt")]
    found = compat_swift.from_arguments([*BASE, *words])
    assert found.settings["validation"]["prompts"] == ["a house", "a girl"]
    found = compat_swift.from_arguments([*BASE[:4], "--ckpt_dir", "c", *words])
    assert (found.settings["prompts"], found.missing) == (["a house", "a girl"], {})
    parse_sample_config(found.settings)


@pytest.mark.parametrize(
    ("pattern", "method", "lines"),
    [
        (".*motion_modules.*", "motion_module", []),
        (".*motion_modules.*to_q.*", "motion_module", [".*motion_modules.*to_q.*"]),
        (".*", "full", []),
        (".*to_q.*", "motion_module", [".*to_q.*"]),
    ],
)
def test_full_training_of_what_a_regular_expression_matches(pattern, method, lines):
    found = compat_swift.from_arguments([*BASE, "--sft_type", "full", "--trainable_modules", pattern])
    assert (found.settings["method"], found.settings["trainable_modules"]) == (method, lines)
    assert any("reaches into the image model" in note for note in found.notes) == (pattern == ".*to_q.*")
    assert "adapter" not in found.settings


def test_the_lora_lies_on_every_linear_layer_of_the_motion_modules(tiny_unet):
    import torch

    from trainers.families.animatediff.denoiser import lora_targets

    targets = compat_swift.from_arguments(BASE).settings["adapter"]["target_modules"]
    linear = [name for name, module in tiny_unet.named_modules() if isinstance(module, torch.nn.Linear)]
    assert lora_targets(tiny_unet, targets) == [name for name in linear if ".motion_modules." in name]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--sft_type", "lora", "--csv_path", "a.csv"], "--model_id_or_path: must be set"),
        (BASE[:4], "--csv_path: must be set"),
        ([*BASE[:2], *BASE[4:]], "--motion_adapter_id_or_path: must be set for --sft_type lora"),
        ([*BASE, "--lora_rnk", "4"], "--lora_rnk: is unknown to swift's animatediff_sft.py; did you mean lora_rank?"),
        ([*BASE, "--sft_type", "half"], "choose lora or full"),
        ([*BASE, "--batch_size"], "--batch_size: is True, but must be a number"),
        ([*BASE, "--batch_size", "1", "2"], "--batch_size: is ['1', '2'], but must be a number"),
        ([*BASE, "--trainable_modules", ".*("], "is no regular expression"),
        ([*BASE, "--ckpt_dir", "c"], "some of these are for training, some for inference"),
        ([*BASE[:4], "--eval_human"], "--ckpt_dir: must be set for --sft_type lora"),
    ],
)
def test_what_swift_could_not_do_is_refused(words, says):
    with pytest.raises(ConfigError) as caught:
        compat_swift.from_arguments(words)
    assert says in str(caught.value)


def test_flags_and_unknown_arguments_as_swift_takes_them():
    found = compat_swift.from_arguments([*BASE, "--gradient_checkpointing", "--no_mixed_precision"])
    assert found.settings["memory"]["gradient_checkpointing"] == "full"
    assert found.settings["mixed_precision"] == "no"
    found = compat_swift.from_arguments([*BASE, "--ignore_args_error", "true", "--what", "1"])
    assert found.notes[0] == "Unknown and left out, as ignore_args_error asks: what."


SAMPLING = ["--model_id_or_path", "base", "--motion_adapter_id_or_path", "mm", "--ckpt_dir", "c"]
SWIFT_SAMPLING = {
    "motion_adapter_id_or_path": ("other\\mm", {"motion_adapter": "other/mm"}),
    "motion_adapter_revision": ("v1", "motion_adapter_revision is left out"),
    "model_id_or_path": ("other\\base", {"base_model": "other/base"}),
    "model_revision": ("v1", "model_revision is left out"),
    "sft_type": ("full", {"motion_adapter": None}),
    "seed": ("7", {"seeds": [7]}),
    "num_inference_steps": ("9", {"num_inference_steps": 9}),
    "guidance_scale": ("3", {"guidance_scale": 3.0}),
    "sample_n_frames": ("8", {"num_frames": 8}),
    "sample_size": ("128", "set height and width to 128"),
    "sample_stride": ("2", "sample_stride (swift ignores it)"),
    "motion_num_attention_heads": ("4", "motion_num_attention_heads (swift ignores it)"),
    "motion_max_seq_length": ("24", "motion_max_seq_length (swift ignores it)"),
    "enable_xformers_memory_efficient_attention": (
        "false",
        "enable_xformers_memory_efficient_attention (swift ignores",
    ),
    "num_train_timesteps": ("900", "num_train_timesteps: AnimateDiff's own numbers"),
    "beta_start": ("0.001", "beta_start"),
    "beta_end": ("0.02", "beta_end"),
    "beta_schedule": ("scaled_linear", {"beta_schedule": "scaled_linear"}),
    "steps_offset": ("0", "steps_offset"),
    "clip_sample": ("true", "clip_sample"),
    "ckpt_dir": ("d", {"checkpoints": ["d"]}),
    "eval_human": ("true", "eval_human asks for them"),
    "validation_prompts_path": ("gone.txt", "validation_prompts_path gone.txt is not here"),
    "merge_lora": ("true", "python -m trainers.export c --format original"),
    "merge_lora_and_save": ("true", "python -m trainers.export c --format original"),
    "replace_if_exists": ("true", "replace_if_exists is left out"),
    "output_path": ("o", {"run_dir": "o"}),
}


@pytest.mark.parametrize("name", SWIFT_SAMPLING)
def test_an_argument_of_swifts_inference_has_its_effect(name):
    value, wanted = SWIFT_SAMPLING[name]
    before, after = (compat_swift.from_arguments(words) for words in (SAMPLING, [*SAMPLING, f"--{name}", value]))
    if name in ("eval_human", "validation_prompts_path"):
        assert wanted in after.missing["prompts"]
        assert wanted not in before.missing["prompts"]
    else:
        check_probe(before, after, name, wanted)


def test_without_a_checkpoint_full_inference_draws_the_bases_own_motion(tiny_base):
    found = compat_swift.from_arguments(["--model_id_or_path", str(tiny_base), "--sft_type", "full", "--eval_human"])
    assert found.settings["motion_adapter"] == f"{tiny_base}/motion_adapter"
    assert (found.settings["checkpoints"], found.settings["include_base"]) == ([], True)
    assert found.settings["height"] == found.settings["width"] == 64, "what the base's UNet says of itself"
    lora = compat_swift.from_arguments(["--model_id_or_path", str(tiny_base), "--ckpt_dir", "c"])
    assert lora.settings["motion_adapter"] == f"{tiny_base}/motion_adapter"


# --- in every dress ---------------------------------------------------------------------------------------------------


def test_the_same_text_in_every_dress_is_the_same_run():
    plain = read_foreign(TUMURZAKOV)
    dresses = (
        f"My settings:\n\n```yaml\n{TUMURZAKOV}```\n\nParameter | Description\n------ | ------\n",
        TUMURZAKOV.replace("\n", "\r\n"),
        "\ufeff" + TUMURZAKOV,
        TUMURZAKOV.replace("  prompts:", "\tprompts:").replace("seed: 34", "seed:\t34"),
        TUMURZAKOV.replace("1.0e-04", "1e-04"),
        "---\n# a comment\n" + TUMURZAKOV,
    )
    for text in dresses:
        assert read_foreign(text) == plain
    shell = read_foreign(SWIFT_LORA)
    arguments = SWIFT_LORA.split("animatediff_sft.py", 1)[1]
    for text in (
        f"```shell\n{SWIFT_LORA}```",
        f"set -e\ncd swift && {SWIFT_LORA}",
        f"swift{arguments}",
        f"python -m trainers.families.animatediff.compat swift{arguments}",
        arguments.lstrip(" \\\n"),
        " ".join(SWIFT_LORA.replace("\\", "").split("\n")[2:]),
    ):
        assert read_foreign(text) == shell, text


def test_two_of_them_in_one_text_are_too_many():
    assert "there are 2 commands" in refused(SWIFT_LORA + SWIFT_INFER)
    assert "there are 2 configs or commands" in refused(f"```\n{SWIFT_LORA}```\n\n```\n{SWIFT_INFER}```\n")
    document = f"```\n--csv_path names a CSV file\n```\n```\n{SWIFT_LORA}```\n\n```\n{SWIFT_INFER}```\n"
    assert "there are 3 configs or commands" in refused(document), "and not what the first of them lacks"


def test_what_swift_computes_in_another_way_is_told():
    notes = " ".join(read_foreign(SWIFT_LORA).notes)
    assert "norm_semantics to diffusers" in notes
    assert "Gradients of 16 batches are averaged" in notes
    assert "averaged" not in " ".join(read_foreign(SWIFT_LORA.replace("steps 16", "steps 1")).notes)


def test_what_is_none_of_them():
    ours = (ROOT / "examples" / "animatediff" / "lora.yaml").read_text(encoding="utf-8")
    for text in ("", "words", ours, "a: 1", "python train.py --config x.yaml", "prompt: a swift horse's mane\nseed: 1"):
        assert read_foreign(text) is None


# --- through the doors ------------------------------------------------------------------------------------------------


@pytest.fixture
def place(tmp_path, tiny_base, tiny_dataset, monkeypatch):
    """A folder with tiny models and clips under upstream's names, in which the doors are opened."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_base, tmp_path / "models" / "StableDiffusion" / "stable-diffusion-v1-5")
    shutil.copytree(tiny_base / "motion_adapter", tmp_path / "models" / "mm")
    shutil.copytree(tiny_dataset / "clips", tmp_path / "data")
    return tmp_path


def small(place):
    """The published YAML on what is in `place`, small."""
    videos = [f"data\\{file.name}" for file in sorted((place / "data").iterdir())]
    size = {"width": 64, "height": 64}
    text = with_keys(
        TUMURZAKOV,
        motion_module="models\\mm",
        max_train_steps=4,
        **{f"train_data__{key}": value for key, value in {**size, "video_path": videos, "n_sample_frames": 4}.items()},
        **{
            f"validation_data__{key}": value
            for key, value in {**size, "video_length": 4, "temporal_context": 4}.items()
        },
        validation_data__num_inference_steps=2,
        validation_data__num_inv_steps=2,
    )
    (place / "their.yaml").write_text(text, encoding="utf-8")
    return ["--config", "their.yaml"]


def test_a_dry_run_of_the_published_yaml(place, capsys):
    assert trainers.train.main([*small(place), "--dry-run", "--set", "seed=5"]) == 0
    told = capsys.readouterr().out
    assert "# note: Upstream trains on the base model's own noise schedule" in told
    assert told.index("# note: lr_warmup_steps 10 is more") < told.index("# info:")
    config = yaml.safe_load(told)
    assert config["seed"] == 5
    assert config["validation"]["seed"] == 34
    assert parse_config(config).dataset.videos == [f"data/{file.name}" for file in sorted((place / "data").iterdir())]
    assert told.rstrip().endswith("# this run would start")
    assert not (place / "models" / "Motion_Module").exists()


def test_a_run_goes_where_upstream_would_write_and_says_its_notes(place, capsys):
    words = [*small(place), "--set", "max_train_steps=1", "--set", "validation.every_steps=null"]
    words += ["--set", "mixed_precision='no'", "--set", "optimizer.lr_warmup_steps=0"]
    assert trainers.train.main(words) == 0, capsys.readouterr()
    run = RunFolder(place / "models" / "Motion_Module" / "YourNewMotionModel")
    events, _ = read(run.events)
    assert events[-1]["status"] == "finished"
    said = [event["text"] for event in events if event["type"] == "message" and event["level"] == "warning"]
    assert any("noise schedule" in text for text in said)
    assert "noise schedule" in capsys.readouterr().out
    kept = yaml.safe_load(run.config.read_text(encoding="utf-8"))
    assert (kept["family"], kept["dataset"]["format"]) == ("animatediff", "list")

    assert trainers.train.main(words) == 1
    assert "already holds a run; add --resume" in capsys.readouterr().err
    assert trainers.train.main([*words, "--resume", "--set", "max_train_steps=2"]) == 0
    assert [checkpoint.step for checkpoint in run.checkpoints()] == [1, 2]


def test_a_folder_of_an_upstream_run_is_left_alone(place, capsys):
    words = small(place)
    theirs = place / "models" / "Motion_Module" / "YourNewMotionModel" / "config.yaml"
    theirs.parent.mkdir(parents=True)
    shutil.copy(place / "their.yaml", theirs)
    assert trainers.train.main(words) == 1
    assert "is there already, and of another trainer; name a --run-dir" in capsys.readouterr().err
    assert theirs.read_text(encoding="utf-8") == (place / "their.yaml").read_text(encoding="utf-8")


def test_commands_of_swift_start_at_their_own_doors(place, webvid, capsys):
    file, folder = webvid
    base = "models/StableDiffusion/stable-diffusion-v1-5"
    train = f"python animatediff_sft.py --model_id_or_path {base} --motion_adapter_id_or_path models/mm \\\n"
    train += f"  --csv_path {file} --video_folder {folder} --sample_size 64 --sample_n_frames 4 --sample_stride 1\n"
    (place / "sft.sh").write_text(train, encoding="utf-8")
    assert trainers.train.main(["--config", "sft.sh", "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert "# note: max_train_steps is 1: 1 x 3 clips" in told
    assert yaml.safe_load(told)["method"] == "lora"
    assert trainers.sample.main(["--config", "sft.sh"]) == 2
    assert "sft.sh trains with AnimateDiff; give it to python -m trainers.train" in capsys.readouterr().err

    infer = (
        f"python animatediff_infer.py --model_id_or_path {base} --sft_type full --ckpt_dir models/mm --eval_human true"
    )
    infer += " --num_inference_steps 1 --sample_n_frames 2"
    (place / "infer.sh").write_text(infer, encoding="utf-8")
    assert trainers.train.main(["--config", "infer.sh"]) == 2
    assert "infer.sh draws samples with AnimateDiff; give it to python -m trainers.sample" in capsys.readouterr().err
    assert trainers.sample.main(["--config", "infer.sh"]) == 2
    assert "prompts: must be given, for eval_human asks for them at the keyboard" in capsys.readouterr().err
    for number in (1, 2):
        assert trainers.sample.main(["--config", "infer.sh", "--set", "prompts=[a ball]"]) == 0
        run = RunFolder(place / "generated" / f"infer-{number:04d}")
        events, _ = read(run.events)
        assert sum(event["type"] == "sample" for event in events) == 1
        assert any("64 x 64, the base model's own size" in event.get("text", "") for event in events)


def test_the_door_prints_yaml_that_trains(place, capsys):
    """As a process of its own: what it prints is a config, and its exit codes are 0 and 2."""
    door = [sys.executable, "-m", "trainers.families.animatediff.compat"]

    def opened(*words, text=""):
        return subprocess.run([*door, *words], cwd=ROOT, input=text, capture_output=True, text=True, timeout=120)

    done = opened("swift", *BASE)
    assert (done.returncode, done.stderr) == (0, "")
    assert parse_config(yaml.safe_load(done.stdout)) == parse_config(compat_swift.from_arguments(BASE).settings)
    done = opened("-", text=SWIFT_INFER)
    assert (done.returncode, done.stderr) == (0, "")
    assert "# prompts must be given, for eval_human asks" in done.stdout
    assert yaml.safe_load(done.stdout)["prompts"] == []
    done = opened(str(place / "none.yaml"))
    assert (done.returncode, done.stdout) == (2, "")
    done = opened("swift", *BASE, "--lora_rnk", "1")
    assert done.returncode == 2
    assert done.stderr == "--lora_rnk: is unknown to swift's animatediff_sft.py; did you mean lora_rank?\n"
    done = opened("-", text=with_keys(TUMURZAKOV, train_data__width=500, validation_data__use_inv_latent=False))
    assert done.returncode == 2
    assert "set 496 or 504" in done.stderr

    small(place)
    (place / "ours.yaml").write_text(opened(str(place / "their.yaml")).stdout, encoding="utf-8")
    assert trainers.train.main(["--config", "ours.yaml", "--dry-run"]) == 0
    assert capsys.readouterr().out.rstrip().endswith("# this run would start")


def test_the_page_takes_the_same_texts(tmp_path):
    name, settings, said = read_config(TUMURZAKOV)
    assert (name, settings) == ("animatediff", read_foreign(TUMURZAKOV).settings)
    assert [text for level, text in said if level == "info"] == read_foreign(TUMURZAKOV).notes
    name, settings, _ = read_config(SWIFT_LORA)
    assert settings["method"] == "lora"
    with pytest.raises(ConfigError, match=r"draws samples with AnimateDiff; .* in the studio, ask for it in Compare"):
        read_config(SWIFT_INFER)
    import gradio as gr

    for text in (TUMURZAKOV, SWIFT_LORA, SWIFT_FULL):
        settings = read_config(text)[1]
        with gr.Blocks():
            form = form_of(FAMILY, Workspace(tmp_path)).build()
        shown = form.check(form.shown(settings))[0]
        cached = parse_config({**settings, "dataset": {**settings["dataset"], "cache_dir": str(tmp_path / "cache")}})
        assert shown == cached, "the form holds all of it"
    _, settings, said = read_config(with_keys(TUMURZAKOV, validation_data__width=512))
    assert said[0][0] == "error"
    assert "num_inversion_steps" in said[0][1]
    assert settings["validation"]["width"] == 512
    assert apply_overrides(settings, ["validation.width=768"])
