"""What CogVideoX's trainers are started with, as published."""

from __future__ import annotations

#: As CogVideo's guide prints it: what a line means stands below the line, where no shell would take it.
PRINTED = """# CogVideoX diffusers Fine-tuning Guide

First, you need to prepare the dataset.

```
.
├── prompts.txt
├── videos
└── videos.txt
```

```shell
export PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True

# This command sets PyTorch's CUDA memory allocation strategy, to prevent OOM (Out of Memory) errors.

accelerate launch --config_file accelerate_config_machine_single.yaml --multi_gpu \\

# Use Accelerate to start training, specifying the `accelerate_config_machine_single.yaml` configuration file.

train_cogvideox_lora.py \\

# This is the training script you will execute for LoRA fine-tuning of the CogVideoX model.

--pretrained_model_name_or_path THUDM/CogVideoX-2b \\

# The path to the pretrained model, pointing to the CogVideoX-5b model you want to fine-tune.

--cache_dir ~/.cache \\

--enable_tiling \\

# Enable VAE tiling functionality, which reduces memory usage by processing smaller blocks of the image.

--enable_slicing \\

--instance_data_root ~/disney/ \\

# The root directory of the instance data, the folder of the dataset used during training.

--caption_column prompts.txt \\

# In this case, the `prompts.txt` file.

--video_column videos.txt \\

--validation_prompt "Mickey with the captain and friends:::Mickey and the bear" \\

# The prompt(s) used for validation, multiple prompts should be separated by the specified delimiter (`:::`).

--validation_prompt_separator ::: \\

--num_validation_videos 1 \\

--validation_epochs 2 \\

--seed 3407 \\

--rank 128 \\

--mixed_precision bf16 \\

--output_dir cogvideox-lora-single-gpu \\

--height 480 \\

--width 720 \\

--fps 8 \\

# The frame rate of input videos, all videos will be processed at 8 frames per second.

--max_num_frames 49 \\

--skip_frames_start 0 \\

--skip_frames_end 0 \\

--train_batch_size 1 \\

--num_train_epochs 10 \\

--checkpointing_steps 500 \\

--gradient_accumulation_steps 1 \\

--learning_rate 1e-4 \\

--optimizer AdamW \\

# The type of optimizer, choosing AdamW.

--adam_beta1 0.9 \\

--adam_beta2 0.95 \\

# The beta2 parameter for the Adam optimizer, set to 0.95.

```

### Run the script to start fine-tuning

```shell
bash finetune_single_gpu.sh
```
"""

#: As the current trainer's own shell script has it, with parts of it commented out.
CURRENT = """#!/usr/bin/env bash

# Prevent tokenizer parallelism issues
export TOKENIZERS_PARALLELISM=false

MODEL_ARGS=(
    --model_path "THUDM/CogVideoX1.5-5B-I2V"
    --model_name "cogvideox1.5-i2v"  # ["cogvideox-i2v"]
    --model_type "i2v"
    --training_type "sft"
)

OUTPUT_ARGS=(
    --output_dir "/path/to/your/output_dir"
    --report_to "tensorboard"
)

DATA_ARGS=(
    --data_root "/path/to/your/data_root"
    --caption_column "prompt.txt"
    --video_column "videos.txt"
    # --image_column "images.txt"  # comment this line will use first frame of video as image conditioning
    --train_resolution "81x768x1360"  # (frames x height x width), frames should be 8N+1
)

TRAIN_ARGS=(
    --train_epochs 10 # number of training epochs
    --seed 42 # random seed

    #########   Please keep consistent with deepspeed config file ##########
    --batch_size 1
    --gradient_accumulation_steps 1
    --mixed_precision "bf16"  # ["no", "fp16"] Only CogVideoX-2B supports fp16 training
    ########################################################################
)

SYSTEM_ARGS=(
    --num_workers 8
    --pin_memory True
    --nccl_timeout 1800
)

CHECKPOINT_ARGS=(
    --checkpointing_steps 10 # save checkpoint every x steps
    --checkpointing_limit 2 # maximum number of checkpoints to keep, after which the oldest one is deleted
)

VALIDATION_ARGS=(
    --do_validation false  # ["true", "false"]
    --validation_dir "/path/to/validation_set"
    --validation_steps 20  # should be multiple of checkpointing_steps
    --validation_prompts "prompts.txt"
    --validation_images "images.txt"
    --gen_fps 16
)

# Combine all arguments and launch training
accelerate launch --config_file accelerate_config.yaml train.py \\
    "${MODEL_ARGS[@]}" \\
    "${OUTPUT_ARGS[@]}" \\
    "${DATA_ARGS[@]}" \\
    "${TRAIN_ARGS[@]}" \\
    "${SYSTEM_ARGS[@]}" \\
    "${CHECKPOINT_ARGS[@]}" \\
    "${VALIDATION_ARGS[@]}"
"""

