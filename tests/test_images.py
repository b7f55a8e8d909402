"""Images that clips begin from: reading them, pairing them with prompts, what is said of one that cannot be used."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from trainers import sample
from trainers.data import images
from trainers.data.images import images_for, problem_of_image, read_image, sha256_of_image, write_image
from trainers.data.video import VideoError, write_video
from trainers.families import file_findings, parse_config, parse_sample_config
from trainers.families.base import SampleRequest
from trainers.settings import ConfigError
from trainers.train import findings

RAMP = np.linspace(0, 255, 24 * 40 * 3).reshape(24, 40, 3).astype(np.uint8)


def saved(path, picture=RAMP, **options):
    Image.fromarray(picture).save(path, **options)
    return path


# --- reading ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tiff", "a.ppm", "named.txt"])
def test_an_image_is_read_as_it_is_whatever_its_name(tmp_path, name):
    options = {} if name != "named.txt" else {"format": "PNG"}
    assert np.array_equal(read_image(saved(tmp_path / name, **options)), RAMP)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_stands_upright(tmp_path, orientation):
    """The eight ways in which a camera can be held; the stored pixels are what turns back into the ramp."""
    mirrored = RAMP[:, ::-1]
    turned = {1: RAMP, 2: mirrored, 3: mirrored[::-1], 4: RAMP[::-1], 5: RAMP.transpose(1, 0, 2), 6: np.rot90(RAMP),
              7: mirrored[::-1].transpose(1, 0, 2), 8: np.rot90(RAMP, 3)}[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = saved(tmp_path / "photo.png", np.ascontiguousarray(turned), exif=exif)
    assert np.array_equal(read_image(file), RAMP)


def test_what_is_transparent_lies_on_white(tmp_path):
    clear = np.concatenate([RAMP, np.full((24, 40, 1), 255, np.uint8)], axis=2)
    clear[:, :20, 3] = 0
    clear[:, 20:30, 3] = 128
    read = read_image(saved(tmp_path / "a.png", clear))
    assert (read[:, :20] == 255).all() and np.array_equal(read[:, 30:], RAMP[:, 30:])
    between = (RAMP[:, 20:30].astype(int) + 255) // 2
    assert np.abs(read[:, 20:30].astype(int) - between).max() <= 1
    palette = Image.fromarray(RAMP).convert("P")
    palette.save(tmp_path / "b.png", transparency=palette.getpixel((0, 0)))
    assert (read_image(tmp_path / "b.png")[0, 0] == 255).all()


def test_other_kinds_of_pixels_become_rgb(tmp_path):
    grey = (np.arange(24 * 40).reshape(24, 40) * 68).astype(np.uint16)
    Image.fromarray(grey).save(tmp_path / "deep.png")
    read = read_image(tmp_path / "deep.png")
    assert np.abs(read[..., 0].astype(int) - np.round(grey / 257)).max() == 0 and (read[..., 0] == read[..., 2]).all()
    for mode in ("L", "1", "P", "CMYK"):
        file = tmp_path / f"{mode}.tiff"
        Image.fromarray(RAMP).convert(mode).save(file)
        assert np.array_equal(read_image(file), np.asarray(Image.open(file).convert("RGB"))), mode


def test_of_what_moves_the_first_frame_is_taken(tmp_path):
    frames = np.stack([RAMP, 255 - RAMP])
    first, second = (Image.fromarray(frame).quantize() for frame in frames)
    first.save(tmp_path / "a.gif", save_all=True, append_images=[second])
    assert np.array_equal(read_image(tmp_path / "a.gif"), np.asarray(first.convert("RGB")))
    write_video(tmp_path / "a.mp4", frames, 8)
    read = read_image(tmp_path / "a.mp4")
    assert read.shape == RAMP.shape and np.abs(read.astype(int) - RAMP).mean() < 8
    Image.fromarray(RAMP).save(tmp_path / "a.avif", quality=95)  # opened as a video
    assert np.abs(read_image(tmp_path / "a.avif").astype(int) - RAMP).mean() < 8


# --- what cannot be used ----------------------------------------------------------------------------------------------


def cut(path, share=0.6):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


def spoilt(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 0xFF
    path.write_bytes(data)
    return path


def text(path):
    path.write_text("not a picture at all")
    return path


def empty(path):
    path.write_bytes(b"")
    return path


def folder(path):
    path.mkdir()
    return path


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda at: at / "gone.png", "gone.png does not exist; give an image or a video file"),
        (lambda at: text(at / "a.png"), "a.png is neither an image nor a video (it holds text)"),
        (lambda at: text(at / "a.mp4"), "a.mp4 is neither an image nor a video (it holds text)"),
        (lambda at: empty(at / "a.png"), "a.png is empty"),
        (lambda at: folder(at / "a.png"), "a.png cannot be read as an image: it is a folder"),
        (lambda at: cut(saved(at / "a.jpg")), "a.jpg cannot be read as an image: it is damaged or cut off; copy or"),
        (lambda at: cut(saved(at / "a.png"), 0.1), "a.png cannot be read as an image: it is damaged or cut off"),
        (lambda at: spoilt(saved(at / "a.png"), 20), "a.png cannot be read as an image: it is damaged or cut off"),
        (lambda at: saved(at / "a.png", RAMP[:7]), "a.png has 40 x 7 pixels; each side must have at least 8"),
    ],
)
def test_what_cannot_be_used_gets_a_sentence(tmp_path, make, said):
    file = make(tmp_path)
    with pytest.raises(VideoError) as told:
        read_image(file)
    assert said in str(told.value) and "\n" not in str(told.value)
    assert problem_of_image(file) == str(told.value)


def test_a_picture_that_would_fill_the_memory_is_not_decoded(tmp_path, monkeypatch):
    file = saved(tmp_path / "a.bmp")
    data = bytearray(file.read_bytes())
    data[18:26] = (60_000).to_bytes(4, "little") * 2  # what its head says of width and height
    file.write_bytes(data)
    with pytest.raises(VideoError, match=r"a\.bmp has more than 64 million pixels; make it smaller first"):
        read_image(file)
    monkeypatch.setattr(images, "MOST_PIXELS", 24 * 40 - 1)
    with pytest.raises(VideoError, match="more than 0 million pixels"):
        read_image(saved(tmp_path / "b.png"))
    write_video(tmp_path / "c.mp4", RAMP[None], 8)
    with pytest.raises(VideoError, match=r"c\.mp4 has frames of more than"):
        read_image(tmp_path / "c.mp4")


def test_numbers_of_unknown_range_are_refused(tmp_path):
    Image.fromarray(RAMP[..., 0].astype(np.float32)).save(tmp_path / "depth.tiff")
    with pytest.raises(VideoError, match=r"depth\.tiff has 32 bits a channel"):
        read_image(tmp_path / "depth.tiff")


def test_a_file_is_looked_at_again_when_it_has_changed(tmp_path):
    file = text(tmp_path / "a.png")
    assert "neither" in problem_of_image(file)
    saved(file)
    assert problem_of_image(file) is None
    file.unlink()
    assert "does not exist" in problem_of_image(file)


# --- pairs ------------------------------------------------------------------------------------------------------------


def test_each_prompt_has_its_image_or_all_the_same(tmp_path):
    one, other = str(saved(tmp_path / "a.png")), str(saved(tmp_path / "b.png", 255 - RAMP))
    assert images_for([], ["x", "y"]) == [None, None]
    first, second, third = images_for([other, one, other], ["x", "y", "z"])
    assert np.array_equal(first, 255 - RAMP) and np.array_equal(second, RAMP) and third is first
    assert [np.array_equal(found, RAMP) for found in images_for([one], ["x", "y"])] == [True, True]
    assert images_for([one], []) == []


def test_a_picture_is_known_by_what_it_shows(tmp_path):
    keys = [sha256_of_image(read_image(saved(tmp_path / f"a.{kind}"))) for kind in ("png", "bmp", "tiff")]
    assert len(set(keys)) == 1
    assert sha256_of_image(RAMP.reshape(40, 24, 3)) != keys[0] != sha256_of_image(255 - RAMP)
    write_image(tmp_path / "new" / "b.png", RAMP[:, ::-1])
    assert np.array_equal(read_image(tmp_path / "new" / "b.png"), RAMP[:, ::-1])
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["b.png"]


def test_a_request_tells_its_image_by_its_hash():
    plain = SampleRequest("x", "", 64, 64, 4, 3, 1.0)
    assert "image" not in plain.facts(), "clips without an image keep the names that they have in the cache"
    begun = SampleRequest("x", "", 64, 64, 4, 3, 1.0, image=RAMP)
    assert begun.facts() == {**plain.facts(), "image": sha256_of_image(RAMP)}


# --- in a config ------------------------------------------------------------------------------------------------------


def of_base(tmp_path, in_channels):
    """As much of a CogVideoX base model as says whether it begins from an image."""
    folder = tmp_path / f"base-{in_channels}" / "transformer"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(f'{{"in_channels": {in_channels}, "out_channels": 16}}')
    return str(folder.parent)


def train_config(base, **validation):
    data = {"path": "nowhere", "num_frames": 49, "height": 480, "width": 720}
    config = {"family": "cogvideox", "method": "lora", "base_model": base, "dataset": data, "validation": validation}
    return parse_config(config)


def sample_config(base, **changes):
    return parse_sample_config({"family": "cogvideox", "base_model": base, "prompts": ["x", "y", "z"], **changes})


def errors(config, *root):
    return [finding for finding in file_findings(config, *root) if finding.level == "error"]


def test_images_and_prompts_must_fit():
    with pytest.raises(ConfigError) as told:
        train_config("b", prompts=["x", "y", "z"], images=["1", "2"])
    assert told.value.problems == [
        ("validation.images", "are 2 for 3 prompts; give one for each prompt, or a single one for all")
    ]
    with pytest.raises(ConfigError, match="images: are 4 for 3 prompts"):
        sample_config("b", images=list("1234"))
    assert sample_config("b", images=["1"]).images == ["1"] and len(sample_config("b", images=list("123")).images) == 3


def test_seeds_of_the_samples_of_a_prompt():
    assert train_config("b").validation.seeds == [42]
    assert train_config("b", seed=7, samples_per_prompt=3).validation.seeds == [7, 8, 9]
    assert train_config("b", seed=2**63 - 1, samples_per_prompt=2).validation.seeds == [2**63 - 1, 0]


def test_images_for_a_base_that_begins_from_none_are_an_error(tmp_path, tiny_base):
    image = str(saved(tmp_path / "a.png"))
    (found,) = errors(train_config(of_base(tmp_path, 16), prompts=["x"], images=[image]))
    assert found.where == "validation.images"
    assert found.text.startswith("validation.images are given, but CogVideoX with") and "leave them empty" in found.text
    config = {"family": "animatediff", "base_model": str(tiny_base), "prompts": ["x"], "images": [image]}
    (said,) = sample.problems(parse_sample_config(config))
    assert said == f"images are given, but AnimateDiff with {tiny_base} begins from none; leave them empty"
    assert not errors(sample_config(of_base(tmp_path, 32), images=[image]))
    unknown = sample_config("somebody/unheard-of", images=[image])
    assert not errors(unknown), "what a base is that is not here yet shows when it is loaded"


def test_a_missing_image_is_named_before_anything_is_loaded(tmp_path):
    base, good = of_base(tmp_path, 32), str(saved(tmp_path / "a.png"))
    bad = str(text(tmp_path / "notes.png"))
    config = train_config(base, prompts=["x", "y", "z"], images=[good, "gone.png", bad])
    said = [found.text for found in findings(config) if found.where == "validation.images"]
    assert said == [
        "validation.images cannot be used: gone.png does not exist; give an image or a video file",
        "validation.images cannot be used: notes.png is neither an image nor a video (it holds text)",
    ]
    assert any("gone.png" in problem for problem in sample.problems(sample_config(base, images=["gone.png"])))
    assert not errors(sample_config(base, images=["a.png"]), tmp_path), "relative to where it will run"
