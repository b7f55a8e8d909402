"""The YAML of guoyww/AnimateDiff becomes the same run here: every key is mapped or spoken of."""

from __future__ import annotations

import pytest
from compat_texts import GUOYWW, check_probe, flat, refused, translated, with_keys

from trainers.families.animatediff import compat_guoyww, compat_parts

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
    "unet_additional_kwargs": ({}, {"motion_mid_block": False}),
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
    "unet_additional_kwargs__motion_module_mid_block": (False, {"motion_mid_block": False}),
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
        ("noise_scheduler_kwargs", compat_parts.SCHEDULE),
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


@pytest.mark.parametrize(
    ("form", "ours", "says"),
    [
        ({}, (24, False), None),
        ({"motion_module_mid_block": True, "use_inflated_groupnorm": True}, (24, True), None),
        ({"use_inflated_groupnorm": True, "temporal_position_encoding_max_len": 32}, (32, False), None),
        ({"use_inflated_groupnorm": True}, (24, False), "without one in the middle block and with 24 positions are v1"),
        ({"motion_module_mid_block": True}, (24, True), "are v2, which has norms of each frame by itself"),
        ({"temporal_position_encoding_max_len": 32}, (32, False), "are v3, which has norms of each frame by itself"),
    ],
)
def test_the_form_of_guoywws_motion_modules_is_kept(form, ours, says):
    asked = {key: value for key, value in form.items() if key != "temporal_position_encoding_max_len"}
    if len(asked) < len(form):
        asked["motion_module_kwargs"] = {"temporal_position_encoding_max_len": 32}
    found = translated(with_keys(GUOYWW, unet_additional_kwargs=asked))
    assert (found.settings["motion_max_seq_length"], found.settings["motion_mid_block"]) == ours
    told = [note for note in found.notes if note.startswith("use_inflated_groupnorm")]
    assert [says in note for note in told] == ([True] if says else [])
    assert "is 'maybe', but must be true or false" in refused(
        with_keys(GUOYWW, unet_additional_kwargs__motion_module_mid_block="maybe")
    )


def test_guoywws_epochs_are_counted(webvid_table):
    file, folder = webvid_table
    changes = {"train_data__csv_path": str(file), "train_data__video_folder": str(folder), "train_batch_size": 1}
    found = translated(with_keys(GUOYWW, max_train_steps=-1, max_train_epoch=5, checkpointing_steps=-1, **changes,
                                 checkpointing_epochs=2))  # fmt: skip
    assert (found.settings["max_train_steps"], found.settings["checkpoint"]["every_steps"]) == (15, 6)
    found = translated(with_keys(GUOYWW, max_train_steps=-1, max_train_epoch=5))
    assert any("max_train_steps is 1000" in note for note in found.notes)
    assert "max_train_epoch must be at least 1" in refused(with_keys(GUOYWW, max_train_steps=-1))
