"""The command lines of swift become the same run here: every argument is mapped or spoken of."""

from __future__ import annotations

import pytest
from compat_texts import SWIFT_FULL, SWIFT_INFER, SWIFT_LORA, SWIFT_WORDS, check_probe, flat, translated

from trainers.families import parse_config, parse_sample_config
from trainers.families.animatediff import compat_swift
from trainers.families.animatediff.compat import read_foreign
from trainers.settings import ConfigError


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
        "motion_mid_block": True,
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


def test_what_swift_computes_in_another_way_is_told():
    notes = " ".join(read_foreign(SWIFT_LORA).notes)
    assert "norm_semantics to diffusers" in notes
    assert "Gradients of 16 batches are averaged" in notes
    assert "averaged" not in " ".join(read_foreign(SWIFT_LORA.replace("steps 16", "steps 1")).notes)


# --- training: every argument -----------------------------------------------------------------------------------------


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


def test_every_argument_of_swift_is_in_the_tables():
    assert {*SWIFT, "ignore_args_error"} == set(compat_swift.TRAINING)
    assert {*SWIFT_SAMPLING, "ignore_args_error"} == set(compat_swift.INFERENCE)


@pytest.mark.parametrize("name", SWIFT)
def test_an_argument_of_swifts_training_has_its_effect(name):
    value, wanted = SWIFT[name]
    before, after = (compat_swift.from_arguments([*SWIFT_WORDS, *more]) for more in ([], [f"--{name}", value]))
    check_probe(before, after, name, wanted)


def test_swift_has_its_own_defaults():
    settings = flat(compat_swift.from_arguments(SWIFT_WORDS).settings)
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


def test_what_swift_counts_in_batches_is_counted_in_optimizer_steps(webvid_table):
    file, folder = webvid_table
    words = [*SWIFT_WORDS[:4], "--csv_path", str(file), "--video_folder", str(folder), "--num_train_epochs", "40"]
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
    found = compat_swift.from_arguments([*SWIFT_WORDS, *words])
    assert found.settings["validation"]["prompts"] == ["a house", "a girl"]
    found = compat_swift.from_arguments([*SWIFT_WORDS[:4], "--ckpt_dir", "c", *words])
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
    found = compat_swift.from_arguments([*SWIFT_WORDS, "--sft_type", "full", "--trainable_modules", pattern])
    assert (found.settings["method"], found.settings["trainable_modules"]) == (method, lines)
    assert any("reaches into the image model" in note for note in found.notes) == (pattern == ".*to_q.*")
    assert "adapter" not in found.settings


def test_the_lora_lies_on_every_linear_layer_of_the_motion_modules(tiny_unet):
    import torch

    from trainers.families.animatediff.denoiser import lora_targets

    targets = compat_swift.from_arguments(SWIFT_WORDS).settings["adapter"]["target_modules"]
    linear = [name for name, module in tiny_unet.named_modules() if isinstance(module, torch.nn.Linear)]
    assert lora_targets(tiny_unet, targets) == [name for name in linear if ".motion_modules." in name]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--sft_type", "lora", "--csv_path", "a.csv"], "--model_id_or_path: must be set"),
        (SWIFT_WORDS[:4], "--csv_path: must be set"),
        ([*SWIFT_WORDS[:2], *SWIFT_WORDS[4:]], "--motion_adapter_id_or_path: must be set for --sft_type lora"),
        (
            [*SWIFT_WORDS, "--lora_rnk", "4"],
            "--lora_rnk: is unknown to swift's animatediff_sft.py; did you mean lora_rank?",
        ),
        ([*SWIFT_WORDS, "--sft_type", "half"], "choose lora or full"),
        ([*SWIFT_WORDS, "--batch_size"], "--batch_size: is True, but must be a number"),
        ([*SWIFT_WORDS, "--batch_size", "1", "2"], "--batch_size: is ['1', '2'], but must be a number"),
        ([*SWIFT_WORDS, "--trainable_modules", ".*("], "is no regular expression"),
        ([*SWIFT_WORDS, "--ckpt_dir", "c"], "some of these are for training, some for inference"),
        ([*SWIFT_WORDS[:4], "--eval_human"], "--ckpt_dir: must be set for --sft_type lora"),
    ],
)
def test_what_swift_could_not_do_is_refused(words, says):
    with pytest.raises(ConfigError) as caught:
        compat_swift.from_arguments(words)
    assert says in str(caught.value)


def test_flags_and_unknown_arguments_as_swift_takes_them():
    found = compat_swift.from_arguments([*SWIFT_WORDS, "--gradient_checkpointing", "--no_mixed_precision"])
    assert found.settings["memory"]["gradient_checkpointing"] == "full"
    assert found.settings["mixed_precision"] == "no"
    found = compat_swift.from_arguments([*SWIFT_WORDS, "--ignore_args_error", "true", "--what", "1"])
    assert found.notes[0] == "Unknown and left out, as ignore_args_error asks: what."


# --- inference --------------------------------------------------------------------------------------------------------


SAMPLING = ["--model_id_or_path", "base", "--motion_adapter_id_or_path", "mm", "--ckpt_dir", "c"]


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
