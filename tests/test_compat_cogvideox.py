"""What CogVideoX's trainers are started with becomes the same run here: every flag is mapped or spoken of."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from cogvideox_texts import CURRENT, DIFFUSERS, FACTORY, PRINTED
from compat_texts import check_probe, flat

import trainers.train
from trainers.events import read
from trainers.families import FAMILIES, get_family, load_config, parse_config, read_file, read_settings
from trainers.families.cogvideox import compat_diffusers, compat_factory, compat_trainer
from trainers.families.cogvideox.compat import from_arguments, read_foreign
from trainers.runs import RunFolder
from trainers.settings import ConfigError

ROOT = Path(__file__).resolve().parent.parent
PUBLISHED_FLAGS = json.loads((ROOT / "tests" / "data" / "cogvideox_flags.json").read_text(encoding="utf-8"))


def translated(text):
    found = read_foreign(text)
    assert found is not None
    return checked(found)


def checked(found):
    assert len(set(found.notes)) == len(found.notes)
    assert all(note.endswith(".") for note in found.notes), found.notes
    assert sum(note.startswith("Without effect here") for note in found.notes) <= 1
    parse_config(found.settings)
    return found


def of(script, words):
    return checked(from_arguments(script, words))


def refused(script, words):
    with pytest.raises(ConfigError) as caught:
        parse_config(from_arguments(script, words).settings)
    return str(caught.value)


# --- the documents, as they are printed -------------------------------------------------------------------------------


def test_the_printed_command_of_the_guide():
    found = translated(PRINTED)
    assert (found.kind, found.run_dir, found.numbered) == ("train", "cogvideox-lora-single-gpu", False)
    assert found.settings == {
        "family": "cogvideox",
        "method": "lora",
        "base_model": "THUDM/CogVideoX-2b",
        "use_dynamic_cfg": False,
        "scheduler": "dpm",
        "seed": 3407,
        "max_train_steps": 1000,
        "mixed_precision": "bf16",
        "dataset": {
            "path": "~/disney/",
            "format": "paired",
            "video_list": "videos.txt",
            "caption_list": "prompts.txt",
            "num_frames": 49,
            "height": 480,
            "width": 720,
            "frame_selection": "strided",
            "skip_frames_start": 0,
            "skip_frames_end": 0,
            "frame_buckets": True,
            "fit": "stretch",
            "id_token": None,
            "caption_dropout": 0.0,
            "batch_size": 1,
        },
        "adapter": {
            "rank": 128,
            "alpha": 128.0,
            "dropout": 0.0,
            "target_modules": ["to_q", "to_k", "to_v", "to_out.0"],
        },
        "optimizer": {
            "name": "adamw",
            "learning_rate": 1e-4,
            "lr_scheduler": "constant",
            "lr_warmup_steps": 0,
            "lr_num_cycles": 1,
            "lr_power": 1.0,
            "beta1": 0.9,
            "beta2": 0.95,
            "weight_decay": 1e-4,
            "epsilon": 1e-8,
            "prodigy_beta3": None,
            "prodigy_decouple": False,
            "prodigy_use_bias_correction": False,
            "prodigy_safeguard_warmup": False,
            "gradient_accumulation_steps": 1,
            "max_grad_norm": 1.0,
        },
        "memory": {"gradient_checkpointing": "none", "vae_tiling": True, "vae_slicing": True},
        "validation": {
            "every_steps": 500,
            "prompts": ["Mickey with the captain and friends", "Mickey and the bear"],
            "images": [],
            "samples_per_prompt": 1,
            "num_inference_steps": 50,
            "guidance_scale": 6.0,
            "seed": 3407,
            "fps": 8,
        },
        "checkpoint": {"every_steps": 500, "keep_last": None},
        "tracking": {"tracker": "none"},
    }
    said = "\n".join(found.notes)
    assert "10 epochs are clips x 10 / 1 steps (batch 1, accumulation 1, processes 1)" in said
    assert "--fps has no part in that" in said
    assert "accelerate_config_machine_single.yaml is not here" in said
    assert "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True" in said
    assert "Without effect here: --cache_dir (" in said
    assert found.notes[0].startswith("max_train_steps is 1000")


def test_every_door_reads_the_printed_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert read_settings(PRINTED, "train").settings == read_foreign(PRINTED).settings
    Path("guide.md").write_text(PRINTED, encoding="utf-8")
    config = load_config("guide.md", ["dataset.num_frames=9"])
    assert (config.family, config.dataset.num_frames, config.validation.prompts[1]) == (
        "cogvideox", 9, "Mickey and the bear",
    )  # fmt: skip
    door = [sys.executable, "-m", "trainers.families.cogvideox.compat"]
    done = subprocess.run([*door, str(tmp_path / "guide.md")], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("# to run: python -m trainers.train --config FILE --run-dir cogvideox-lora-single")
    assert yaml.safe_load(done.stdout) == read_foreign(PRINTED).settings
    words = ["train.py", "--model_path", "THUDM/CogVideoX-2b"]
    done = subprocess.run([*door, *words], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "--train_resolution: must be set" in done.stderr


def test_the_current_trainers_shell_script():
    found = translated(CURRENT)
    settings = flat(found.settings)
    expected = {
        "method": "full",
        "base_model": "THUDM/CogVideoX1.5-5B-I2V",
        "mixed_precision": "bf16",
        "rotary": "pipeline",
        "image_noise_dropout": 0.0,
        "image_noise": True,
        "image_latent_scale": "pipeline",
        "dataset.path": "/path/to/your/data_root",
        "dataset.caption_list": "prompt.txt",
        "dataset.num_frames": 81,
        "dataset.height": 768,
        "dataset.width": 1360,
        "dataset.frame_selection": "strided",
        "dataset.repeat_frames": True,
        "optimizer.name": "adamw",
        "optimizer.learning_rate": 2e-5,
        "optimizer.lr_scheduler": "constant_with_warmup",
        "optimizer.lr_warmup_steps": 100,
        "optimizer.beta2": 0.95,
        "memory.gradient_checkpointing": "full",
        "memory.vae_tiling": True,
        "validation.every_steps": None,
        "validation.fps": 16,
        "checkpoint.every_steps": 10,
        "checkpoint.keep_last": 2,
        "tracking.tracker": "tensorboard",
    }
    assert {key: settings[key] for key in expected} == expected
    assert not any(key.startswith("adapter.") for key in settings)
    said = "\n".join(found.notes)
    assert "image_latent_scale is pipeline" in said
    assert "accelerate_config.yaml is not here" in said
    assert "--validation_images (--do_validation is not true)" in said.replace(
        "--validation_steps, --validation_dir, --validation_prompts, ", ""
    )


def test_the_factorys_shell_script():
    found = translated(FACTORY)
    settings = flat(found.settings)
    expected = {
        "method": "lora",
        "base_model": "THUDM/CogVideoX-5b-I2V",
        "max_train_steps": 3000,
        "image_noise_dropout": 0.05,
        "learned_positions": True,
        "dataset.path": "/path/to/my/datasets/disney-dataset",
        "dataset.num_frames": 49,
        "dataset.frame_buckets": False,
        "dataset.fit": "stretch",
        "dataset.id_token": "BW_STYLE",
        "optimizer.learning_rate": 1e-4,
        "optimizer.lr_scheduler": "cosine_with_restarts",
        "optimizer.lr_warmup_steps": 400,
        "optimizer.weight_decay": 0.001,
        "memory.gradient_checkpointing": "full",
        "validation.prompts": ["BW_STYLE A goat, surrounded by notes", "BW_STYLE A panda's song"],
        "validation.images": ["/path/to/image1.png", "/path/to/image2.png"],
        "checkpoint.every_steps": 1000,
    }
    assert {key: settings[key] for key in expected} == expected
    assert found.run_dir == "models/cogvideox-lora__adamw__steps_3000__cosine_with_restarts__1e-4/"
    with pytest.raises(ConfigError, match="for each learning_rate of 1e-4, 1e-3"):
        read_foreign(FACTORY.replace('("1e-4")', '("1e-4" "1e-3")'))


def test_diffusers_readme_asks_for_its_placeholders():
    with pytest.raises(ConfigError) as caught:
        read_foreign(DIFFUSERS)
    flags = ["--cache_dir", "--instance_data_root", "--caption_column", "--video_column", "--id_token"]
    assert [where for where, _ in caught.value.problems] == [*flags, "--validation_prompt"]
    text = DIFFUSERS.replace("<ID_TOKEN>", "DISNEY")
    for place, value in (
        ("<CACHE_DIR>", "cache"), ("<PATH_TO_WHERE_VIDEO_FILES_ARE_STORED>", "clips"),
        ("<CAPTION_COLUMN>", "caption"), ("<PATH_TO_VIDEO_COLUMN>", "file"),
    ):  # fmt: skip
        text = text.replace(place, value)
    settings = flat(translated(text).settings)
    expected = {
        "dataset.format": "hub",
        "dataset.path": "my-awesome-name/my-awesome-dataset",
        "dataset.video_folder": "clips",
        "dataset.video_column": "file",
        "dataset.caption_column": "caption",
        "dataset.fit": "crop",
        "dataset.id_token": "DISNEY",
        "optimizer.name": "adam",
        "optimizer.learning_rate": 1e-3,
        "adapter.rank": 64,
        "adapter.alpha": 64.0,
    }
    assert {key: settings[key] for key in expected} == expected


def test_what_is_none_of_them():
    for text in (
        "python train.py --config train.yaml",
        "python -m trainers.train --config examples/cogvideox/lora.yaml",
        "The script train_cogvideox_lora.py takes 66 flags.",
        "bash finetune_single_gpu.sh",
        "family: cogvideox\nmethod: lora\n",
    ):
        assert read_foreign(text) is None
    reads = get_family("cogvideox").reads
    assert all(script.removesuffix(".py") in reads for script in (*compat_diffusers.DIALECTS, "train.py"))


def test_two_commands_are_too_many():
    with pytest.raises(ConfigError, match="there are 2 configs or commands in this text"):
        read_foreign(PRINTED + PRINTED)


# --- every flag -------------------------------------------------------------------------------------------------------

FIRST = {**PUBLISHED_FLAGS["diffusers_text"], **PUBLISHED_FLAGS["cogvideo_first"]}
#: dialect -> the flags of its scripts, by their parsers. diffusers' T2V and CogVideo's first are read by one table;
#: CogVideo's own I2V script of later that year had --video_reshape_mode as well.
TABLES = {
    compat_diffusers.TEXT: FIRST,
    compat_diffusers.IMAGE: {
        **PUBLISHED_FLAGS["diffusers_image"],
        "video_reshape_mode": PUBLISHED_FLAGS["factory"]["video_reshape_mode"],
    },
    "cogvideox_text_to_video_lora.py": PUBLISHED_FLAGS["factory"],
    "cogvideox_image_to_video_sft.py": PUBLISHED_FLAGS["factory"],
    compat_trainer.SCRIPT: PUBLISHED_FLAGS["cogvideo_current"],
}
KINDS = {"flag": bool, "str": str, "int": int, "float": float, "bool": bool}
#: Read differently: a default that diffusers' script has and CogVideo's not; lists; what must be given to be of use.
OTHERWISE = {"video_reshape_mode", "height_buckets", "width_buckets", "frame_buckets", "target_modules", "data_root",
             "do_validation"}  # fmt: skip


def table_of(script):
    if script == compat_trainer.SCRIPT:
        return compat_trainer.FLAGS
    return (compat_factory.DIALECTS | compat_diffusers.DIALECTS)[script].flags


@pytest.mark.parametrize("script", TABLES)
def test_every_flag_has_upstreams_kind_and_default(script):
    own, published = table_of(script), TABLES[script]
    assert set(own) == set(published)
    for name, (kind, default) in published.items():
        if name in OTHERWISE:
            continue
        assert own[name].kind is (float if name == "lora_alpha" else KINDS[kind]), name
        assert own[name].default == (... if default == "required" else default), name
    assert [len(PUBLISHED_FLAGS[name]) for name in PUBLISHED_FLAGS] == [66, 64, 66, 78, 48]


SAMPLES = ["--validation_prompt", "a:::b"]
STEPS = ["--max_train_steps", "2000"]
BASE = ["--pretrained_model_name_or_path", "base", "--video_column", "v.txt", "--caption_column", "c.txt", *STEPS]
COSINE = ["--lr_scheduler", "cosine"]
PRODIGY = ["--optimizer", "prodigy", "--learning_rate", "1"]

#: flag -> (words around it, its own values, what it changes), where CogVideo's first script began.
COMMON = {
    "pretrained_model_name_or_path": ([], ["other\\base"], {"base_model": "other/base"}),
    "revision": ([], ["v1"], "--revision (the newest revision is taken)"),
    "variant": ([], ["fp16"], "--variant ("),
    "cache_dir": ([], ["~/.cache"], "--cache_dir ("),
    "video_column": ([], ["w.txt"], {"dataset.video_list": "w.txt"}),
    "caption_column": ([], ["d.txt"], {"dataset.caption_list": "d.txt"}),
    "id_token": ([], ["DISNEY"], {"dataset.id_token": "DISNEY"}),
    "dataloader_num_workers": ([], ["8"], "--dataloader_num_workers ("),
    "validation_prompt": ([], ["one ::: two"], {"validation.prompts": ["one", "two"]}),
    "validation_prompt_separator": (["--validation_prompt", "a;b"], [";"], {"validation.prompts": ["a", "b"]}),
    "num_validation_videos": (SAMPLES, ["3"], {"validation.samples_per_prompt": 3}),
    "validation_epochs": (SAMPLES, ["7"], "every 7 epochs cannot be counted"),
    "guidance_scale": ([], ["3"], {"validation.guidance_scale": 3.0}),
    "use_dynamic_cfg": ([], [], {"use_dynamic_cfg": True}),
    "seed": ([], ["7"], {"seed": 7, "validation.seed": 7}),
    "rank": ([], ["16"], {"adapter.rank": 16}),
    "lora_alpha": ([], ["32"], {"adapter.alpha": 32.0}),
    "mixed_precision": ([], ["fp16"], {"mixed_precision": "fp16"}),
    "output_dir": ([], ["o\\p"], {"run_dir": "o/p"}),
    "height": ([], ["240"], {"dataset.height": 240}),
    "width": ([], ["368"], {"dataset.width": 368}),
    "fps": ([], ["16"], {"validation.fps": 16}),
    "max_num_frames": ([], ["17"], {"dataset.num_frames": 17}),
    "skip_frames_start": ([], ["3"], {"dataset.skip_frames_start": 3}),
    "skip_frames_end": ([], ["4"], {"dataset.skip_frames_end": 4}),
    "random_flip": ([], [], "--random_flip (upstream never flips"),
    "train_batch_size": ([], ["2"], {"dataset.batch_size": 2}),
    "num_train_epochs": ([], ["3"], "--num_train_epochs (--max_train_steps decides"),
    "max_train_steps": ([], ["77"], {"max_train_steps": 77}),
    "checkpointing_steps": ([], ["77"], {"checkpoint.every_steps": 77}),
    "checkpoints_total_limit": ([], ["2"], {"checkpoint.keep_last": 2}),
    "resume_from_checkpoint": ([], ["latest"], "--resume."),
    "gradient_accumulation_steps": ([], ["4"], {"optimizer.gradient_accumulation_steps": 4}),
    "gradient_checkpointing": ([], [], {"memory.gradient_checkpointing": "full"}),
    "learning_rate": ([], ["1e-3"], {"optimizer.learning_rate": 1e-3}),
    "scale_lr": (["--train_batch_size", "2"], [], {"optimizer.learning_rate": 2e-4}),
    "lr_scheduler": ([], ["cosine"], {"optimizer.lr_scheduler": "cosine", "optimizer.lr_warmup_steps": 500}),
    "lr_warmup_steps": (COSINE, ["20"], {"optimizer.lr_warmup_steps": 20}),
    "lr_num_cycles": ([], ["3"], {"optimizer.lr_num_cycles": 3}),
    "lr_power": ([], ["2"], {"optimizer.lr_power": 2.0}),
    "enable_slicing": ([], [], {"memory.vae_slicing": True}),
    "enable_tiling": ([], [], {"memory.vae_tiling": True}),
    "optimizer": ([], ["AdamW"], {"optimizer.name": "adamw"}),
    "use_8bit_adam": ([], [], {"optimizer.name": "adam8bit"}),
    "adam_beta1": ([], ["0.8"], {"optimizer.beta1": 0.8}),
    "adam_beta2": ([], ["0.99"], {"optimizer.beta2": 0.99}),
    "adam_weight_decay": ([], ["0.1"], {"optimizer.weight_decay": 0.1}),
    "adam_epsilon": ([], ["1e-6"], {"optimizer.epsilon": 1e-6}),
    "max_grad_norm": ([], ["0.5"], {"optimizer.max_grad_norm": 0.5}),
    "prodigy_beta3": (PRODIGY, ["0.9"], {"optimizer.prodigy_beta3": 0.9}),
    "prodigy_decouple": (PRODIGY, [], {"optimizer.prodigy_decouple": True}),
    "prodigy_use_bias_correction": (PRODIGY, [], {"optimizer.prodigy_use_bias_correction": True}),
    "prodigy_safeguard_warmup": (PRODIGY, [], {"optimizer.prodigy_safeguard_warmup": True}),
    "tracker_name": ([], ["mine"], "--tracker_name ("),
    "push_to_hub": ([], [], "--push_to_hub (nothing is uploaded)"),
    "hub_token": ([], ["secret"], "--hub_token (nothing is uploaded)"),
    "hub_model_id": ([], ["a/b"], "--hub_model_id (nothing is uploaded)"),
    "logging_dir": ([], ["l"], "--logging_dir ("),
    "allow_tf32": ([], [], "--allow_tf32 ("),
    "report_to": ([], ["tensorboard"], {"tracking.tracker": "tensorboard"}),
}
HUB = ["--dataset_name", "a/b"]
DATA = {
    "dataset_name": ([], ["a/b"], {"dataset.format": "hub", "dataset.path": "a/b", "dataset.video_folder": "data"}),
    "dataset_config_name": (HUB, ["part"], {"dataset.hub_config": "part"}),
    "instance_data_root": ([], ["d\\e"], {"dataset.path": "d/e"}),
}
TEXT_ENCODER = {
    "train_text_encoder": ([], [], "--train_text_encoder (the text encoder is not trained"),
    "text_encoder_lr": ([], ["1e-5"], "--text_encoder_lr (the text encoder is not trained"),
    "adam_weight_decay_text_encoder": ([], ["0"], "--adam_weight_decay_text_encoder (the text encoder is not"),
}
IMAGES = {
    "noised_image_dropout": ([], ["0.1"], {"image_noise_dropout": 0.1}),
    "validation_images": (SAMPLES, ["x.png:::y.png"], {"validation.images": ["x.png", "y.png"]}),
}
FACTORY_OWN = {
    "data_root": ([], ["d\\e"], {"dataset.path": "d/e"}),
    "dataset_file": ([], ["t.csv"], {"dataset.path": "t.csv", "dataset.video_folder": "data"}),
    "height_buckets": ([], ["240"], {"dataset.height": 240}),
    "width_buckets": ([], ["368"], {"dataset.width": 368}),
    "frame_buckets": ([], ["25"], {"dataset.num_frames": 25}),
    "load_tensors": ([], [], "--load_tensors ("),
    "random_flip": ([], ["0.3"], {"dataset.flip": True}),
    "pin_memory": ([], [], "--pin_memory ("),
    "video_reshape_mode": ([], ["center"], {"dataset.fit": "crop"}),
    "enable_model_cpu_offload": ([], [], "--enable_model_cpu_offload ("),
    "use_8bit": ([], [], {"optimizer.name": "adam8bit"}),
    "use_4bit": ([], [], {"optimizer.name": "adam8bit"}),
    "use_torchao": ([], [], "--use_torchao ("),
    "use_cpu_offload_optimizer": ([], [], {"memory.offload_optimizer": True}),
    "offload_gradients": ([], [], "--offload_gradients ("),
    "beta1": ([], ["0.8"], {"optimizer.beta1": 0.8}),
    "beta2": ([], ["0.99"], {"optimizer.beta2": 0.99}),
    "beta3": (PRODIGY, ["0.9"], {"optimizer.prodigy_beta3": 0.9}),
    "weight_decay": ([], ["0.1"], {"optimizer.weight_decay": 0.1}),
    "epsilon": ([], ["1e-6"], {"optimizer.epsilon": 1e-6}),
    "validation_epochs": (SAMPLES, ["7"], "every 7 epochs cannot be counted"),
    "validation_steps": (SAMPLES, ["70"], {"validation.every_steps": 70}),
    "nccl_timeout": ([], ["1800"], "--nccl_timeout ("),
    "height": (SAMPLES, ["240"], {"validation.height": 240}),
    "width": (SAMPLES, ["368"], {"validation.width": 368}),
    "max_num_frames": ([], ["17"], "--max_num_frames (--frame_buckets has one length"),
    "skip_frames_start": ([], ["3"], "--skip_frames_start (upstream ignores it"),
    "skip_frames_end": ([], ["4"], "--skip_frames_end (upstream ignores it"),
}
OF_IMAGES = ("noised_image_dropout", "validation_images", "ignore_learned_positional_embeddings")
NOT_OF_TEXT = {name: ([], ["x"] if name == "validation_images" else ["0.2"], f"{name}") for name in OF_IMAGES[:2]}
NOT_OF_TEXT["ignore_learned_positional_embeddings"] = ([], [], "(it is for image to video)")
FACTORY_PROBES = {name: probe for name, probe in (COMMON | FACTORY_OWN).items() if name in PUBLISHED_FLAGS["factory"]}
FACTORY_BASE = ["--data_root", "data", "--height_buckets", "480", "--width_buckets", "720", *BASE]
CURRENT_BASE = [
    "--model_path", "base", "--model_name", "cogvideox-t2v", "--model_type", "t2v", "--training_type", "lora",
    "--output_dir", "out", "--report_to", "none", "--data_root", "data", "--caption_column", "c.txt",
    "--video_column", "v.txt", "--train_resolution", "49x480x720", "--train_steps", "2000",
]  # fmt: skip
DRAWS = ["--do_validation", "true", "--validation_steps", "200", "--validation_dir", "val", "--validation_prompts", "p"]
CURRENT_PROBES = {
    "model_path": ([], ["other\\base"], {"base_model": "other/base"}),
    "model_name": ([], ["cogvideox1.5-t2v"], "is said always"),
    "model_type": ([], ["i2v"], {"image_noise_dropout": 0.0}),
    "training_type": ([], ["sft"], {"method": "full"}),
    "output_dir": ([], ["o"], {"run_dir": "o"}),
    "report_to": ([], ["all"], {"tracking.tracker": "tensorboard"}),
    "data_root": ([], ["d"], {"dataset.path": "d"}),
    "caption_column": ([], ["d.txt"], {"dataset.caption_list": "d.txt"}),
    "video_column": ([], ["w.txt"], {"dataset.video_list": "w.txt"}),
    "train_resolution": (
        [],
        ["17x240x368"],
        {"dataset.num_frames": 17, "dataset.height": 240, "dataset.width": 368},
    ),
    "seed": ([], ["7"], {"seed": 7, "validation.seed": 7}),
    "train_epochs": ([], ["3"], "--train_epochs (--train_steps decides"),
    "train_steps": ([], ["77"], {"max_train_steps": 77}),
    "gradient_accumulation_steps": ([], ["4"], {"optimizer.gradient_accumulation_steps": 4}),
    "batch_size": ([], ["2"], {"dataset.batch_size": 2}),
    "learning_rate": ([], ["1e-3"], {"optimizer.learning_rate": 1e-3}),
    "optimizer": ([], ["adam"], {"optimizer.name": "adam"}),
    "beta1": ([], ["0.8"], {"optimizer.beta1": 0.8}),
    "beta2": ([], ["0.99"], {"optimizer.beta2": 0.99}),
    "beta3": (PRODIGY, ["0.9"], {"optimizer.prodigy_beta3": 0.9}),
    "epsilon": ([], ["1e-6"], {"optimizer.epsilon": 1e-6}),
    "weight_decay": ([], ["0.1"], {"optimizer.weight_decay": 0.1}),
    "max_grad_norm": ([], ["0.5"], {"optimizer.max_grad_norm": 0.5}),
    "lr_scheduler": ([], ["cosine"], {"optimizer.lr_scheduler": "cosine"}),
    "lr_warmup_steps": ([], ["20"], {"optimizer.lr_warmup_steps": 20}),
    "lr_num_cycles": ([], ["3"], {"optimizer.lr_num_cycles": 3}),
    "lr_power": ([], ["2"], {"optimizer.lr_power": 2.0}),
    "num_workers": ([], ["4"], "--num_workers ("),
    "pin_memory": ([], ["False"], "--pin_memory: false, as it is written"),
    "image_column": ([], ["images.txt"], "--image_column (the image of a clip is its first frame)"),
    "mixed_precision": ([], ["bf16"], {"mixed_precision": "bf16"}),
    "gradient_checkpointing": ([], ["False"], {"memory.gradient_checkpointing": "none"}),
    "enable_slicing": ([], ["False"], {"memory.vae_slicing": False}),
    "enable_tiling": ([], ["False"], {"memory.vae_tiling": False}),
    "nccl_timeout": ([], ["60"], "--nccl_timeout ("),
    "rank": ([], ["64"], {"adapter.rank": 64}),
    "lora_alpha": ([], ["128"], {"adapter.alpha": 128.0}),
    "target_modules": ([], ["to_q", "to_v"], {"adapter.target_modules": ["to_q", "to_v"]}),
    "checkpointing_steps": ([], ["100"], {"checkpoint.every_steps": 100}),
    "checkpointing_limit": ([], ["3"], {"checkpoint.keep_last": 3}),
    "resume_from_checkpoint": ([], ["out/checkpoint-5"], "--resume."),
    "do_validation": (DRAWS[2:], ["true"], {"validation.every_steps": 200}),
    "validation_steps": (DRAWS, ["400"], {"validation.every_steps": 400}),
    "validation_dir": (DRAWS, ["other"], "other/p is not here"),
    "validation_prompts": (DRAWS, ["q"], "val/q is not here"),
    "validation_images": (DRAWS, ["images.txt"], "--validation_images (it is for image to video)"),
    "validation_videos": ([], ["videos.txt"], "--validation_videos ("),
    "gen_fps": ([], ["16"], {"validation.fps": 16}),
}
IN_FACTORY = ["--instance_data_root", "data"]
PROBES = {
    compat_diffusers.TEXT: (
        IN_FACTORY + BASE,
        COMMON | DATA | TEXT_ENCODER | {"video_reshape_mode": ([], ["center"], {"dataset.fit": "crop"})},
    ),
    compat_diffusers.IMAGE: (
        IN_FACTORY + BASE,
        COMMON
        | DATA
        | IMAGES
        | {
            "video_reshape_mode": ([], ["center"], {"dataset.fit": "crop"}),
            "nccl_timeout": ([], ["1800"], "--nccl_timeout ("),
        },
    ),
    "cogvideox_text_to_video_lora.py": (FACTORY_BASE, FACTORY_PROBES | NOT_OF_TEXT),
    "cogvideox_image_to_video_sft.py": (
        FACTORY_BASE,
        FACTORY_PROBES
        | IMAGES
        | {
            "ignore_learned_positional_embeddings": ([], [], {"learned_positions": False}),
            "rank": ([], ["16"], "--rank (every weight is trained)"),
            "lora_alpha": ([], ["16"], "--lora_alpha (every weight is trained)"),
        },
    ),
    compat_trainer.SCRIPT: (CURRENT_BASE, CURRENT_PROBES),
}


@pytest.mark.parametrize("script", PROBES)
def test_every_flag_is_probed(script):
    assert set(PROBES[script][1]) == set(table_of(script))


@pytest.mark.parametrize(
    ("script", "name"), [(script, name) for script, (_, probes) in PROBES.items() for name in probes]
)
def test_a_flag_has_its_effect(script, name):
    base, probes = PROBES[script]
    around, values, wanted = probes[name]
    if wanted == "is said always":  # a flag that must be given
        assert any(f"--{name} (" in note for note in of(script, base).notes)
        return
    before = of(script, [*base, *around])
    check_probe(before, of(script, [*base, *around, f"--{name}", *values]), name, wanted)


@pytest.mark.parametrize("script", compat_factory.DIALECTS)
def test_the_factorys_four_scripts(script):
    found = of(script, FACTORY_BASE)
    assert found.settings["method"] == ("full" if script.endswith("sft.py") else "lora")
    assert ("image_noise" in found.settings) == ("image_to" in script)
    assert found.run_dir == "cogvideox-sft"


@pytest.mark.parametrize(
    ("script", "base", "expected"),
    [
        (
            compat_diffusers.TEXT,
            IN_FACTORY + BASE,
            {
                "adapter.rank": 128,
                "adapter.alpha": 128.0,
                "optimizer.name": "adam",
                "optimizer.learning_rate": 1e-4,
                "optimizer.lr_scheduler": "constant",
                "optimizer.lr_warmup_steps": 0,
                "optimizer.beta2": 0.95,
                "optimizer.prodigy_decouple": False,
                "dataset.batch_size": 4,
                "dataset.num_frames": 49,
                "mixed_precision": "no",
                "seed": 42,
                "memory.vae_tiling": False,
                "validation.every_steps": None,
                "checkpoint.every_steps": 500,
            },
        ),
        (compat_diffusers.IMAGE, IN_FACTORY + BASE, {"image_noise_dropout": 0.05, "dataset.fit": "stretch"}),
        (
            "cogvideox_text_to_video_lora.py",
            ["--data_root", "data", *BASE],
            {"adapter.rank": 64, "adapter.alpha": 64.0, "dataset.fit": "buckets", "dataset.batch_size": 4},
        ),
        (
            compat_trainer.SCRIPT,
            CURRENT_BASE,
            {
                "adapter.rank": 128,
                "adapter.alpha": 64.0,
                "optimizer.name": "adamw",
                "optimizer.learning_rate": 2e-5,
                "optimizer.lr_warmup_steps": 100,
                "mixed_precision": "no",
                "checkpoint.keep_last": 10,
                "validation.fps": 15,
            },
        ),
    ],
)
def test_a_flag_that_is_left_out_has_upstreams_default(script, base, expected):
    settings = flat(of(script, base).settings)
    assert {key: settings[key] for key in expected} == expected


# --- what differs -----------------------------------------------------------------------------------------------------

FIRST_BASE = IN_FACTORY + BASE


@pytest.mark.parametrize(
    ("words", "says", "settings"),
    [
        (["--lr_warmup_steps", "9"], "--lr_warmup_steps (constant has no warm-up", {"optimizer.lr_warmup_steps": 0}),
        (
            [*COSINE, "--max_train_steps", "20"],
            "--lr_warmup_steps 500 is more than the whole run",
            {"optimizer.lr_warmup_steps": 20},
        ),
        (
            ["--scale_lr", "--gradient_accumulation_steps", "4", "--train_batch_size", "2"],
            "the learning rate is 0.0001 x 8 (accumulation 4 x batch 2 x processes 1)",
            {"optimizer.learning_rate": 8e-4},
        ),
        (["--prodigy_decouple"], "--prodigy_decouple (it is for prodigy alone)", {"optimizer.name": "adam"}),
        ([*PRODIGY, "--use_8bit_adam"], "--use_8bit_adam (prodigy has no 8-bit", {"optimizer.name": "prodigy"}),
        (["--optimizer", "Prodigy"], "0.0001 is low for prodigy", {"optimizer.name": "prodigy"}),
        (["--optimizer", "AdamW", "--use_8bit_adam"], "", {"optimizer.name": "adamw8bit"}),
        (["--id_token", "DISNEY"], "a space stands between DISNEY and the caption", {"dataset.id_token": "DISNEY"}),
        (["--id_token", "DISNEY "], "", {"dataset.id_token": "DISNEY"}),
        ([*SAMPLES, "--num_validation_videos", "0"], "No samples are drawn", {"validation.prompts": []}),
        (
            ["--validation_epochs", "3"],
            "--validation_epochs (--validation_prompt is not given)",
            {"validation.every_steps": None},
        ),
        (["--validation_prompt", "a:::b:::a"], "", {"validation.prompts": ["a", "b"]}),
        (["--guidance_scale", "0"], "", {"validation.guidance_scale": 1.0}),
        (["--report_to", "wandb"], "--report_to (nothing is sent to wandb", {"tracking.tracker": "none"}),
        (["--video_reshape_mode", "random"], "cut in the middle", {"dataset.fit": "crop"}),
        ([], "seed is 42", {"seed": 42}),
        ([], "mixed_precision is no", {"mixed_precision": "no"}),
        ([], "diffusers' script of this name crops them", {"dataset.fit": "stretch"}),
        ([], "2B was measured at 44 GB", {"memory.gradient_checkpointing": "none"}),
        (["--dataset_config_name", "x"], "--dataset_config_name (there is no --dataset_name)", {}),
    ],
)
def test_what_differs_is_said_once(words, says, settings):
    found = of(compat_diffusers.TEXT, [*FIRST_BASE, *words])
    if says:
        assert sum(says in note for note in found.notes) == 1, found.notes
    assert {key: flat(found.settings)[key] for key in settings} == settings


def test_what_goes_without_saying_is_not_said():
    words = ["--seed", "1", "--mixed_precision", "bf16", "--gradient_checkpointing", "--id_token", "DISNEY "]
    found = of(compat_diffusers.TEXT, [*FIRST_BASE, *words])
    assert len(found.notes) == 1
    assert found.notes[0].startswith("Frames are taken as upstream takes them")


def test_the_lists_have_their_usual_names_where_the_flags_are_left_out():
    words = ["--pretrained_model_name_or_path", "base", "--instance_data_root", "data", *STEPS]
    found = of(compat_diffusers.TEXT, words)
    dataset = found.settings["dataset"]
    assert (dataset["video_list"], dataset["caption_list"]) == ("videos.txt", "prompts.txt")
    assert any(note.startswith("--caption_column is left out") for note in found.notes)
    table = of(compat_diffusers.TEXT, [*words, *HUB]).settings["dataset"]
    assert (table["video_column"], table["caption_column"]) == ("video", "text")


def test_images_belong_to_their_prompts():
    words = [*FIRST_BASE, "--validation_prompt", "a:::a:::a", "--validation_images", "x.png:::y.png:::x.png"]
    validation = of(compat_diffusers.IMAGE, words).settings["validation"]
    assert (validation["prompts"], validation["images"]) == (["a", "a"], ["x.png", "y.png"])
    for images, known in (("x.png", ["x.png"]), ("", [])):
        words = [*FIRST_BASE, *SAMPLES, "--validation_images", images]
        assert of(compat_diffusers.IMAGE, words).settings["validation"]["images"] == known
    assert "2 for 3 prompts" in refused(
        compat_diffusers.IMAGE, [*FIRST_BASE, "--validation_prompt", "a:::b:::c", "--validation_images", "x:::y"]
    )


def test_several_sizes_of_the_factory():
    words = [*FACTORY_BASE, "--height_buckets", "256", "480", "--width_buckets", "256", "720"]
    found = of("cogvideox_text_to_video_lora.py", [*words, "--frame_buckets", "17", "49", "--max_num_frames", "33"])
    dataset = found.settings["dataset"]
    assert (dataset["height"], dataset["width"], dataset["fit"]) == (480, 720, "buckets")
    assert (dataset["num_frames"], dataset["frame_buckets"]) == (17, True)
    assert any("every clip keeps its shape" in note for note in found.notes)
    assert any("not with the next of the lengths" in note for note in found.notes)


def test_small_states_and_main_memory_do_not_go_together():
    for flag in ("--use_8bit", "--use_4bit"):
        found = of("cogvideox_text_to_video_sft.py", [*FACTORY_BASE, flag, "--use_cpu_offload_optimizer"])
        assert found.settings["optimizer"]["name"] == "adam"
        assert found.settings["memory"]["offload_optimizer"]
        assert any(f"{flag} (states in main memory are kept in 32 bits)" in note for note in found.notes)


def test_the_current_trainer_draws_from_files(tmp_path):
    (tmp_path / "prompts.txt").write_text("one\n\ntwo\n", encoding="utf-8")
    (tmp_path / "images.txt").write_text("a.png\n/b.png\n", encoding="utf-8")
    words = [*CURRENT_BASE, "--model_type", "i2v", "--do_validation", "True", "--validation_dir", f"{tmp_path}/"]
    words += ["--validation_steps", "20", "--validation_prompts", "prompts.txt", "--validation_images", "images.txt"]
    found = of(compat_trainer.SCRIPT, words)
    validation = found.settings["validation"]
    assert validation["prompts"] == ["one", "two"]
    assert validation["images"] == [f"{tmp_path}/a.png", "/b.png"]
    assert validation["every_steps"] == 20
    del words[words.index("--validation_steps") : words.index("--validation_steps") + 2]
    assert "--validation_steps: must be set, for --do_validation is true" in refused(compat_trainer.SCRIPT, words)


def test_what_the_current_trainer_does_not_know_is_adamw():
    found = of(compat_trainer.SCRIPT, [*CURRENT_BASE, "--optimizer", "sgd"])
    assert found.settings["optimizer"]["name"] == "adamw"
    assert any("--optimizer sgd is none that upstream knows" in note for note in found.notes)


def test_positions_are_the_pipelines_and_the_difference_is_said():
    words = [*CURRENT_BASE, "--model_path", "THUDM/CogVideoX-5b"]
    assert not any(note.startswith("rotary") for note in of(compat_trainer.SCRIPT, words).notes)
    found = of(compat_trainer.SCRIPT, [*words, "--train_resolution", "49x720x480"])
    assert found.settings["rotary"] == "pipeline"
    assert any(note.startswith("rotary is pipeline: at 480 x 720") for note in found.notes)
    for base in ("THUDM/CogVideoX-2b", "THUDM/CogVideoX1.5-5B"):
        found = of(compat_trainer.SCRIPT, [*words, "--model_path", base, "--train_resolution", "49x720x480"])
        assert not any(note.startswith("rotary") for note in found.notes)


@pytest.mark.parametrize(
    ("script", "words", "says"),
    [
        (
            compat_diffusers.TEXT,
            [*FIRST_BASE, "--rnk", "3"],
            "--rnk: is unknown to train_cogvideox_lora.py; did you mean rank?",
        ),
        (compat_diffusers.TEXT, [*FIRST_BASE, "--rank", "many"], "--rank: is 'many', but must be a number"),
        (compat_diffusers.TEXT, BASE, "--instance_data_root: must be set, or --dataset_name"),
        (compat_diffusers.TEXT, IN_FACTORY, "--pretrained_model_name_or_path: must be set"),
        (
            compat_diffusers.TEXT,
            [*FIRST_BASE, "--optimizer", "sgd"],
            "--optimizer: is 'sgd'; set adamw, adam or prodigy",
        ),
        (compat_diffusers.TEXT, [*FIRST_BASE, "--video_reshape_mode", "top"], "choose center, random or none"),
        (compat_diffusers.TEXT, [*FIRST_BASE, "--max_num_frames", "16"], "is 16, but CogVideoX takes 4k + 1 frames"),
        (compat_diffusers.TEXT, [*FIRST_BASE, "--max_num_frames", "16"], "set 13 or 17"),
        (
            compat_diffusers.TEXT,
            [*FIRST_BASE, "--height", "100"],
            "dataset.height: is 100, but must be a multiple of 16",
        ),
        (compat_diffusers.TEXT, [*FIRST_BASE, "--lr_scheduler", "piecewise_constant"], "optimizer.lr_scheduler"),
        (
            compat_diffusers.TEXT,
            [*FIRST_BASE, *SAMPLES, "--validation_prompt_separator="],
            "is empty; write what stands",
        ),
        (
            compat_diffusers.TEXT,
            [*FIRST_BASE, "--pretrained_model_name_or_path", "THUDM/CogVideoX-5b-I2V"],
            "turns an image into a video, but train_cogvideox_lora.py trains text to video",
        ),
        (
            compat_diffusers.IMAGE,
            [*FIRST_BASE, "--pretrained_model_name_or_path", "THUDM/CogVideoX-2b"],
            "makes videos from text alone, but train_cogvideox_image_to_video_lora.py trains image to video",
        ),
        ("cogvideox_text_to_video_lora.py", BASE, "--data_root: must be set"),
        ("cogvideox_text_to_video_lora.py", [*FACTORY_BASE, "--optimizer", "came"], "came is not part of Dailies"),
        ("cogvideox_text_to_video_lora.py", [*FACTORY_BASE, "--frame_buckets", "16"], "set 13 or 17"),
        ("cogvideox_text_to_video_lora.py", [*FACTORY_BASE, "--height_buckets", "tall"], "write whole numbers"),
        (compat_trainer.SCRIPT, [*CURRENT_BASE, "--train_resolution", "49x480"], "write frames x height x width"),
        (
            compat_trainer.SCRIPT,
            [*CURRENT_BASE, "--training_type", "full"],
            "--training_type: is 'full'; choose lora or sft",
        ),
        (compat_trainer.SCRIPT, [*CURRENT_BASE, "--id_token", "X"], "--id_token: is unknown to CogVideo's train.py"),
    ],
)
def test_what_could_not_be_trained_is_refused(script, words, says):
    assert says in refused(script, words)


# --- counting and the launch ------------------------------------------------------------------------------------------


@pytest.fixture
def disney(tmp_path, tiny_dataset):
    """A folder with videos.txt and prompt.txt, named as a published dataset has it: seven lines for three videos."""
    names = sorted(file.as_posix() for file in (tiny_dataset / "clips").iterdir())
    videos = [names[number % len(names)] for number in range(7)]
    (tmp_path / "videos.txt").write_text("\n".join(videos) + "\n\n", encoding="utf-8")
    (tmp_path / "prompt.txt").write_text("\n\n".join(f"caption {n}" for n in range(7)), encoding="utf-8")
    return tmp_path


def counted(disney, *words, launcher=""):
    text = f"{launcher} train_cogvideox_lora.py --pretrained_model_name_or_path base --instance_data_root {disney} "
    text += "--video_column videos.txt --caption_column prompts.txt --num_train_epochs 10 --validation_epochs 2 "
    found = translated(text + f"--validation_prompt a {' '.join(words)}")
    return found, found.settings["max_train_steps"], found.settings["validation"]["every_steps"]


def test_epochs_are_counted_as_upstream_counts_them(disney):
    found, total, every = counted(disney)
    assert (total, every) == (20, 4), "2 batches of 4 an epoch"
    assert "max_train_steps is 20: 10 epochs of 7 clips (batch 4, accumulation 1, processes 1)." in found.notes
    assert "Samples are drawn every 4 steps, which is every 2 epochs." in found.notes
    assert counted(disney, "--train_batch_size 1")[1:] == (70, 14)
    assert counted(disney, "--train_batch_size 1 --gradient_accumulation_steps 3")[1:] == (30, 6)
    assert counted(disney, "--train_batch_size 1 --gradient_accumulation_steps 100")[1:] == (10, 2)
    assert counted(disney, "--max_train_steps 9")[1:] == (9, 4)
    launcher = "accelerate launch --num_processes 2"
    found, total, every = counted(disney, "--train_batch_size 1", launcher=launcher)
    assert (total, every) == (40, 8), "4 steps an epoch for each of two processes"
    assert any("Start as many here (accelerate launch --num_processes 2 -m trainers.train" in n for n in found.notes)


def test_what_cannot_be_counted_is_left_to_the_person(tmp_path):
    found, total, every = counted(tmp_path)
    assert (total, every) == (1000, 500)
    assert any(f"for the clips of {tmp_path} cannot be counted here" in note for note in found.notes)
    assert any("set validation.every_steps" in note for note in found.notes)


def test_a_table_is_counted_as_well(tmp_path, tiny_dataset):
    rows = "".join(f"{file},a clip\n" for file in sorted((tiny_dataset / "clips").iterdir()))
    (tmp_path / "all.csv").write_text("video,text\n" + rows, encoding="utf-8")
    words = ["--data_root", str(tmp_path), "--dataset_file", str(tmp_path / "all.csv"), "--num_train_epochs", "4"]
    words += ["--pretrained_model_name_or_path", "base", "--train_batch_size", "1"]
    found = of("cogvideox_text_to_video_lora.py", words)
    assert found.settings["max_train_steps"] == 4 * len(rows.splitlines())


def test_accelerates_own_file_is_read_where_it_is(disney):
    file = disney / "accelerate.yaml"
    text = "distributed_type: DEEPSPEED\ndeepspeed_config: {zero_stage: 2}\nmixed_precision: 'fp16'\nnum_processes: 8\n"
    file.write_text(text, encoding="utf-8")
    launcher = f"accelerate launch --config_file {file}"
    found, total, _ = counted(disney, "--train_batch_size 1 --scale_lr", launcher=launcher)
    assert (total, found.settings["mixed_precision"]) == (10, "fp16")
    assert found.settings["optimizer"]["learning_rate"] == pytest.approx(8e-4)
    assert any("DeepSpeed is set up for accelerate" in note for note in found.notes)
    found, _, _ = counted(disney, "--mixed_precision bf16", launcher=f"{launcher} --multi_gpu")
    assert found.settings["mixed_precision"] == "bf16"
    assert any(note.startswith("Upstream runs without DeepSpeed") for note in found.notes)
    found, total, _ = counted(disney, "--train_batch_size 1", launcher=f"{launcher} --num_processes 1")
    assert total == 70
    assert not any("processes. Start" in note for note in found.notes)
    file.write_text("mixed_precision: no\n", encoding="utf-8")
    found, _, _ = counted(disney, launcher=launcher)
    assert found.settings["mixed_precision"] == "no"
    assert not any(note.startswith("mixed_precision") for note in found.notes)


# --- presets and examples ---------------------------------------------------------------------------------------------


def test_presets_make_runs():
    family = FAMILIES["cogvideox"]
    least = {"family": "cogvideox", "method": "lora", "base_model": "THUDM/CogVideoX-2b", "dataset": {"path": "."}}
    cards = set()
    for name, preset in family.presets.items():
        settings = json.loads(json.dumps(least))
        for path, value in preset.items():
            *parents, last = path.split(".")
            here = settings
            for parent in parents:
                here = here.setdefault(parent, {})
            here[last] = value
        config = parse_config(settings)
        card = name.partition(" GB card")[0]
        if card.isdigit():
            cards.add(int(card))
            assert "calculated" in name or "published" in name
            assert config.memory.gradient_checkpointing != "none"
    assert cards == {12, 16, 24, 40, 80}
    presets = family.presets
    assert [p["method"] for n, p in presets.items() if "SFT" in n] == ["full"]
    assert next(p for n, p in presets.items() if "SFT" in n)["optimizer.learning_rate"] == 1e-5
    assert next(p for n, p in presets.items() if "100 clips" in n)["max_train_steps"] == 4000


def test_the_example_of_a_command_is_the_guides():
    """With other paths alone."""
    found, printed = read_file(ROOT / "examples" / "cogvideox" / "from_seed.sh", "train"), read_foreign(PRINTED)
    now, then = flat(found.settings), flat(printed.settings)
    assert {key for key in now if now[key] != then[key]} == {"dataset.path"}
    assert found.run_dir == "runs/cogvideox-lora-single-gpu"


# --- the road ---------------------------------------------------------------------------------------------------------


def test_the_printed_command_trains_draws_saves_and_goes_on(tmp_path, tiny_dataset, monkeypatch):
    """With other paths and sizes alone; samples in fewer steps than the fifty that upstream always takes."""
    from examples import tiny

    monkeypatch.chdir(tmp_path)
    tiny.write("cogvideox", tmp_path / "base")
    names = sorted(file.as_posix() for file in (tiny_dataset / "clips").iterdir())
    Path("disney").mkdir()
    Path("disney/videos.txt").write_text("\n".join(names), encoding="utf-8")
    Path("disney/prompts.txt").write_text("\n".join(f"clip {name}" for name in "abc"), encoding="utf-8")
    text = PRINTED
    for theirs, ours in (
        ("THUDM/CogVideoX-2b", "base"), ("~/disney/", "disney"), ("--height 480", "--height 64"),
        ("--width 720", "--width 64"), ("--max_num_frames 49", "--max_num_frames 5"), ("--rank 128", "--rank 4"),
        ("--num_train_epochs 10", "--num_train_epochs 2"), ("--checkpointing_steps 500", "--checkpointing_steps 3"),
        ("--mixed_precision bf16", "--mixed_precision no"),
    ):  # fmt: skip
        assert text.count(theirs) == 1
        text = text.replace(theirs, ours)
    Path("guide.md").write_text(text, encoding="utf-8")
    words = ["--config", "guide.md", "--set", "validation.num_inference_steps=1"]

    assert trainers.train.main(words) == 0
    run = RunFolder(Path("cogvideox-lora-single-gpu"))
    events, _ = read(run.events)
    assert (events[-1]["type"], events[-1]["status"]) == ("run_finished", "finished")
    assert [checkpoint.step for checkpoint in run.checkpoints()] == [3, 6], "two epochs of three clips"
    drawn = [(event["prompt"], event["seed"]) for event in events if event["type"] == "sample"]
    assert drawn == [("Mickey with the captain and friends", 3407), ("Mickey and the bear", 3407)] * 2
    assert (run.checkpoints()[-1].path / "pytorch_lora_weights.safetensors").is_file()
    said = [event["text"] for event in events if event["type"] == "message"]
    assert any(text.startswith("max_train_steps is 6: 2 epochs of 3 clips") for text in said)

    assert trainers.train.main([*words, "--resume", "--set", "max_train_steps=8"]) == 0
    assert run.checkpoints()[-1].step == 8
