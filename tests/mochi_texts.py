"""What Mochi's trainers are started with, as published: Genmo's commands, and cogvideox-factory's shell script."""

from __future__ import annotations

from pathlib import Path

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "mochi" / "from_genmo.yaml"

#: Genmo's lora.yaml, with the prompts of our example in it.
GENMO = EXAMPLE.read_text(encoding="utf-8")

PREPROCESS = "bash demos/fine_tuner/preprocess.bash -v videos/ -o videos_prepared/ -w weights/ --num_frames 37"
RUN = "bash ./demos/fine_tuner/run.bash -c ./demos/fine_tuner/configs/lora.yaml -n 1"
CLI = (
    "python3 ./demos/cli.py --model_dir weights/ --lora_path finetunes/my_mochi_lora/model_2000.lora.safetensors "
    '--num_frames 37 --cpu_offload --prompt "A delicate porcelain teacup sits on a marble countertop."'
)

#: Two steps of Genmo's guide, each between its own fences.
GUIDE = f"""### 2. Process videos and captions (About 2 minutes)
Update the paths in the command below to match your dataset. Videos are processed at 30 FPS, so make sure your videos
are at least `num_frames / 30` seconds long.
```bash
{PREPROCESS}
```

### 3. Fine-tune the model
Don't forget to set `COMPILE_DIT=1` in `demos/fine_tuner/run.bash`. Launch LoRA fine-tuning on single GPU:
```bash
{RUN}
```
"""

#: As cogvideox-factory's train.sh has it.
FACTORY = """#!/bin/bash
export NCCL_P2P_DISABLE=1
export TORCH_NCCL_ENABLE_MONITORING=0

GPU_IDS="0"

DATA_ROOT="videos_prepared"
MODEL="genmo/mochi-1-preview"
OUTPUT_PATH="mochi-lora"

cmd="CUDA_VISIBLE_DEVICES=$GPU_IDS python text_to_video_lora.py \\
  --pretrained_model_name_or_path $MODEL \\
  --cast_dit \\
  --data_root $DATA_ROOT \\
  --seed 42 \\
  --output_dir $OUTPUT_PATH \\
  --train_batch_size 1 \\
  --dataloader_num_workers 4 \\
  --pin_memory \\
  --caption_dropout 0.1 \\
  --max_train_steps 2000 \\
  --gradient_checkpointing \\
  --enable_slicing \\
  --enable_tiling \\
  --enable_model_cpu_offload \\
  --optimizer adamw \\
  --validation_prompt \\"A black and white goat, surrounded by notes:::A mouse\\" \\
  --validation_prompt_separator ::: \\
  --num_validation_videos 1 \\
  --validation_epochs 1 \\
  --allow_tf32 \\
  --report_to wandb \\
  --push_to_hub"

echo "Running command: $cmd"
eval $cmd
echo -ne "-------------------- Finished executing script --------------------\\n\\n"
"""
