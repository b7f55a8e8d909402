# The training command of CogVideo's fine-tuning guide, as it is written there, with other paths.
# python -m trainers.families.cogvideox.compat examples/cogvideox/from_seed.sh shows what becomes of it;
# python -m trainers.train --config examples/cogvideox/from_seed.sh runs it, with workspace/datasets/disney holding
# videos.txt and prompts.txt.
export PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True

accelerate launch --config_file accelerate_config_machine_single.yaml --multi_gpu \
  train_cogvideox_lora.py \
  --pretrained_model_name_or_path THUDM/CogVideoX-2b \
  --cache_dir ~/.cache \
  --enable_tiling \
  --enable_slicing \
  --instance_data_root workspace/datasets/disney \
  --caption_column prompts.txt \
  --video_column videos.txt \
  --validation_prompt "Mickey with the captain and friends:::Mickey and the bear" \
  --validation_prompt_separator ::: \
  --num_validation_videos 1 \
  --validation_epochs 2 \
  --seed 3407 \
  --rank 128 \
  --mixed_precision bf16 \
  --output_dir runs/cogvideox-lora-single-gpu \
  --height 480 \
  --width 720 \
  --fps 8 \
  --max_num_frames 49 \
  --skip_frames_start 0 \
  --skip_frames_end 0 \
  --train_batch_size 1 \
  --num_train_epochs 10 \
  --checkpointing_steps 500 \
  --gradient_accumulation_steps 1 \
  --learning_rate 1e-4 \
  --optimizer AdamW \
  --adam_beta1 0.9 \
  --adam_beta2 0.95
