"""The YAML of tumurzakov/AnimateDiff becomes the same run here: every key is mapped or spoken of."""

from __future__ import annotations

import json
import re
import shutil

import pytest
from compat_texts import TUMURZAKOV, check_probe, flat, refused, translated, with_keys

from trainers.families import parse_config
from trainers.families.animatediff import compat_parts, compat_tumurzakov
from trainers.families.animatediff.compat import read_foreign
from trainers.families.animatediff.names import diffusers_name
from trainers.settings import ConfigError


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


# --- every key --------------------------------------------------------------------------------------------------------


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


# --- which parts are trained ------------------------------------------------------------------------------------------


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


# --- train_with_lora and the other datasets ---------------------------------------------------------------------------


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
