"""Clips as Genmo prepares them: which frames, cut how; and folders that a preparation has encoded already."""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
import zipfile
from pathlib import Path

import films
import pytest
import torch

from examples import tiny
from trainers.config import DatasetConfig
from trainers.data.clips import Clip, DatasetError
from trainers.data.formats import open_dataset
from trainers.data.frames import choose_frames, needed_frames
from trainers.data.ledger import LedgerRow, ledger, nothing_to_train
from trainers.data.samples import Sample, middle, window
from trainers.data.video import read_frames
from trainers.events import read
from trainers.families import get_family, parse_config
from trainers.families.base import ModelError
from trainers.families.mochi.prepared import Shape, _shapes_of, prepared
from trainers.families.mochi.prepared_tensors import read_prepared
from trainers.precompute import Encoded
from trainers.runs import RunFolder
from trainers.settings import ConfigError
from trainers.train import main

REFERENCE = json.loads((Path(__file__).parent / "data" / "mochi" / "preprocess.json").read_text())
FAMILY = get_family("mochi")
WIDTH = 32  # of the tiny model's text


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A tiny base in which nothing can encode: neither the VAE's weights nor a text encoder or its tokenizer."""
    folder = tmp_path_factory.mktemp("tiny") / "mochi"
    tiny.write("mochi", folder)
    for file in [*(folder / "vae").glob("*.safetensors"), *folder.glob("text_encoder/*"), *folder.glob("tokenizer/*")]:
        file.write_bytes(b"")
    return folder


@pytest.fixture(scope="module")
def film(tmp_path_factory) -> Path:
    """9 frames at 30 fps, 64 x 32."""
    return films.plain(tmp_path_factory.mktemp("source") / "film.mp4", count=9, fps=30, height=32, width=64)


def config_of(path: Path, base: Path | str = "base", **dataset):
    section = {"path": str(path), "format": "prepared", **dataset}
    return parse_config({"family": "mochi", "base_model": str(base), "mixed_precision": "no", "dataset": section})


def rows_of(path: Path, **dataset) -> list[LedgerRow]:
    config = config_of(path, **dataset)
    return ledger(open_dataset(config.dataset), config, FAMILY)


def latents(seed: int = 0, frames: int = 2, height: int = 4, width: int = 8) -> dict[str, torch.Tensor]:
    """As Genmo's encode_videos.py stores them: two halves of one tensor."""
    both = torch.randn(1, 24, frames, height, width, generator=torch.Generator().manual_seed(seed))
    mean, logvar = both.chunk(2, dim=1)
    return {"mean": mean, "logvar": logvar}


def embeds(seed: int = 0, tokens: int = 5) -> dict[str, list[torch.Tensor]]:
    """As Genmo's embed_captions.py stores them."""
    features = torch.randn(1, 256, WIDTH, generator=torch.Generator().manual_seed(seed))
    mask = torch.arange(256)[None] < tokens
    return {"y_mask": [mask], "y_feat": [features]}


def as_factory(found_latents: dict, found_embeds: dict) -> tuple[dict, dict]:
    """The same as cogvideox-factory's embed.py stores it."""
    text = {"prompt_embeds": found_embeds["y_feat"][0], "prompt_attention_mask": found_embeds["y_mask"][0]}
    return {"ldist": torch.cat([found_latents["mean"], found_latents["logvar"]], 1)}, text


@pytest.fixture
def place(tmp_path, film):
    """Put prepared clips into a folder; gives the folder."""

    def put(*names: str, factory: bool = False, **shape) -> Path:
        folder = tmp_path / "prepared"
        for number, name in enumerate(names):
            video = folder / f"{name}.mp4"
            video.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(film, video)
            video.with_suffix(".txt").write_text(f"a caption of {name}\n")
            both = latents(number, **shape), embeds(number)
            latent, embed = as_factory(*both) if factory else both
            torch.save(latent, video.with_suffix(".latent.pt"))
            torch.save(embed, video.with_suffix(".embed.pt"))
        return folder

    return put


# --- as Genmo prepares clips -----------------------------------------------------------------------------------------


def genmo(**values) -> DatasetConfig:
    return config_of(Path("x"), **values).dataset


@pytest.mark.parametrize("case", REFERENCE["frame_index"], ids=lambda case: f"{case['src_fps']:g}")
def test_frames_are_those_of_genmos_preparation(case):
    config = genmo(num_frames=len(case["indices"]))
    assert (config.fps, config.fps_rounding, config.frame_selection) == (case["out_fps"], "earlier", "first")
    assert choose_frames(500, case["src_fps"], config, config.num_frames, random.Random(0)) == [case["indices"]]
    assert needed_frames(config, case["src_fps"], config.num_frames) == case["indices"][-1] + 1


