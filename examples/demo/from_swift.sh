# A training command of swift, as it is written there, on clips of the demo.
# python -m trainers.families.animatediff.compat examples/demo/from_swift.sh
PYTHONPATH=../../.. \
CUDA_VISIBLE_DEVICES=0 \
python animatediff_sft.py \
  --model_id_or_path examples/demo/base \
  --motion_adapter_id_or_path examples/demo/base/motion_adapter \
  --csv_path examples/demo/captions.csv \
  --video_folder examples/demo/dataset/clips \
  --sft_type lora \
  --lr_scheduler_type constant \
  --trainable_modules .*motion_modules.* \
  --batch_size 1 \
  --sample_size 64 \
  --sample_n_frames 8 \
  --sample_stride 2 \
  --num_train_epochs 8 \
  --eval_steps 48 \
  --gradient_accumulation_steps 4
