"""AnimateDiff against vectors of the original implementation. What is compared is always the product's own answer."""

from __future__ import annotations

import json
import random
import re
from functools import cache
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file

from examples import tiny
from tests.parity.vectors import Case, Report, Tensors, Vectors
from trainers.config import DatasetConfig
from trainers.data.clips import Clip
from trainers.data.formats.webvid import rows_with_files
from trainers.data.frames import choose_frames, most_frames
from trainers.data.loader import Sample, read_pixels
from trainers.data.video import probe, read_frames
from trainers.families.animatediff.config import AnimateDiffSampleConfig, AnimateDiffTrainConfig
from trainers.families.animatediff.model import AnimateDiff
from trainers.families.animatediff.windows import windows
from trainers.families.base import Example

OWN = Path(__file__).parent.parent / "data" / "animatediff"  # where the base is that a folder may leave out
TOLERANCE = 1e-4
GREY_LEVELS = 3.0  # of 255; decoders and resizing differ by that much from version to version
PIXEL = 16.0  # the same for the worst pixel of a picture that a decoder has resized: up to 11, after the size

CONFIG, BASE = "unet_config.json", "base_unet_int8.safetensors"
INPUTS, OUTPUTS = "unet_inputs.safetensors", "unet_outputs.safetensors"
VIDEO, PIXELS = "pattern.mp4", "pixels.safetensors"
INDICES, WINDOWS = "frame_indices.json", "context_windows.json"


def check(vectors: Vectors, report: Report) -> None:
    if OUTPUTS in vectors:
        with report.check(OUTPUTS):
            check_unet(Reference(vectors), vectors, report)
    if INDICES in vectors:
        with report.check(INDICES):
            for kind, cases in vectors.json(INDICES).items():
                with report.check(kind):
                    for number, facts in enumerate(cases):
                        with report.case(f"{kind} {number}", facts) as case:
                            if kind == "swift_csv_filter":
                                check_rows(case, vectors.made("videos"), report)
                            else:
                                check_indices(kind, case, report)
    if WINDOWS in vectors:
        with report.check(WINDOWS):
            for number, facts in enumerate(vectors.json(WINDOWS)):
                with report.case(f"windows {number}", facts) as case:
                    made = windows(case["step"], case["n"], case["context_size"], case["strides"], case["overlap"])
                    report.equal(case.name, made, case["windows"])
    if PIXELS in vectors:
        with report.check(PIXELS):
            check_pixels(vectors.file(VIDEO), vectors.tensors(PIXELS), report)


# --- the network -----------------------------------------------------------------------------------------------------


class Reference:
    """The vectors' tiny UNet as a base model, its motion module in each version, and the LoRA, as files on disk."""

    def __init__(self, vectors: Vectors) -> None:
        self.facts = vectors.json(CONFIG, OWN)
        self.folder = vectors.made("base")
        tiny.write("animatediff", self.folder)
        unet = UNet2DConditionModel(
            **self.facts["unet_config"],
            down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
            up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        )
        packed = vectors.tensors(BASE, OWN).take_all()
        unet.load_state_dict({key: value.float() / 64 for key, value in packed.items()})
        unet.save_pretrained(self.folder / "unet")
        (name,) = [n for n in vectors.names if re.fullmatch(r"motion_module.*\.safetensors", n)]
        self._module = vectors.tensors(name).take_all()
        self.loras = [n for n in vectors.names if re.fullmatch(r"motion_lora.*\.safetensors", n)]
        self._vectors = vectors

    def module(self, version: str) -> Path:
        """The motion module as an original file of that version."""
        facts = self.facts["variants"][version]
        state = {k: v for k, v in self._module.items() if facts["mid_block"] or not k.startswith("mid_block")}
        state = {k: v[:, : facts["pe"]].contiguous() if k.endswith(".pe") else v for k, v in state.items()}
        file = self.folder / f"{version}.safetensors"
        # The one thing that a file in original names cannot say: real modules have 8 heads.
        heads = {"heads": self.facts["motion_num_attention_heads"]}
        save_file(state, file, metadata={"dailies": json.dumps(heads)})
        return file

    @cache  # noqa: B019 - lives as long as the checks
    def model(self, version: str) -> AnimateDiff:
        settings = {"base_model": str(self.folder), "motion_adapter": str(self.module(version)), "prompts": ["-"]}
        return AnimateDiff(AnimateDiffSampleConfig(**settings, mixed_precision="no"), "sample")

    def stretched(self, version: str, times: int) -> AnimateDiff:
        settings: dict[str, Any] = {
            "method": "motion_module",
            "base_model": str(self.folder),
            "motion_adapter": str(self.module(version)),
            "motion_module_pe_multiplier": times,
            "dataset": {"path": "-"},
        }
        return AnimateDiff(AnimateDiffTrainConfig(**settings, mixed_precision="no"), "train")

    def lora(self) -> Path:
        (name,) = self.loras
        return self._vectors.file(name)