@pytest.mark.parametrize(
    ("name", "rate"),
    [("f15", 15), ("f24", 24), ("f25", 25), ("f2997", 30000 / 1001), ("f30", 30), ("f60", 60), ("exact27", 30)],
)
def test_frames_are_those_that_its_script_wrote(name, rate):
    expected = REFERENCE["frame_index_measured_with_reference_script"][f"{name}.mp4"]
    config = genmo(num_frames=25)
    assert choose_frames(500, rate, config, 27, random.Random(0)) == [expected]


@pytest.mark.parametrize("case", REFERENCE["crops"], ids=lambda case: "x".join(map(str, case["src"])))
def test_pieces_are_those_of_genmos_preparation(case):
    """Cut exactly, or left out because nothing is enlarged."""
    (width, height), (target_width, target_height) = case["src"], case["target"]
    clip = Clip("a.mp4", "x", 60, 30, width, height, 2, "sha")
    config = genmo(height=target_height, width=target_width)
    (row,) = ledger(_Listed(clip), _with(config), FAMILY)
    assert (row.status == "dropped") == case["skipped"]
    if case["skipped"]:
        assert row.reason == (
            f"a.mp4 has {width} x {height} pixels; at least {target_width} x {target_height} are needed while "
            "dataset.upscale is off - turn it on, choose a smaller size, or remove the clip"
        )
        return
    found = middle(height, width, target_height, target_width)
    assert found == (case["y1"], case["x1"], case["h"], case["w"])
    sample = Sample(clip, Path("a.mp4"), (0,), target_height, target_width, stretch=False, flip=False, cut=True)
    box = case["x1"], case["y1"], case["x1"] + case["w"], case["y1"] + case["h"]
    assert window(sample, height, width) == box


@pytest.mark.parametrize("case", REFERENCE["frames"], ids=lambda case: str(case["num_frames"]))
def test_latents_have_the_shape_of_genmos(place, case):
    _, _, frames, height, width = case["latent_shape_480x848"]
    folder = place("a", frames=frames, height=height, width=width)
    (row,) = rows_of(folder)
    assert (row.num_frames, row.height, row.width) == (case["num_frames"], 480, 848)


@pytest.mark.parametrize(
    ("frames", "rate", "words"),
    [
        (36, 30, "36 frames; 37 are needed (37 frames at 30 frames per second): 1.233 s, of which it has 1.2 s and "
                 "lacks 0.033 s - lower dataset.num_frames to 31, or remove the clip"),
        (30, 25, "30 frames; 31 are needed (37 frames at 30 frames per second): 1.24 s, of which it has 1.2 s and "
                 "lacks 0.04 s - lower dataset.num_frames to 31, or remove the clip"),
        (29, 24, ""),
    ],
)  # fmt: skip
def test_a_clip_that_is_a_hair_too_short_says_by_how_much(frames, rate, words):
    clip = Clip("a.mp4", "x", frames, rate, 848, 480, frames / rate, "sha")
    (row,) = ledger(_Listed(clip), _with(genmo()), FAMILY)
    assert row.status == ("dropped" if words else "used")
    assert row.reason == (f"a.mp4 has {words}" if words else f"frames repeat: it has {rate} frames per second, "
                          "dataset.fps asks for 30")  # fmt: skip


def _with(dataset: DatasetConfig):
    """A config that reads videos, with these frames and sizes."""
    values = dataset.model_dump() | {"format": "sidecar"}
    return parse_config({"family": "mochi", "base_model": "base", "dataset": values})


class _Listed:
    """A dataset of one clip without a file."""

    def __init__(self, clip: Clip) -> None:
        self.clips = (clip,)

    def reload(self) -> None: ...

    def problem(self, clip: Clip) -> None: ...

    def remark(self, clip: Clip) -> str:
        return ""


# --- what a preparation has encoded ----------------------------------------------------------------------------------


@pytest.mark.parametrize("factory", [False, True])
def test_both_layouts_are_read(place, factory):
    folder = place("a", "below/b", factory=factory)
    (folder / "a.recon.mp4").write_bytes(b"to be looked at")
    first, second = rows_of(folder, num_frames=7, height=32, width=64)
    assert [(row.status, row.reason, row.clip.file_name) for row in (first, second)] == [
        ("used", "", "a.mp4"),
        ("used", "", "below/b.mp4"),
    ]
    assert (first.num_frames, first.height, first.width) == (7, 32, 64)
    assert first.clip.text == "a caption of a"
    assert first.clip.sha256 != second.clip.sha256, "the same video, encoded otherwise"
    video, prompt = read_prepared(folder / "a.mp4", WIDTH)
    expected, text = latents(0), embeds(0)
    assert torch.equal(video["latents_mean"], expected["mean"][0])
    assert torch.equal(video["latents_logvar"], expected["logvar"][0])
    assert torch.equal(prompt["prompt_embeds"], text["y_feat"][0][0])
    assert torch.equal(prompt["prompt_attention_mask"], text["y_mask"][0][0])
    assert prompt["prompt_attention_mask"].dtype == torch.bool


