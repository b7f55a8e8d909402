"""The whole road of somebody who comes from another trainer: its text, a run, samples, exports that load elsewhere.

The published texts stand in compat_texts.py; here only paths and sizes are changed, and everything runs.
"""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pytest
import yaml
from compat_texts import TUMURZAKOV
from safetensors.torch import load_file

import trainers.export
import trainers.sample
import trainers.train
from trainers.events import read
from trainers.families.animatediff.checkpoint import read_motion, read_take
from trainers.runs import RunFolder

SWIFT = """
PYTHONPATH=../../.. \\
CUDA_VISIBLE_DEVICES=0 \\
python animatediff_sft.py \\
  --model_id_or_path base \\
  --csv_path train.csv \\
  --video_folder videos \\
  --motion_adapter_id_or_path base/motion_adapter \\
  --sft_type lora \\
  --lr_scheduler_type constant \\
  --trainable_modules .*motion_modules.* \\
  --batch_size 1 \\
  --eval_steps 200 \\
  --dataset_sample_size 10000 \\
  --gradient_accumulation_steps 2 \\
  --sample_size 64 --sample_n_frames 4 --sample_stride 2 --num_train_epochs 2 --num_inference_steps 2
"""
SWIFT_INFERENCE = """
python animatediff_infer.py \\
  --model_id_or_path base \\
  --motion_adapter_id_or_path base/motion_adapter \\
  --sft_type lora \\
  --ckpt_dir {checkpoint} \\
  --eval_human true --num_inference_steps 2 --sample_n_frames 4
"""


@pytest.fixture
def place(tmp_path, tiny_base, tiny_dataset, monkeypatch):
    """The folder of somebody who has trained elsewhere; the doors are opened in it."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_base, tmp_path / "base")
    shutil.copytree(tiny_dataset / "clips", tmp_path / "videos")
    rows = [[f"a clip of {file.stem}", file.name] for file in sorted((tmp_path / "videos").iterdir())]
    with (tmp_path / "train.csv").open("w", newline="", encoding="utf-8") as handle:
        csv.writer(handle).writerows([["name", "contentUrl"], *rows])
    return tmp_path


def finished(run: RunFolder) -> list[dict]:
    events = read(run.events)[0]
    assert events[-1]["type"] == "run_finished" and events[-1]["status"] == "finished"
    return events


def compare_with_base(checkpoint: Path) -> None:
    """Base and checkpoint next to each other, through the door."""
    config = {
        "family": "animatediff",
        "base_model": "base",
        "checkpoints": [str(checkpoint)],
        "prompts": ["a red ball"],
    }
    config |= {"num_frames": 4, "height": 64, "width": 64, "num_inference_steps": 2}
    Path("compare.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    assert trainers.sample.main(["--config", "compare.yaml", "--run-dir", "compared"]) == 0
    drawn = [event for event in finished(RunFolder(Path("compared"))) if event["type"] == "sample"]
    assert [event["take"] for event in drawn] == ["base", str(checkpoint)]


def test_the_yaml_of_tumurzakovs_trainer(place, capsys):
    """Published by a person who trained with it; the clips become those of the tests, 768 x 512 x 24 becomes small."""
    config = yaml.safe_load(TUMURZAKOV)
    names = sorted(file.name for file in (place / "videos").iterdir())
    config |= {"pretrained_model_path": "base", "motion_module": "base\\motion_adapter", "output_dir": "out\\mine"}
    config |= {"max_train_steps": 4, "checkpointing_steps": 2, "lr_warmup_steps": 1}
    config["train_data"] |= {"video_path": [f"videos\\{name}" for name in names], "n_sample_frames": 4}
    config["validation_data"] |= {"video_length": 4, "num_inference_steps": 3, "num_inv_steps": 3}
    for part in ("train_data", "validation_data"):
        config[part] |= {"width": 64, "height": 64}
    Path("their.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")

    assert trainers.train.main(["--config", "their.yaml"]) == 0, capsys.readouterr()
    run = RunFolder(Path("out/mine"))
    events = finished(run)
    assert [checkpoint.step for checkpoint in run.checkpoints()] == [2, 4]
    assert [event["prompt"] for event in events if event["type"] == "sample"] == ["validation"] * 2  # first and last
    last = run.checkpoints()[-1].path
    compare_with_base(last)

    before, _ = read_motion(place / "base" / "motion_adapter")
    for format, out in (("original", "mm.safetensors"), ("original", "mm.ckpt"), ("diffusers", "adapter")):
        assert trainers.export.main([str(last), "--format", format, "--out", out]) == 0
        after, _ = read_motion(Path(out))
        assert after.keys() == before.keys()
        assert {key for key in after if after[key].equal(before[key])} == {k for k in after if k.endswith(".pe")}
        keys = len(load_file(out)) if out.endswith(".safetensors") else len(after) if format == "diffusers" else 0
        assert f"{keys or ''} keys matched" in capsys.readouterr().out

    # The file continues where it ended, as upstream's people continue: as motion module, with the steps behind it.
    config |= {"motion_module": "mm.ckpt", "start_global_step": 4, "max_train_steps": 6, "output_dir": "out/more"}
    Path("more.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    assert trainers.train.main(["--config", "more.yaml"]) == 0, capsys.readouterr()
    assert [e["step"] for e in finished(RunFolder(Path("out/more"))) if e["type"] == "checkpoint"] == [6]


def test_the_commands_of_swift(place, capsys):
    Path("sft.sh").write_text(SWIFT, encoding="utf-8")
    assert trainers.train.main(["--config", "sft.sh"]) == 0, capsys.readouterr()
    (folder,) = Path("output").iterdir()
    run = RunFolder(folder)
    finished(run)
    kept = yaml.safe_load(run.config.read_text(encoding="utf-8"))
    assert (kept["adapter"]["rank"], kept["adapter"]["alpha"], kept["max_train_steps"]) == (8, 32.0, 3)
    last = run.checkpoints()[-1].path
    take = read_take(last)
    assert {layer.alpha / layer.rank for layer in take.lora.values()} == {4.0}
    assert any(path.endswith("proj_in") for path in take.lora) and any(path.endswith("ff.net.2") for path in take.lora)

    Path("infer.sh").write_text(SWIFT_INFERENCE.format(checkpoint=last), encoding="utf-8")
    words = ["--config", "infer.sh", "--set", "prompts=[a red ball]", "--set", "height=64", "--set", "width=64"]
    assert trainers.sample.main([*words, "--run-dir", "drawn"]) == 0, capsys.readouterr()
    finished(RunFolder(Path("drawn")))

    assert trainers.export.main([str(last), "--format", "motion-lora", "--out", "lora.safetensors"]) == 0
    again = read_take(Path("lora.safetensors"))
    assert again.lora.keys() == take.lora.keys()
    assert f"{len(load_file('lora.safetensors'))} keys" in capsys.readouterr().out
    assert trainers.export.main([str(last), "--format", "original", "--out", "merged.safetensors"]) == 0
    assert (
        read_motion(Path("merged.safetensors"))[1].positions == read_motion(place / "base/motion_adapter")[1].positions
    )
