"""Datasets of two text files, one of videos and one of captions, and the word before the captions."""

from __future__ import annotations

from pathlib import Path

import films
import pytest
import yaml

from trainers.config import DatasetConfig, TrainConfig
from trainers.data.clips import DatasetError, ReadableDataset
from trainers.data.formats import open_dataset, paired
from trainers.data.ledger import caption_of, ledger
from trainers.data.loader import Batches
from trainers.events import read
from trainers.families import get_family, parse_config
from trainers.runs import RunFolder

FAMILY = get_family("animatediff")


@pytest.fixture(scope="module")
def film(tmp_path_factory) -> Path:
    """31 frames at 8 fps, 64 x 64."""
    return films.plain(tmp_path_factory.mktemp("source") / "film.mp4", count=31)


@pytest.fixture
def lists(tmp_path, film):
    """Write the two lists and put the film under each name below a folder; gives the folder."""

    def put(videos: str, captions: str, *names: str, caption_list: str = "prompts.txt") -> Path:
        folder = tmp_path / "set"
        for name in names:
            file = folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(film.read_bytes() + b"\0\0\0\x20free" + name.encode()[:24].ljust(24))
        folder.mkdir(exist_ok=True)
        (folder / "videos.txt").write_bytes(videos.encode())
        (folder / caption_list).write_bytes(captions.encode())
        return folder

    return put


def dataset(path: Path | str, **values) -> ReadableDataset:
    return open_dataset(DatasetConfig(path=str(path), format="paired", **values))


def config_of(path: Path | str, **values) -> TrainConfig:
    section = {"path": str(path), "format": "paired", "num_frames": 16, "height": 64, "width": 64, **values}
    return parse_config({"family": FAMILY.name, "method": "motion_module", "base_model": "b", "dataset": section})


def refused(path: Path | str, **values) -> DatasetError:
    with pytest.raises(DatasetError) as caught:
        dataset(path, **values)
    assert "\n" not in str(caught.value)
    return caught.value


# --- pairs -----------------------------------------------------------------------------------------------------------


def test_lines_belong_together_whatever_is_empty_between_them(lists, film):
    folder = lists(
        "videos/a.mp4\r\n\r\nb.mp4\r\n", "\ufeff\n  A cat.  \n\n\nA dog\u2028runs\n", "videos/a.mp4", "b.mp4"
    )
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    found = dataset(folder)
    assert [(c.file_name, c.text) for c in found.clips] == [("videos/a.mp4", "A cat."), ("b.mp4", "A dog\u2028runs")]
    assert found.clips[0].num_frames == 31
    assert found.file(found.clips[0]) == folder / "videos" / "a.mp4"
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    (folder / "videos.txt").write_text(f"{film}\nb.mp4\n", encoding="utf-8")
    assert dataset(folder).clips[0].file_name == film.as_posix()


def test_lists_of_other_names(lists):
    folder = lists("a.mp4\n", "one\n", "a.mp4", caption_list="prompt.txt")
    assert dataset(folder).clips[0].text == "one", "the singular is as common"
    (folder / "prompts.txt").write_text("two\n")
    assert dataset(folder).clips[0].text == "two"
    assert dataset(folder, caption_list="prompt.txt").clips[0].text == "one"
    (folder / "mine").mkdir()
    (folder / "videos.txt").rename(folder / "mine" / "paths.txt")
    found = dataset(folder, video_list="mine/paths.txt")
    assert found.clips[0].text == "two", "paths count from the folder, not from the list"


def test_lists_of_unequal_length_are_refused_with_their_numbers(lists):
    folder = lists("a.mp4\nb.mp4\n", "one\n\n", "a.mp4", "b.mp4")
    error = refused(folder)
    assert str(error) == (
        f"videos.txt and prompts.txt in {folder} do not belong together: 2 videos for 1 caption, empty lines not "
        "counted; give each video one line in both"
    )
    assert error.where == "dataset.caption_list"


def test_missing_videos_are_refused_by_name_and_line(lists):
    folder = lists("\na.mp4\ngone.mp4\nlost.mp4\n", "one\ntwo\nthree\n", "a.mp4")
    assert str(refused(folder)) == (
        f"gone.mp4 is missing: there is no file {folder / 'gone.mp4'}; correct line 3 of videos.txt; 1 more of the 3 "
        "videos in videos.txt are missing"
    )
    assert [clip.text for clip in dataset(folder, max_clips=1).clips] == ["one"], "what is not used may be missing"


def test_what_is_no_pair_of_lists_is_one_sentence(lists, tmp_path, film):
    mend = "set dataset.path to the folder of videos.txt and prompts.txt"
    assert str(refused(tmp_path / "no")) == f"folder {tmp_path / 'no'} does not exist; {mend}"
    assert "is a file; dataset.format paired needs the folder" in str(refused(film))
    folder = lists("", "")
    assert "are empty; write the path of a video" in str(refused(folder))
    (folder / "videos.txt").write_bytes("ä.mp4".encode("latin-1"))
    assert str(refused(folder)) == f"{folder / 'videos.txt'} is not UTF-8; save it as UTF-8"
    (folder / "videos.txt").unlink()
    error = refused(folder)
    assert (error.where, f"folder {folder} has no videos.txt" in str(error)) == ("dataset.video_list", True)