def check_unet(reference: Reference, vectors: Vectors, report: Report) -> None:
    outputs = vectors.tensors(OUTPUTS)
    for name in outputs:
        with report.check(name), torch.no_grad():
            expected = outputs.take(name)
            inputs = vectors.tensors(INPUTS) if INPUTS in vectors else Tensors(INPUTS, {})
            if whole := re.fullmatch(r"(v\d+)(?:_lora([\d.]+))?_f(\d+)", name):
                version, strength, frames = whole.groups()
                example = Example(
                    inputs.take(f"sample_f{frames}"),
                    inputs.take("timesteps"),
                    None,
                    conditions={"prompt_embeds": inputs.take("encoder_hidden_states")},
                )
                model = reference.model(version)
                if strength is None:
                    model.load([])
                    report.close(name, model.predict(example), expected, TOLERANCE)
                else:
                    model.load([(reference.lora(), float(strength))])
                    report.close(f"{name} unmerged", model.predict(example), expected, TOLERANCE)
                    model.load([])
                    report.close(
                        f"{name} merged", merged(reference, version, float(strength)).predict(example), expected,
                        TOLERANCE,
                    )  # fmt: skip
            elif name.startswith("module_out"):
                stretch = reference.facts["pe_multiplier"] if name == "module_out_pe_multiplied" else 1
                module = one_module(reference, stretch)
                given = inputs.take(name.replace("_out", "_in", 1))  # (b, c, f, h, w)
                images = given.transpose(1, 2).flatten(0, 1)
                found = module(images, num_frames=given.shape[2]).unflatten(0, (given.shape[0], -1)).transpose(1, 2)
                report.close(name, found, expected, TOLERANCE)
            elif name == "pe_multiplied":
                module = one_module(reference, reference.facts["pe_multiplier"])
                report.close(name, module.transformer_blocks[0].pos_embed.pe, expected, TOLERANCE)
            else:
                report.failed(name, "no check knows this tensor")


def one_module(reference: Reference, stretch: int) -> Any:
    """The motion module alone; stretched ones begin as v1, the only version that is published with 24 positions."""
    model = reference.stretched("v1", stretch) if stretch > 1 else reference.model("v2")
    return model.unet.get_submodule(reference.facts["module_prefix"].rstrip("."))


def merged(reference: Reference, version: str, strength: float) -> AnimateDiff:
    """A model on the motion module into which our own export has merged the LoRA."""
    from trainers.families.animatediff.export import merge_lora

    out = reference.folder / f"merged-{version}-{strength}.safetensors"
    out.unlink(missing_ok=True)  # of an output with another number of frames
    merge_lora(reference.lora(), strength, reference.module(version), out)
    settings = {"base_model": str(reference.folder), "motion_adapter": str(out), "prompts": ["-"]}
    return AnimateDiff(AnimateDiffSampleConfig(**settings, mixed_precision="no"), "sample")


# --- frames and pixels -----------------------------------------------------------------------------------------------


def check_rows(case: Case, folder: Path, report: Report) -> None:
    """Which rows of a CSV the original keeps, one more than asked for."""
    for file in case["files_present"]:
        (folder / file).touch()
    rows = [{"name": caption, "contentUrl": address} for caption, address in case["rows"]]
    kept = rows_with_files(rows, folder, case["dataset_sample_size"], upstream_count=True)
    report.equal(case.name, [row["name"] for row, video in kept if video], case["kept"])