def test_half_precision_is_read_as_it_is_worth(place):
    folder = place("a")
    torch.save({name: value.bfloat16() for name, value in latents().items()}, folder / "a.latent.pt")
    assert _shapes_of(folder / "a.latent.pt")["mean"] == Shape((1, 12, 2, 4, 8), "BFloat16")
    video, _ = read_prepared(folder / "a.mp4", WIDTH)
    assert torch.equal(video["latents_mean"], latents()["mean"][0].bfloat16().float())


def test_folders_below_are_left_where_they_are_not_asked_for(place):
    folder = place("a", "below/b")
    (row,) = rows_of(folder, subfolders=False)
    assert row.clip.file_name == "a.mp4"


def test_frames_and_size_are_those_of_the_encodings(place):
    (row,) = rows_of(place("a"))
    assert (row.status, row.prepared) == ("used", True)
    assert row.reason == "trains as it was prepared, with 7 frames at 64 x 32, not 37 at 848 x 480"


def test_what_is_not_whole_is_told(place):
    folder = place("a", "b", "c", "d")
    (folder / "a.latent.pt").unlink()
    (folder / "b.embed.pt").unlink()
    (folder / "c.mp4").unlink()
    (folder / "d.mp4").write_bytes(b"")
    rows = {row.clip.name: (row.status, row.reason) for row in rows_of(folder, num_frames=7, height=32, width=64)}
    way = "prepare it again, or set dataset.format to sidecar to train from the videos themselves"
    again = "has no c.mp4 beside it; put the video there again, or remove the file"
    assert rows == {
        "a.mp4": ("dropped", f"a.mp4 is not prepared: there is no a.latent.pt beside it; {way}"),
        "b.mp4": ("dropped", f"b.mp4 is not prepared: there is no b.embed.pt beside it; {way}"),
        "c.embed.pt": ("dropped", f"c.embed.pt {again}"),
        "c.latent.pt": ("dropped", f"c.latent.pt {again}"),
        "d.mp4": ("used", "only what lies encoded beside it is used: d.mp4 is empty (0 bytes)"),
    }
    assert [row.clip.name for row in rows_of(folder, max_clips=1)][:3] == ["a.mp4", "b.mp4", "d.mp4"]


def test_a_folder_without_any_is_refused(tmp_path):
    with pytest.raises(DatasetError, match=r"holds no videos with .latent.pt and .embed.pt files beside them"):
        rows_of(tmp_path)
    with pytest.raises(DatasetError, match="does not exist"):
        rows_of(tmp_path / "no")


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self):
        return os.mkdir, (str(self.proof),)


def test_a_file_that_would_run_something_is_refused_in_a_sentence(place, tmp_path):
    folder, proof = place("a", "b", "c"), tmp_path / "it ran"
    torch.save({**embeds(), "extra": Payload(proof)}, folder / "a.embed.pt")
    torch.save({**latents(), "extra": Payload(proof)}, folder / "b.latent.pt")
    (folder / "c.embed.pt").write_bytes(pickle.dumps({"y_feat": Payload(proof)}))
    first, second, third = rows_of(folder)
    assert {row.status for row in (first, second, third)} == {"dropped"}
    assert first.reason == (
        f"a.embed.pt holds more than tensors ({os.mkdir.__module__}.mkdir), and reading that could run a program; "
        "prepare the clip again, or remove it"
    )
    assert second.reason == first.reason.replace("a.embed.pt", "b.latent.pt")
    assert third.reason == "c.embed.pt is no file of torch.save, or damaged; prepare the clip again, or remove it"
    for name in "abc":
        with pytest.raises(DatasetError):
            read_prepared(folder / f"{name}.mp4", WIDTH)
    assert not proof.exists()
    config = config_of(folder)
    rows = ledger(open_dataset(config.dataset), config, FAMILY)
    where, text = nothing_to_train(open_dataset(config.dataset), rows, config)
    assert where == "dataset.path"
    assert text.startswith("none of the dataset's 3 clips can be used; the first: a.embed.pt holds more than tensors")