#: As cogvideox-factory's shell script has it, with one value in each of its lists.
FACTORY = """export WANDB_MODE="offline"
GPU_IDS="0"
LEARNING_RATES=("1e-4")
LR_SCHEDULES=("cosine_with_restarts")
OPTIMIZERS=("adamw")
MAX_TRAIN_STEPS=("3000")
ACCELERATE_CONFIG_FILE="accelerate_configs/uncompiled_1.yaml"
DATA_ROOT="/path/to/my/datasets/disney-dataset"
CAPTION_COLUMN="prompt.txt"
VIDEO_COLUMN="videos.txt"

for learning_rate in "${LEARNING_RATES[@]}"; do
  for lr_schedule in "${LR_SCHEDULES[@]}"; do
    for optimizer in "${OPTIMIZERS[@]}"; do
      for steps in "${MAX_TRAIN_STEPS[@]}"; do
        output_dir="models/cogvideox-lora__${optimizer}__steps_${steps}__${lr_schedule}__${learning_rate}/"

        cmd="accelerate launch --config_file $ACCELERATE_CONFIG_FILE --gpu_ids $GPU_IDS training/cogvideox_image_to_video_lora.py \\
          --pretrained_model_name_or_path THUDM/CogVideoX-5b-I2V \\
          --data_root $DATA_ROOT \\
          --caption_column $CAPTION_COLUMN \\
          --video_column $VIDEO_COLUMN \\
          --id_token BW_STYLE \\
          --height_buckets 480 \\
          --width_buckets 720 \\
          --frame_buckets 49 \\
          --dataloader_num_workers 8 \\
          --pin_memory \\
          --validation_prompt \\"BW_STYLE A goat, surrounded by notes:::BW_STYLE A panda's song\\" \\
          --validation_images \\"/path/to/image1.png:::/path/to/image2.png\\"
          --validation_prompt_separator ::: \\
          --num_validation_videos 1 \\
          --validation_epochs 10 \\
          --seed 42 \\
          --rank 128 \\
          --lora_alpha 128 \\
          --mixed_precision bf16 \\
          --output_dir $output_dir \\
          --max_num_frames 49 \\
          --train_batch_size 1 \\
          --max_train_steps $steps \\
          --checkpointing_steps 1000 \\
          --gradient_checkpointing \\
          --learning_rate $learning_rate \\
          --lr_scheduler $lr_schedule \\
          --lr_warmup_steps 400 \\
          --enable_slicing \\
          --enable_tiling \\
          --noised_image_dropout 0.05 \\
          --optimizer $optimizer \\
          --weight_decay 0.001 \\
          --allow_tf32 \\
          --report_to wandb \\
          --nccl_timeout 1800"

        echo "Running command: $cmd"
        eval $cmd
        echo -ne "-------------------- Finished executing script --------------------\\n\\n"
      done
    done
  done
done
"""  # noqa: E501

#: As diffusers' README prints it, with its placeholders.
DIFFUSERS = """```bash
#!/bin/bash

GPU_IDS="0"

accelerate launch --gpu_ids $GPU_IDS examples/cogvideo/train_cogvideox_lora.py \\
  --pretrained_model_name_or_path THUDM/CogVideoX-2b \\
  --cache_dir <CACHE_DIR> \\
  --instance_data_root <PATH_TO_WHERE_VIDEO_FILES_ARE_STORED> \\
  --dataset_name my-awesome-name/my-awesome-dataset \\
  --caption_column <CAPTION_COLUMN> \\
  --video_column <PATH_TO_VIDEO_COLUMN> \\
  --id_token <ID_TOKEN> \\
  --validation_prompt "<ID_TOKEN> Spiderman swinging over buildings:::A panda, dressed in a small, red jacket" \\
  --validation_prompt_separator ::: \\
  --num_validation_videos 1 \\
  --validation_epochs 10 \\
  --seed 42 \\
  --rank 64 \\
  --lora_alpha 64 \\
  --mixed_precision fp16 \\
  --output_dir /raid/me/cogvideox-lora \\
  --height 480 --width 720 --fps 8 --max_num_frames 49 --skip_frames_start 0 --skip_frames_end 0 \\
  --train_batch_size 1 \\
  --num_train_epochs 30 \\
  --checkpointing_steps 1000 \\
  --gradient_accumulation_steps 1 \\
  --learning_rate 1e-3 \\
  --lr_scheduler cosine_with_restarts \\
  --lr_warmup_steps 200 \\
  --lr_num_cycles 1 \\
  --enable_slicing \\
  --enable_tiling \\
  --optimizer Adam \\
  --adam_beta1 0.9 \\
  --adam_beta2 0.95 \\
  --max_grad_norm 1.0 \\
  --report_to wandb
```
"""