def check_indices(kind: str, case: Case, report: Report) -> None:
    """Frames that the original dataset classes choose, for a video of so many frames and Python's seed."""
    settings: dict[str, Any] = {"path": "-"}
    if kind == "MultiTuneAVideoDataset":
        settings |= {"num_frames": case["n_sample_frames"], "frame_stride": case["sample_frame_rate"],
                     "start_frame": case["sample_start_idx"], "frame_selection": "first"}  # fmt: skip
    elif kind in ("swift_AnimateDiffDataset", "guoyww_WebVid10M"):
        frames = case["sample_n_frames"]
        settings |= {
            "num_frames": 1 if case.get("is_image") else frames,
            "frame_stride": case["sample_stride"],
            "repeat_frames": True,
        }
    elif kind == "tumurzakov_AnimateDiffDataset":
        settings |= {"num_frames": case["video_length"]}
    elif kind == "tumurzakov_FramesDataset":
        settings |= {"num_frames": case["video_length"], "frame_selection": "first"}
    else:
        return report.failed(case.name, "no check knows this dataset")
    config = DatasetConfig(**settings, frame_buckets=True)
    length = most_frames(case["video_frames"], 8.0, config)  # as the ledger does for a clip that is too short
    rng = random.Random(case.get("python_random_seed"))
    chosen = choose_frames(case["video_frames"], 8.0, config, length, rng) if length else []
    found = chosen[0] if chosen else []
    report.equal(case.name, found, case["indices"])
    if "shape" in case:  # (f, 3, h, w) or, of an image, (3, h, w); h and w are those of the recording
        *frames, channels, _, _ = case["shape"]
        report.equal(f"{case.name} shape", (frames or [1], 3), ([len(found)], channels))
    return None


def check_pixels(video: Path, pixels: Tensors, report: Report) -> None:
    for name in pixels:
        with report.check(name):
            expected = pixels.take(name)
            if name == "decoded_uint8":
                found = torch.from_numpy(read_frames(video, decoded(pixels, len(expected))))
                report.close(name, found, expected, GREY_LEVELS, "grey levels")
            elif multitune := re.fullmatch(r"multitune_w(\d+)_h(\d+)_frames_([\d_]+)", name):
                width, height = int(multitune[1]), int(multitune[2])
                numbers = [int(number) for number in multitune[3].split("_")]
                found = read_pixels(sample(video, numbers, height, width, stretch=True, flip=False)).float()
                levels = (expected + 1) * 127.5
                report.measured(f"{name} mean", float((found - levels).abs().mean()), GREY_LEVELS, "grey levels")
                report.close(f"{name} pixel", found, levels, PIXEL, "grey levels")
            elif swift := re.fullmatch(r"swift_size(\d+)_stride(\d+)_n(\d+)_seed(\d+)_start(\d+)", name):
                size, stride, count, seed, start = map(int, swift.groups())
                config = DatasetConfig(path="-", num_frames=count, frame_stride=stride, flip=True)
                (numbers,) = choose_frames(probe(video).num_frames, 8.0, config, count, random.Random(seed))
                report.equal(f"{name} first frame", numbers[0], start)
                mirrored = bool(torch.rand(1, generator=torch.Generator().manual_seed(seed)) < 0.5)  # as torchvision
                found = read_pixels(sample(video, numbers, size, size, stretch=False, flip=mirrored)).float()
                report.close(name, found, (expected + 1) * 127.5, GREY_LEVELS, "grey levels")
            else:
                report.failed(name, "no check knows this tensor")


def decoded(pixels: Tensors, count: int) -> list[int]:
    """Which `count` frames were decoded: those that were stretched, for only their names tell."""
    named = sorted(re.findall(r"multitune_\w+_frames_([\d_]+)$", "\n".join(pixels), re.MULTILINE))
    found = [numbers for name in named if len(numbers := [int(number) for number in name.split("_")]) == count]
    if not found:
        raise KeyError(f"no tensor of {pixels.file} says which {count} frames these are")
    return found[0]


def sample(video: Path, numbers: list[int], height: int, width: int, *, stretch: bool, flip: bool) -> Sample:
    facts = probe(video)
    clip = Clip(video.name, "", facts.num_frames, facts.fps, facts.width, facts.height, facts.duration, "")
    return Sample(clip, video, tuple(numbers), height, width, stretch, flip)