def _repickled(file: Path, data: bytes) -> None:
    """The zip of a .pt file with another pickle in it."""
    with zipfile.ZipFile(file) as archive:
        within = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in within.items():
            archive.writestr(name, data if name.endswith("/data.pkl") else content)


@pytest.mark.parametrize(
    "data",
    [
        b"", b"\x80\x02", b"\x80\x02}q\x00(X", b"\x80\x02]q\x00.", b"\x80\x02}r\xff\xff\xff\x7f.", b"\x80\x02K\x01.",
        b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x00.", b"\x80\x02}K\x01K\x02s.", b"cos\nsystem\n(S'true'\ntR.",
        b"\x80\x02ctorch\nFloatStorage\n)R.", b"\x80\x02}" * 400_000 + b".", b"\x80\x02U\x01xQ.",
    ],
    ids=range(12),
)  # fmt: skip
def test_a_damaged_pickle_is_a_sentence(place, data):
    folder = place("a")
    _repickled(folder / "a.latent.pt", data)
    (row,) = rows_of(folder)
    assert row.status == "dropped"
    assert row.reason.startswith("a.latent.pt ")
    assert row.reason.endswith("prepare the clip again, or remove it")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_file_that_is_cut_off_is_a_sentence(place, share):
    folder = place("a")
    films.truncated(folder / "a.embed.pt", folder / "a.embed.pt", share)
    (row,) = rows_of(folder)
    assert row.reason == "a.embed.pt is no file of torch.save, or damaged; prepare the clip again, or remove it"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("latent", {"mean": torch.zeros(1, 12, 2, 4, 8)}, "a.latent.pt cannot be used: it has mean instead of mean"),
        ("latent", {"ldist": torch.zeros(1, 12, 2, 4, 8)}, "ldist should be (1, 24, t, h, w), but (1, 12, 2, 4, 8) is"),
        ("latent", {**latents(), "mean": torch.zeros(1, 12, 1, 4, 8)}, "but (1, 12, 1, 4, 8) and (1, 12, 2, 4, 8) are"),
        ("latent", latents(width=7), "it is of 56 x 32 pixels, which are no multiples of 16"),
        ("latent", {"mean": 5, "logvar": 5}, "but no tensor and no tensor are there"),
        ("latent", [torch.zeros(3)], "a.latent.pt holds no tensors by name"),
        ("embed", {"y_feat": torch.zeros(2)}, "it has y_feat instead of y_feat and y_mask, or prompt_embeds and"),
        ("embed", {**embeds(), "y_mask": [torch.zeros(1, 77)]}, "but (1, 77)"),
        ("embed", {"y_feat": [torch.zeros(2)] * 2, "y_mask": []}, "but no tensor and no tensor are there"),
    ],
)
def test_tensors_of_other_shapes_are_told(place, name, content, words):
    folder = place("a")
    torch.save(content, folder / f"a.{name}.pt")
    (row,) = rows_of(folder)
    assert row.status == "dropped"
    assert words in row.reason or words.partition("but ")[2] in row.reason, row.reason
    with pytest.raises(DatasetError):
        prepared(folder / "a.mp4")


def test_what_shows_only_in_the_values_is_told_when_they_are_read(place):
    folder = place("a")
    with pytest.raises(ModelError, match=r"a.embed.pt is of another text encoder: .* 32 wide, the base model's 4096"):
        read_prepared(folder / "a.mp4", 4096)
    broken = latents()
    broken["mean"][0, 0, 0, 0, 0] = torch.nan
    torch.save(broken, folder / "a.latent.pt")
    with pytest.raises(ModelError, match=r"a.latent.pt has values that are no numbers"):
        read_prepared(folder / "a.mp4", WIDTH)


@pytest.mark.parametrize(("field", "value"), [("flip", True), ("id_token", "word")])
def test_what_would_change_the_encodings_is_refused(field, value):
    with pytest.raises(ConfigError) as caught:
        config_of(Path("x"), **{field: value})
    assert caught.value.problems[0][0] == f"dataset.{field}"


def test_other_families_do_not_offer_it(tmp_path):
    data = {"family": "animatediff", "method": "lora", "base_model": "b", "motion_adapter": "m"}
    with pytest.raises(ConfigError) as caught:
        parse_config({**data, "dataset": {"path": str(tmp_path), "format": "prepared"}})
    assert caught.value.problems[0][0] == "dataset.format"


# --- training from it ------------------------------------------------------------------------------------------------


