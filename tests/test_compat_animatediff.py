"""Texts of AnimateDiff's other trainers, in whatever dress they come, and the doors that take them."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from compat_texts import SWIFT_FULL, SWIFT_INFER, SWIFT_LORA, SWIFT_WORDS, TUMURZAKOV, refused, with_keys

import trainers.sample
import trainers.train
from studio.run_form import form_of, read_config
from studio.workspace import Workspace
from trainers.events import read
from trainers.families import get_family, parse_config
from trainers.families.animatediff import compat_swift
from trainers.families.animatediff.compat import read_foreign
from trainers.runs import RunFolder
from trainers.settings import ConfigError, apply_overrides

ROOT = Path(__file__).resolve().parent.parent
FAMILY = get_family("animatediff")


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


def test_commands_of_swift_start_at_their_own_doors(place, webvid_table, capsys):
    file, folder = webvid_table
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

    done = opened("swift", *SWIFT_WORDS)
    assert (done.returncode, done.stderr) == (0, "")
    assert parse_config(yaml.safe_load(done.stdout)) == parse_config(compat_swift.from_arguments(SWIFT_WORDS).settings)
    done = opened("-", text=SWIFT_INFER)
    assert (done.returncode, done.stderr) == (0, "")
    assert "# prompts must be given, for eval_human asks" in done.stdout
    assert yaml.safe_load(done.stdout)["prompts"] == []
    done = opened(str(place / "none.yaml"))
    assert (done.returncode, done.stdout) == (2, "")
    done = opened("swift", *SWIFT_WORDS, "--lora_rnk", "1")
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
    for text in (TUMURZAKOV, SWIFT_LORA, SWIFT_FULL):
        settings = read_config(text)[1]
        form = form_of(FAMILY, Workspace(tmp_path))
        shown = form.check(form.shown(settings))[0]
        cached = parse_config({**settings, "dataset": {**settings["dataset"], "cache_dir": str(tmp_path / "cache")}})
        assert shown == cached, "the form holds all of it"
    _, settings, said = read_config(with_keys(TUMURZAKOV, validation_data__width=512))
    assert said[0][0] == "error"
    assert "num_inversion_steps" in said[0][1]
    assert settings["validation"]["width"] == 512
    assert apply_overrides(settings, ["validation.width=768"])
