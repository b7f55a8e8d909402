"""What the trainers of others are started with, as published, and what tests ask of its translation."""

from __future__ import annotations

import pytest
import yaml

from trainers.families import parse_config, parse_sample_config
from trainers.families.animatediff.compat import read_foreign
from trainers.settings import ConfigError, parse_yaml

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

#: swift's arguments in short: the least that it trains with.
SWIFT_WORDS = ["--model_id_or_path", "base", "--motion_adapter_id_or_path", "mm"]
SWIFT_WORDS += ["--csv_path", "a.csv", "--video_folder", "v"]

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


def checked(found):
    """A translation: every note is a sentence, none is said twice, and it is a config unless something is missing."""
    assert len(set(found.notes)) == len(found.notes)
    assert all(note.endswith(".") for note in found.notes), found.notes
    if not found.missing:
        (parse_config if found.kind == "train" else parse_sample_config)(found.settings)
    return found


def translated(text):
    found = read_foreign(text)
    assert found is not None
    return checked(found)


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