def test_a_batch_holds_what_was_prepared(place, base):
    from trainers.data.loader import Batches

    folder = place("a", "b")
    config = config_of(folder, base, batch_size=2)
    rows = ledger(open_dataset(config.dataset), config, FAMILY)
    model = FAMILY.load(config, "train")
    encoded = Encoded(model, "mochi", folder / "cache", 0, prepared=True)
    samples = Batches(open_dataset(config.dataset), rows, config.dataset, 0)[0]
    encoded.prepare(samples, [sample.clip.text for sample in samples], lambda done, total: None)
    batch = encoded.batch(samples)
    for place_, sample in enumerate(samples):
        number = "ab".index(sample.file.stem)
        assert torch.equal(batch["latents_mean"][place_], latents(number)["mean"][0])
        assert torch.equal(batch["prompt_embeds"][place_], embeds(number)["y_feat"][0][0])
        assert torch.equal(encoded.video(sample)["latents_logvar"], latents(number)["logvar"][0])
    assert not batch["null_prompt_embeds"].any()
    assert not batch["null_prompt_attention_mask"].any()
    assert not (folder / "cache").exists(), "nothing is stored again"


@pytest.mark.parametrize("factory", [False, True])
def test_a_prepared_folder_trains_where_nothing_can_encode(place, base, tmp_path, factory):
    """With a video that cannot be read, two epochs, a validation loss, and the same again after a resume."""
    folder = place("a", "b", "c", factory=factory)
    (folder / "b.mp4").write_bytes(b"no video")
    config = tmp_path / "run.yaml"
    config.write_text(
        f"""
family: mochi
base_model: {base}
max_train_steps: 4
mixed_precision: "no"
dataset: {{path: {folder}, format: prepared}}
adapter: {{rank: 2}}
optimizer: {{lr_warmup_steps: 0, learning_rate: 1e-3}}
validation: {{every_steps: 2, loss_draws: 2, holdout: 1}}
checkpoint: {{every_steps: 2}}
tracking: {{every_steps: 1}}
"""
    )
    assert main(["--config", str(config), "--run-dir", str(tmp_path / "run")]) == 0
    run = RunFolder(tmp_path / "run")
    events = read(run.events)[0]
    assert not [event for event in events if event.get("phase") == "encoding"]
    losses = [event["loss"] for event in events if event["type"] == "step"]
    assert len(losses) == 4
    assert all(0 < loss < 100 for loss in losses)
    said = [event["text"] for event in events if event["type"] == "message"]
    assert any("only what lies encoded beside it is used: b.mp4 is not a video" in text for text in said)
    assert not run.cache.exists()
    shutil.rmtree(run.checkpoints()[-1].path)
    assert main(["--config", str(config), "--run-dir", str(run.path), "--resume"]) == 0
    again = [event["loss"] for event in read(run.events)[0] if event["type"] == "step"][4:]
    assert again == pytest.approx(losses[2:], rel=1e-6)


def test_the_same_clip_trains_the_same_prepared_or_encoded(tmp_path, base, film):
    """What the loader gives of a video is what the model's own encodings beside it give."""
    whole = tmp_path / "whole"
    tiny.write("mochi", whole)
    folder = tmp_path / "videos"
    folder.mkdir()
    shutil.copy(film, folder / "a.mp4")
    (folder / "a.txt").write_text("a red circle")
    values = {"num_frames": 7, "height": 32, "width": 64}
    from trainers.data.loader import Batches, read_pixels
    from trainers.noise import Draws

    def batch_of(format: str) -> dict[str, torch.Tensor]:
        config = config_of(folder, whole, **{**values, "format": format})
        dataset = open_dataset(config.dataset)
        samples = Batches(dataset, ledger(dataset, config, FAMILY), config.dataset, 0)[0]
        model = FAMILY.load(config, "train")
        if format == "sidecar":
            (sample,) = samples
            assert torch.equal(
                read_pixels(sample).permute(0, 2, 3, 1), torch.from_numpy(read_frames(sample.file, range(7)))
            )
            video = model.encode_video(read_pixels(sample)[None], Draws.seeded(0))
            text = model.encode_prompt([sample.clip.text])
            torch.save({"mean": video["latents_mean"], "logvar": video["latents_logvar"]}, folder / "a.latent.pt")
            torch.save(
                {"y_mask": [text["prompt_attention_mask"]], "y_feat": [text["prompt_embeds"]]}, folder / "a.embed.pt"
            )
        return Encoded(model, "mochi", None, 0, prepared=config.dataset.prepared).batch(samples)

    encoded, found = batch_of("sidecar"), batch_of("prepared")
    assert encoded.keys() == found.keys()
    for name, tensor in encoded.items():
        assert torch.equal(tensor, found[name]), name