def test_what_is_written_is_read_again(lists, tmp_path):
    folder = lists("a.mp4\nb/a.mp4\n", "A cat.\nÜber 九\n", "a.mp4", "b/a.mp4")
    source = dataset(folder)
    out = paired.write(source, tmp_path / "out")
    assert (out / "videos.txt").read_text(encoding="utf-8").splitlines() == ["videos/a.mp4", "videos/a (2).mp4"]
    assert [(c.text, c.sha256) for c in dataset(out).clips] == [(c.text, c.sha256) for c in source.clips]
    with pytest.raises(DatasetError, match="exists already"):
        paired.write(source, tmp_path / "out")


def test_captions_that_a_line_cannot_hold(lists, tmp_path):
    folder = lists("", "", "a.mp4", "b.mp4")
    listed = DatasetConfig(path=str(folder), format="list", videos=["a.mp4", "b.mp4"], prompts=["two\n lines", "x"])
    out = paired.write(open_dataset(listed), tmp_path / "out")
    assert dataset(out).clips[0].text == "two lines"
    bare = listed.model_copy(update={"prompts": ["", "x"]})
    with pytest.raises(DatasetError, match=r"a\.mp4 has no caption, and a list of captions has no empty lines"):
        paired.write(open_dataset(bare), tmp_path / "other")
    assert not (tmp_path / "other").exists()


# --- the word before a caption ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("token", "glued", "text", "expected"),
    [
        (None, False, " A cat", " A cat"),
        (None, True, "A cat", "A cat"),
        ("BW", False, "A cat", "BW A cat"),
        (" BW_STYLE ", False, "A cat", "BW_STYLE A cat"),
        ("BW", True, "A cat", "BWA cat"),
        ("BW_STYLE ", True, "A cat", "BW_STYLE A cat"),
        ("BW", False, "", "BW"),
        ("BW", False, "  ", "BW"),
    ],
)
def test_a_word_before_the_caption(token, glued, text, expected):
    assert caption_of(text, DatasetConfig(path="-", id_token=token, id_token_glued=glued)) == expected


def test_the_ledger_holds_the_caption_that_is_trained(lists):
    folder = lists("a.mp4\nb.mp4\n", "A cat\nBW_STYLE a dog\n", "a.mp4", "b.mp4")
    config = config_of(folder, id_token="BW_STYLE")
    found = open_dataset(config.dataset)
    rows = ledger(found, config, FAMILY)
    assert [row.clip.text for row in rows] == ["BW_STYLE A cat", "BW_STYLE BW_STYLE a dog"]
    assert [row.reason for row in rows] == [
        "",
        "its caption begins with dataset.id_token already: it trains with the word twice",
    ]
    batches = Batches(found, rows, config.dataset, 0)
    assert {sample.clip.text for sample in batches.variants()[0]} == {row.clip.text for row in rows}
    assert [clip.text for clip in found.clips] == ["A cat", "BW_STYLE a dog"], "the files say what they said"


def test_a_clip_without_a_caption_trains_with_the_word_alone(tmp_path, film):
    films_folder = film.parent
    config = DatasetConfig(path=str(films_folder), format="list", videos=["film.mp4"], prompts=[""], id_token="BW")
    whole = config_of(films_folder, id_token="BW").model_copy(update={"dataset": config})
    (row,) = ledger(open_dataset(config), whole, FAMILY)
    assert row.clip.text == "BW"
    assert row.reason == "has no caption: it trains with dataset.id_token alone"


# --- a run -----------------------------------------------------------------------------------------------------------


def test_a_run_on_clips_of_several_shapes_and_lengths(tmp_path, tiny_base):
    """Batches of one shape, from `fit: buckets` and `frame_buckets`, and captions encoded behind the word."""
    from trainers.train import main

    folder = tmp_path / "set"
    folder.mkdir()
    shapes = [(64, 64, 12), (64, 64, 5), (64, 128, 12), (128, 64, 12), (64, 128, 6), (64, 64, 12)]
    for number, (height, width, count) in enumerate(shapes):
        films.plain(folder / f"{number}.mp4", count=count, height=height, width=width)
    (folder / "videos.txt").write_text("".join(f"{k}.mp4\n" for k in range(6)))
    (folder / "prompts.txt").write_text("".join(f"clip {k}\n" for k in range(6)))
    section = {"path": str(folder), "format": "paired", "num_frames": 8, "height": 32, "width": 32, "fit": "buckets"}
    section |= {"frame_buckets": True, "frame_selection": "strided", "batch_size": 2, "id_token": "BW"}
    data = {
        "family": "animatediff",
        "method": "motion_module",
        "base_model": str(tiny_base),
        "motion_adapter": str(tiny_base / "motion_adapter"),
        "max_train_steps": 5,
        "mixed_precision": "no",
        "dataset": section,
        "validation": {"every_steps": None},
    }
    config = parse_config(data)
    found = open_dataset(config.dataset)
    rows = ledger(found, config, FAMILY)
    batches = Batches(found, rows, config.dataset, config.seed)
    shown = [[sample.shape for sample in batches[k]] for k in range(batches.per_epoch)]
    assert all(len(set(batch)) == 1 for batch in shown)
    # of two clips each only the square ones with enough frames have one shape
    assert sorted(len(batch) for batch in shown) == [1, 1, 1, 1, 2]
    assert {shape for batch in shown for shape in batch} == {
        (8, 32, 32), (5, 32, 32), (8, 24, 48), (6, 24, 48), (8, 48, 24),
    }  # fmt: skip
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(data))
    assert main(["--config", str(tmp_path / "run.yaml"), "--run-dir", str(tmp_path / "run")]) == 0
    events = read(RunFolder(tmp_path / "run").events)[0]
    texts = [event["text"] for event in events if event["type"] == "message"]
    assert "1.mp4: trains with 5 frames instead of 8: it has only 5" in texts
    assert events[-1]["status"] == "finished"
