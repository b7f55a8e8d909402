"""Datasets in the layouts of other trainers, read where they lie."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import threading
from pathlib import Path

import films
import numpy as np
import pytest
import yaml

from trainers.config import DatasetConfig, TrainConfig
from trainers.data import facts
from trainers.data.clips import Dataset, DatasetError, ReadableDataset
from trainers.data.formats import open_dataset, sidecar, webvid
from trainers.data.ledger import ledger, nothing_to_train
from trainers.data.video import VideoError, frames_decoded, probe, read_frames
from trainers.events import read
from trainers.families import get_family, parse_config
from trainers.runs import RunFolder
from trainers.settings import ConfigError

FAMILY = get_family("animatediff")
REFERENCE = json.loads((Path(__file__).parent / "data" / "animatediff" / "frame_indices.json").read_text())
HEADER = "name,contentUrl\n"


@pytest.fixture(scope="module")
def film(tmp_path_factory) -> Path:
    """31 frames at 8 fps, 64 x 64."""
    return films.plain(tmp_path_factory.mktemp("source") / "film.mp4", count=31)


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch) -> Path:
    """A home of the test's own, and a memory that begins empty."""
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("USERPROFILE", str(folder))
    facts._memory.cache_clear()
    return folder


@pytest.fixture
def place(tmp_path, film):
    """Put the film under so many names below a folder, each a file of its own content; gives the folder."""

    def put(*names: str, folder: str = "videos") -> Path:
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        for name in names:
            file = tmp_path / folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(film.read_bytes() + b"\0\0\0\x20free" + name.encode()[:24].ljust(24))
        return tmp_path / folder

    return put


def dataset(path: Path | str, format: str, **values) -> ReadableDataset:
    return open_dataset(DatasetConfig(path=str(path), format=format, **values))


def config_of(path: Path | str, format: str, **values) -> TrainConfig:
    section = {"path": str(path), "format": format, "num_frames": 16, "height": 64, "width": 64, **values}
    return parse_config({"family": FAMILY.name, "method": "motion_module", "base_model": "b", "dataset": section})


def everything_below(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob("*")}


def refused(path: Path | str, format: str, **values) -> DatasetError:
    with pytest.raises(DatasetError) as caught:
        dataset(path, format, **values)
    assert "\n" not in str(caught.value)
    return caught.value


# --- list ------------------------------------------------------------------------------------------------------------


def test_a_list_is_read_where_it_lies(place):
    folder = place("a.mp4", "deep/b.mp4")
    before = everything_below(folder)
    found = dataset(folder, "list", videos=["deep/b.mp4", str(folder / "a.mp4")], prompts=["two", "one"])
    assert [(clip.file_name, clip.text) for clip in found.clips] == [("deep/b.mp4", "two"), ("a.mp4", "one")]
    for clip in found.clips:
        assert (clip.num_frames, clip.fps, clip.width, clip.height) == (31, 8.0, 64, 64)
        assert clip.sha256 == hashlib.sha256(found.file(clip).read_bytes()).hexdigest()
        assert found.problem(clip) is None
    assert found.file(found.clips[1]) == folder / "a.mp4"
    assert everything_below(folder) == before
    assert films.numbers(read_frames(found.file(found.clips[0]), [0, 30])) == [0, 30]


def test_one_prompt_is_for_every_video(place):
    folder = place("a.mp4", "b.mp4")
    found = dataset(folder, "list", videos=["a.mp4", "b.mp4"], prompts=["the same"])
    assert [clip.text for clip in found.clips] == ["the same", "the same"]


@pytest.mark.parametrize(("videos", "prompts"), [(["a", "b", "c"], ["x", "y"]), (["a", "b"], []), (["a"], ["x", "y"])])
def test_prompts_that_do_not_fit_are_refused_by_the_schema(videos, prompts):
    with pytest.raises(ConfigError, match=rf"dataset\.prompts: has {len(prompts)} prompts? for {len(videos)} video"):
        config_of(".", "list", videos=videos, prompts=prompts)


def test_relative_paths_count_from_the_folder_and_the_root(place, tmp_path, monkeypatch):
    place("a.mp4", folder="project/data")
    config = DatasetConfig(path="data", format="list", videos=["a.mp4"], prompts=["x"])
    (clip,) = open_dataset(config, tmp_path / "project").clips
    assert clip.num_frames == 31
    monkeypatch.chdir(tmp_path / "project")
    assert open_dataset(config).clips == (clip,)
    here = DatasetConfig(path=".", format="list", videos=["data/a.mp4"], prompts=["x"])
    assert open_dataset(here).clips[0].sha256 == clip.sha256


@pytest.mark.skipif(os.name == "nt", reason="Windows reads them itself")
def test_paths_written_on_windows(place):
    folder = place("sub/a.mp4", "odd\\name.mp4")
    found = dataset(folder, "list", videos=["sub\\a.mp4", "odd\\name.mp4", "I:\\anime\\data\\0066.mp4"], prompts=["x"])
    assert [clip.name for clip in found.clips] == ["a.mp4", "odd\\name.mp4", "0066.mp4"]
    assert [found.problem(clip) for clip in found.clips] == [
        None,
        None,
        "0066.mp4 is missing: I:\\anime\\data\\0066.mp4 is a path of a Windows machine; correct its line in "
        "dataset.videos",
    ]
    assert dataset(str(folder).replace("/videos", "\\videos"), "list", videos=["sub/a.mp4"], prompts=["x"]).clips


def test_a_video_that_is_listed_twice_is_two_clips(place):
    """Copies of a single video are a known advice against burning."""
    folder = place("a.mp4", "a.mp4 (2)")
    found = dataset(folder, "list", videos=["a.mp4", "./a.mp4", "a.mp4 (2)", "a.mp4"], prompts=["p", "q", "r", "s"])
    assert [clip.file_name for clip in found.clips] == ["a.mp4", "a.mp4 (3)", "a.mp4 (2)", "a.mp4 (4)"]
    assert [found.file(clip).name for clip in found.clips] == ["a.mp4", "a.mp4", "a.mp4 (2)", "a.mp4"]
    assert [clip.text for clip in found.clips] == ["p", "q", "r", "s"]
    assert len({found.thumbnail(clip) for clip in found.clips}) == 4
    assert found.clip("a.mp4 (4)").text == "s"
    rows = ledger(found, config_of(folder, "list", videos=["a.mp4"] * 4, prompts=["x"]), FAMILY)
    assert [row.status for row in rows] == ["used"] * 4


def test_what_cannot_be_used_stays_with_a_sentence(place, tmp_path):
    folder = place("ok.mp4", "short.mp4")
    (folder / "letter.mp4").write_text("not a video")
    films.plain(folder / "short.mp4", count=4)
    videos = ["ok.mp4", "gone.mp4", "letter.mp4", ".", "short.mp4"]
    config = config_of(folder, "list", videos=videos, prompts=["x"])
    rows = ledger(open_dataset(config.dataset), config, FAMILY)
    assert [row.status for row in rows] == ["used", "dropped", "dropped", "dropped", "dropped"]
    assert rows[1].reason == (
        f"gone.mp4 is missing: there is no file {folder / 'gone.mp4'}; correct its line in dataset.videos"
    )
    assert rows[2].reason == "letter.mp4 is not a video (it holds text); remove the clip"
    assert rows[3].reason == "videos is not a file; remove the clip"
    assert rows[4].reason.startswith("short.mp4 has 4 frames; 16 are needed")
    with pytest.raises(VideoError, match=r"gone\.mp4 is missing"):
        open_dataset(config.dataset).thumbnail(rows[1].clip)
    only = config_of(folder, "list", videos=["gone.mp4"], prompts=["x"])
    where, text = nothing_to_train(open_dataset(only.dataset), rows[1:2], only)
    assert (where, "gone.mp4 is missing" in text) == ("dataset.path", True)


@pytest.mark.parametrize("video", ["x" * 300 + ".mp4", "~nobody-here/a.mp4", "a\0b.mp4", "\\\\host\\share\\a.mp4"])
def test_what_can_be_no_path_is_missing(tmp_path, video):
    found = dataset(tmp_path, "list", videos=[video], prompts=["x"])
    assert "is missing" in (found.problem(found.clips[0]) or "")


def test_a_folder_that_is_not_there(tmp_path, film):
    error = refused(tmp_path / "no", "list", videos=["a.mp4"], prompts=["x"])
    assert str(error) == f"folder {tmp_path / 'no'} does not exist, from which the paths of dataset.videos count"
    assert error.where == "dataset.path"
    assert dataset(tmp_path / "no", "list", videos=[str(film)], prompts=["x"]).clips[0].num_frames == 31


# --- sidecar ---------------------------------------------------------------------------------------------------------


def test_captions_stand_beside_the_videos(place):
    folder = place("10.mp4", "9.mp4", "b.mov", "a.mkv", "2.webm", ".hidden.mp4")
    (folder / "below").mkdir()
    (folder / "10.txt").write_text("ten\n", encoding="utf-8")
    (folder / "10.json").write_text('{"prompt": "the text counts"}')
    (folder / "9.json").write_text('{"key_frame": 3, "video_file": "x", "prompt": "neuf — 九"}', encoding="utf-8")
    (folder / "2.json").write_text('\ufeff{"sample": {"prompt": "within"}}', encoding="utf-8")
    (folder / "a.txt").write_text("\ufeffwith a mark\r\n", encoding="utf-8")
    (folder / "b.json").write_text("")
    found = dataset(folder, "sidecar")
    assert [(clip.name, clip.text) for clip in found.clips] == [
        ("2.webm", "within"),
        ("9.mp4", "neuf — 九"),
        ("10.mp4", "ten"),
        ("a.mkv", "with a mark"),
        ("b.mov", ""),
    ]
    rows = ledger(found, config_of(folder, "sidecar"), FAMILY)
    assert [row.reason for row in rows][3:] == [
        "",
        "b.json has no prompt; has no caption: it trains with an empty one",
    ]


def test_folders_below_are_read_where_they_are_asked_for(place):
    folder = place("2.mp4", "10.MP4", "b/1.MOV", "a/x.mov", ".hidden/y.mp4")
    (folder / "b" / "1.txt").write_text("one")
    found = dataset(folder, "sidecar", subfolders=True)
    assert [(clip.file_name, clip.text) for clip in found.clips] == [
        ("2.mp4", ""), ("10.MP4", ""), ("a/x.mov", ""), ("b/1.MOV", "one"),
    ]  # fmt: skip
    assert [clip.file_name for clip in dataset(folder, "sidecar").clips] == ["2.mp4", "10.MP4"]
    (folder / "2.mp4").unlink()
    (folder / "10.MP4").unlink()
    assert str(refused(folder, "sidecar")).endswith("in the folder itself, not below it")
    assert len(dataset(folder, "sidecar", subfolders=True).clips) == 2


def test_captions_without_a_video_are_told(place):
    folder = place("a.mp4")
    for name in ("a.txt", "a.json", "b.txt", "c.json"):
        (folder / name).write_text("{}")
    config = config_of(folder, "sidecar", max_clips=1)
    rows = ledger(open_dataset(config.dataset), config, FAMILY)
    assert [(row.status, row.reason) for row in rows[1:]] == [
        ("dropped", "b.txt has no video of its name beside it; put one there, or remove the text"),
        ("dropped", "c.json has no video of its name beside it; put one there, or remove the text"),
    ]


def test_what_another_trainer_has_encoded_is_no_video(place):
    folder = place("a.mp4")
    (folder / "a.txt").write_text("x")
    (folder / "a.latent.pt").write_bytes(b"x")
    (folder / "a.embed.pt").write_bytes(b"x")
    (row,) = ledger(dataset(folder, "sidecar"), config_of(folder, "sidecar"), FAMILY)
    assert row.status == "used"


def test_a_video_without_a_caption_says_so(place):
    folder = place("a.mp4")
    (row,) = ledger(dataset(folder, "sidecar"), config_of(folder, "sidecar"), FAMILY)
    assert row.status == "used"
    assert row.reason == ("there is no a.txt or a.json beside it; has no caption: it trains with an empty one")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.json", b"{", "a.json is not JSON"),
        ("a.json", b'{"prompt": ["x"]}', "a.json has a prompt that is not a text"),
        ("a.txt", "ä".encode("latin-1"), "a.txt is not UTF-8; save it as UTF-8"),
    ],
)
def test_a_caption_that_cannot_be_read_drops_its_video(place, name, content, words):
    folder = place("a.mp4", "b.mp4")
    (folder / name).write_bytes(content)
    first, second = ledger(dataset(folder, "sidecar"), config_of(folder, "sidecar"), FAMILY)
    assert (first.status, second.status) == ("dropped", "used")
    assert first.reason.startswith(f"the caption of a.mp4 cannot be read: {words}")


def test_what_is_no_video_in_the_folder_is_told(place):
    folder = place("a.mp4")
    (folder / "notes.md").write_text("about the clips")
    _, row = ledger(dataset(folder, "sidecar"), config_of(folder, "sidecar"), FAMILY)
    assert (row.status, row.reason) == ("dropped", "notes.md is not a video (it holds text); remove the clip")


def test_folders_without_videos_are_refused(tmp_path, film):
    assert str(refused(tmp_path / "no", "sidecar")) == f"folder {tmp_path / 'no'} does not exist"
    assert "is a file; dataset.format sidecar needs the folder" in str(refused(film, "sidecar"))
    (tmp_path / "empty" / "deeper").mkdir(parents=True)
    (tmp_path / "empty" / "a.txt").write_text("x")
    assert "holds no videos" in str(refused(tmp_path / "empty", "sidecar"))
    ours = Dataset.create(tmp_path / "ours")
    assert "set dataset.format to dailies" in str(refused(ours.path, "sidecar"))


# --- webvid ----------------------------------------------------------------------------------------------------------


def table(folder: Path, text: str | bytes, name: str = "clips.csv") -> Path:
    file = folder / name
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_a_table_of_captions_and_addresses(place, mark):
    folder = place("v1.mp4", "v2.mp4")
    before = everything_below(folder)
    rows = 'name,contentUrl\r\n"Two men, ""walking""\nby",http://h/x/v2.mp4\r\nüber,v1.mp4\r\n\r\n'
    file = table(folder.parent, mark + rows.encode())
    found = dataset(file, "webvid", video_folder=str(folder))
    assert [(clip.file_name, clip.text) for clip in found.clips] == [
        ("v2.mp4", 'Two men, "walking"\nby'),
        ("v1.mp4", "über"),
    ]
    assert found.file(found.clips[0]) == folder / "v2.mp4"
    assert everything_below(folder) == before


def test_the_videos_may_lie_beside_the_table(place):
    folder = place("v1.mp4")
    assert [clip.text for clip in dataset(table(folder, HEADER + "x,v1.mp4\n"), "webvid").clips] == ["x"]


def test_videos_known_by_their_id(place):
    folder = place("17.mp4", "000/18.mp4", "nice.mp4", "20.mp4")
    text = (
        "videoid,contentUrl,duration,page_dir,name\n"
        "17,,PT3S,000,direct\n"
        "18,https://h/gone.mp4,PT3S,000,in its folder\n"
        "19,https://h/nice.mp4,PT3S,000,by its address\n"
        "21,https://h/gone.mp4,PT3S,000,nowhere\n"
        "22,https://h/20.mp4"
    )
    found = dataset(table(folder, text), "webvid")
    assert [(clip.file_name, clip.text) for clip in found.clips] == [
        ("17.mp4", "direct"),
        ("000/18.mp4", "in its folder"),
        ("nice.mp4", "by its address"),
        ("gone.mp4", "nowhere"),
        ("20.mp4", ""),
    ]
    assert [bool(found.problem(clip)) for clip in found.clips] == [False, False, False, True, False]
    short = table(folder, "videoid,name,page_dir\n17,a,\n18,b,000\n", "ids.csv")
    assert [clip.file_name for clip in dataset(short, "webvid").clips] == ["17.mp4", "000/18.mp4"]


@pytest.mark.parametrize("case", REFERENCE["swift_csv_filter"])
def test_rows_are_those_that_upstream_keeps(case, tmp_path):
    """Upstream takes one row more than it is asked for; we take as many as asked."""
    for name in case["files_present"]:
        (tmp_path / name).touch()
    rows = [dict(zip(("name", "contentUrl"), row, strict=True)) for row in case["rows"]]

    def kept(**values) -> list[str]:
        found = webvid.rows_with_files(rows, tmp_path, case["dataset_sample_size"], **values)
        return [row["name"] for row, video in found if video]

    assert kept(upstream_count=True) == case["kept"]
    assert kept() == case["kept"][: case["dataset_sample_size"]]


def test_rows_without_a_file_are_dropped_and_counted(place):
    folder = place("v1.mp4", "v2.mp4", "v3.mp4")
    text = HEADER + "a,v1.mp4\nb,gone.mp4\nc,\nd,v2.mp4\ne,v3.mp4\nf,gone too.mp4\n"
    file = table(folder, text)
    rows = ledger(dataset(file, "webvid"), config_of(file, "webvid"), FAMILY)
    assert [(row.clip.text, row.status) for row in rows if row.status == "dropped"] == [
        ("b", "dropped"), ("c", "dropped"), ("f", "dropped"),
    ]  # fmt: skip
    assert rows[1].reason == (
        f"gone.mp4 is missing: there is no file {folder / 'gone.mp4'}; put it there or take its row out"
    )
    assert rows[2].reason == "the row of 'c' names no video"
    assert [c.text for c in dataset(file, "webvid", max_clips=2).clips] == ["a", "b", "c", "d"]


BAD_TABLES = {
    "no header": (
        "A man walks,stock-footage-a-man.mp4\nA dog,dog.mp4\n",
        "needs the columns name and contentUrl (or videoid), named in its first line, which is "
        "'A man walks,stock-footage-a-man.mp4'",
    ),
    "other columns": ("caption,video\nx,a.mp4\n", "needs the columns name and contentUrl"),
    "semicolons": ("name;contentUrl\nx;a.mp4\n", "which is 'name;contentUrl'"),
    "empty": ("", "is empty; it needs the columns name and contentUrl (or videoid)"),
    "a mark alone": (b"\xef\xbb\xbf", "is empty"),
    "no rows": (HEADER, "has no rows below its header"),
    "latin-1": ("name,contentUrl\nüber,a.mp4\n".encode("latin-1"), "is not UTF-8; save it as UTF-8"),
    "bytes": (b"name,contentUrl\n\0\0\0\xff\xfe", "is not UTF-8"),
    "one endless field": (HEADER + '"' + "x" * 200_000, "cannot be read: field larger than field limit"),
}


@pytest.mark.parametrize("kind", BAD_TABLES)
def test_a_bad_table_is_one_sentence_that_names_it(place, kind):
    folder = place("v1.mp4")
    content, words = BAD_TABLES[kind]
    file = table(folder, content)
    error = refused(file, "webvid")
    assert str(error).startswith(f"CSV file {file} ")
    assert words in str(error)
    assert error.where == "dataset.path"


def test_files_and_folders_that_are_not_there(place, tmp_path):
    folder = place("v1.mp4")
    error = refused(tmp_path / "no.csv", "webvid")
    assert str(error) == f"CSV file {tmp_path / 'no.csv'} cannot be read: it does not exist"
    assert "it is a folder; dataset.format webvid needs the CSV file" in str(refused(folder, "webvid"))
    file = table(folder, HEADER + "a,gone.mp4\nb,gone too.mp4\n")
    error = refused(file, "webvid", video_folder=str(tmp_path / "none"))
    assert (str(error), error.where) == (
        f"the folder of the videos, {tmp_path / 'none'}, does not exist",
        "dataset.video_folder",
    )
    error = refused(file, "webvid")
    assert str(error) == (
        f"none of the 2 videos that CSV file {file} names is in {folder} (such as gone.mp4); set dataset.video_folder "
        "to the folder of the videos"
    )
    assert error.where == "dataset.video_folder"
    with pytest.raises(DatasetError, match="is a file, not the folder of a dataset; for a CSV file set"):
        dataset(file, "dailies")


# --- all of them -----------------------------------------------------------------------------------------------------


def test_only_the_first_clips_are_taken(place, tmp_path):
    folder = place("1.mp4", "2.mp4", "3.mp4", "4.mp4")
    videos = ["1.mp4", "gone.mp4", "2.mp4", "3.mp4"]
    found = dataset(folder, "list", videos=videos, prompts=["x"], max_clips=2)
    assert [clip.name for clip in found.clips] == ["1.mp4", "gone.mp4", "2.mp4"]
    assert [clip.name for clip in dataset(folder, "sidecar", max_clips=3).clips] == ["1.mp4", "2.mp4", "3.mp4"]
    ours = tmp_path / "ours"
    ours.mkdir()
    lines = [json.dumps({"file_name": f"{k}.mp4", "text": "x"}) + "\n" for k in range(5)]
    (ours / "metadata.jsonl").write_text("".join(lines))
    for k in (0, 2, 3, 4):
        (ours / f"{k}.mp4").write_bytes((folder / "1.mp4").read_bytes())
    found = dataset(ours, "dailies", max_clips=3)
    assert [clip.name for clip in found.clips] == ["0.mp4", "1.mp4", "2.mp4", "3.mp4"]
    found.set_text("4.mp4", "an edit keeps what is out of sight")
    assert len(Dataset.open(ours).clips) == 5


def test_a_dataset_of_ours_is_opened_as_before(tmp_path, film):
    made = Dataset.create(tmp_path / "mine")
    made.add(film, "x")
    found = open_dataset(DatasetConfig(path="mine"), tmp_path)
    assert isinstance(found, Dataset)
    assert found.clips == made.clips


@pytest.mark.parametrize("format", ["webvid", "sidecar"])
def test_what_is_written_is_read_again(place, tmp_path, format):
    folder = place("a.mp4", "b/a.mp4", "c.mp4")
    videos = ["a.mp4", "b/a.mp4", "c.mp4", "c.mp4"]
    prompts = ['a, "quoted"', "über", "", "two\nlines"]
    source = dataset(folder, "list", videos=videos, prompts=prompts)
    out = {"webvid": webvid, "sidecar": sidecar}[format].write(source, tmp_path / "out")
    before = everything_below(folder)
    more = {"video_folder": str(tmp_path / "out" / "videos")} if format == "webvid" else {}
    found = dataset(out, format, **more)
    assert sorted((c.text, c.sha256) for c in found.clips) == sorted((c.text, c.sha256) for c in source.clips)
    assert everything_below(folder) == before
    with pytest.raises(DatasetError, match="exists already"):
        {"webvid": webvid, "sidecar": sidecar}[format].write(source, tmp_path / "out")


def test_a_clip_that_cannot_be_read_is_not_written(place, tmp_path):
    source = dataset(place("a.mp4"), "list", videos=["a.mp4", "gone.mp4"], prompts=["x"])
    with pytest.raises(DatasetError, match=r"cannot be written in another layout: gone\.mp4 is missing"):
        webvid.write(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --- originals -------------------------------------------------------------------------------------------------------

BT709 = ["-colorspace", "bt709", "-color_primaries", "bt709", "-color_trc", "bt709", "-color_range", "tv"]
#: Files as they come from elsewhere. Of the first four decord would give other pictures than were asked for.
ORIGINALS = {
    "open-gop.mp4": ["-c:v", "libx264", "-bf", "3", "-g", "12", "-x264-params", "open-gop=1:scenecut=0", *BT709],
    "open-gop.ts": ["-c:v", "libx264", "-bf", "3", "-g", "12", "-x264-params", "open-gop=1:scenecut=0", *BT709],
    "refresh.mp4": ["-c:v", "libx264", "-bf", "0", "-g", "20", "-x264-params", "intra-refresh=1", *BT709],
    "interlaced.mp4": ["-c:v", "libx264", "-g", "20", "-x264-params", "interlaced=1:tff=1", *BT709],
    "reordered.avi": ["-c:v", "libx264", "-bf", "2"],
    "divx.avi": ["-c:v", "mpeg4", "-bf", "2", "-q:v", "2"],
    "odd.mp4": ["-vf", "scale=159:95", "-c:v", "libx264", "-pix_fmt", "yuv444p"],
    "odd.webm": ["-vf", "scale=159:95", "-c:v", "libvpx-vp9", "-b:v", "300k"],
    "alt-ref.webm": ["-c:v", "libvpx", "-auto-alt-ref", "1", "-lag-in-frames", "16", "-b:v", "300k"],
    "hevc.mkv": ["-c:v", "libx265", "-x265-params", "log-level=error:open-gop=1:keyint=12"],
    "uneven.mp4": ["-vf", "setpts='if(lt(N,10),N,10+(N-10)*3)/8/TB'", "-fps_mode", "passthrough", "-g", "12", *BT709],
}


@pytest.mark.parametrize("name", ORIGINALS)
def test_originals_give_the_frames_that_are_asked_for(tmp_path, name):
    source = films.plain(tmp_path / "source.mp4", count=60, height=96, width=160)
    films.ffmpeg("-i", source, *ORIGINALS[name], tmp_path / name)
    (clip,) = (found := dataset(tmp_path, "list", videos=[name], prompts=["x"])).clips
    assert clip.num_frames == 60
    assert (clip.width, clip.height) == ((159, 95) if "odd" in name else (160, 96))
    whole = read_frames(found.file(clip), range(60))
    assert films.numbers(whole) == list(range(60))
    for numbers in ([47], [59, 0], [25, 26, 38], [31, 11, 31]):
        assert np.array_equal(read_frames(found.file(clip), numbers), whole[numbers])


@pytest.mark.parametrize("degrees", [90, 180, -90])
def test_turned_originals_are_upright(tmp_path, degrees):
    source = films.plain(tmp_path / "source.mp4", count=12, height=64, width=128)
    films.rotated(tmp_path / "turned.mp4", source, degrees)
    (clip,) = (found := dataset(tmp_path, "list", videos=["turned.mp4"], prompts=["x"])).clips
    assert (clip.width, clip.height) == ((128, 64) if degrees == 180 else (64, 128))
    turned = np.rot90(read_frames(source, [3, 7], "pyav"), degrees // 90, axes=(1, 2))
    assert np.array_equal(read_frames(found.file(clip), [3, 7]), turned)
    upright, lying = ((24, 40), (24, 40)) if degrees == 180 else ((40, 24), (24, 40))
    turned = np.rot90(read_frames(source, [3], size=lying), degrees // 90, axes=(1, 2))
    assert np.array_equal(read_frames(found.file(clip), [3], size=upright), turned)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        (ORIGINALS["uneven.mp4"], "its frames stand for different times, but are taken by number"),
        (["-vf", "setsar=4/3"], "its pixels are not square (4:3), but are taken as if they were"),
        (ORIGINALS["interlaced.mp4"], "it is interlaced: movement has comb-like edges"),
        (
            ["-c:v", "libx265", "-pix_fmt", "yuv420p10le", "-x265-params",
             "log-level=error:transfer=arib-std-b67:colorprim=bt2020:colormatrix=bt2020nc"],
            "it is HDR (HLG): its colours are tone-mapped to BT.709",
        ),
        (["-c", "copy"], ""),
    ],
)  # fmt: skip
def test_the_ledger_says_what_is_unusual(tmp_path, film, how, words):
    films.ffmpeg("-i", film, *how, tmp_path / "a.mp4")
    config = config_of(tmp_path, "list", videos=["a.mp4"], prompts=["x"])
    (row,) = ledger(open_dataset(config.dataset), config, FAMILY)
    assert (row.status, row.reason) == ("used", words)


# --- what is remembered ----------------------------------------------------------------------------------------------


def test_a_second_look_measures_nothing(place, monkeypatch):
    folder = place("1.mp4", "2.mp4", "3.mp4")
    (folder / "4.mp4").write_text("no video")
    first = dataset(folder, "sidecar")
    before = frames_decoded()
    monkeypatch.setattr(facts, "probe", lambda file: pytest.fail(f"{file} is measured again"))
    monkeypatch.setattr(facts, "sha256_of", lambda file: pytest.fail(f"{file} is read again"))
    again = dataset(folder, "sidecar")
    assert again.clips == first.clips
    assert again.problem(again.clips[3]) == "4.mp4 is not a video (it holds text); remove the clip"
    assert frames_decoded() == before


def test_a_file_that_has_changed_is_measured_again(place):
    folder = place("1.mp4")
    found = dataset(folder, "sidecar")
    earlier = found.clips[0]
    films.plain(folder / "1.mp4", count=5)
    found.reload()
    assert (earlier.num_frames, found.clips[0].num_frames) == (31, 5)
    assert found.clips[0].sha256 != earlier.sha256
    (folder / "1.mp4").write_text("no video any more")
    found.reload()
    assert found.problem(found.clips[0])
    (folder / "1.mp4").unlink()
    films.plain(folder / "1.mp4", count=9)
    found.reload()
    assert found.clips[0].num_frames == 9


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="nothing is closed to this user")
def test_a_file_that_may_not_be_read_is_asked_again(place):
    folder = place("1.mp4")
    (folder / "1.mp4").chmod(0)
    found = dataset(folder, "sidecar")
    assert "Permission denied" in found.problem(found.clips[0])
    (folder / "1.mp4").chmod(0o600)
    found.reload()
    assert found.problem(found.clips[0]) is None


@pytest.mark.parametrize("where", ["cache", "home"])
def test_another_process_knows_what_took_long_to_measure(place, home, tmp_path, monkeypatch, where):
    folder = place("1.mp4", "2.mp4")
    values = {"cache_dir": str(tmp_path / "cache")} if where == "cache" else {}
    dataset(folder, "sidecar", **values)
    assert not list(home.rglob("*.jsonl")), "a small set leaves nothing behind"
    assert not (tmp_path / "cache").exists()

    monkeypatch.setattr(facts, "KEEP_AFTER_SECONDS", 0)
    facts._memory.cache_clear()
    first = dataset(folder, "sidecar", **values)
    kept = tmp_path / "cache" / "clips.jsonl" if where == "cache" else home / ".cache" / "dailies" / "clips.jsonl"
    assert len(kept.read_text(encoding="utf-8").splitlines()) == 2

    with kept.open("a", encoding="utf-8") as handle:
        handle.write('{"file": 3}\n[]\n{"cut off')
    facts._memory.cache_clear()  # as another process begins
    before = frames_decoded()
    assert dataset(folder, "sidecar", **values).clips == first.clips
    assert frames_decoded() == before


def test_a_disk_that_takes_nothing_is_no_obstacle(place, tmp_path, monkeypatch):
    monkeypatch.setattr(facts, "KEEP_AFTER_SECONDS", 0)
    (tmp_path / "taken").write_text("a file where the folder should be")
    found = dataset(place("1.mp4"), "sidecar", cache_dir=str(tmp_path / "taken"))
    assert found.clips[0].num_frames == 31


def test_looks_at_the_same_time_measure_once(place, monkeypatch):
    folder = place(*(f"{k}.mp4" for k in range(6)))
    measured: list[Path] = []
    monkeypatch.setattr(facts, "probe", lambda file: (measured.append(file), probe(file))[1])
    threads = [threading.Thread(target=dataset, args=(folder, "sidecar")) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(measured) == sorted(folder.iterdir())


def test_measuring_tells_how_far_it_is_and_can_be_stopped(place):
    folder = place(*(f"{k}.mp4" for k in range(30)))
    told: list[tuple[int, int]] = []

    class Enough(Exception):
        pass

    def report(done: int, total: int) -> None:
        told.append((done, total))
        if len(told) == 3:
            raise Enough

    config = DatasetConfig(path=str(folder), format="sidecar")
    with pytest.raises(Enough):
        open_dataset(config, report=report)
    assert told == [(1, 30), (2, 30), (3, 30)]
    open_dataset(config, report=report)
    assert told[3][0] > 3, "what was measured is known"
    assert told[-1] == (30, 30)


# --- a run -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tiny_base, tmp_path):
    """Train a few steps on a dataset section; gives the run's messages and how many samples were encoded."""

    def train(**section) -> tuple[list[str], int]:
        from trainers.train import main

        data = {
            "family": "animatediff",
            "method": "motion_module",
            "base_model": str(tiny_base),
            "motion_adapter": str(tiny_base / "motion_adapter"),
            "max_train_steps": 3,
            "mixed_precision": "no",
            "dataset": {"num_frames": 4, "height": 32, "width": 32, **section},
            "validation": {"every_steps": None},
        }
        (tmp_path / "run.yaml").write_text(yaml.safe_dump(data))
        assert main(["--config", str(tmp_path / "run.yaml"), "--run-dir", str(tmp_path / "run")]) == 0
        folder = RunFolder(tmp_path / "run")
        events = read(folder.events)[0]
        texts = [event["text"] for event in events if event["type"] == "message"]
        encoding = [event["total"] for event in events if event["type"] == "phase" and event["phase"] == "encoding"]
        return texts, max(encoding)

    return train


def test_a_run_on_a_list_of_copies(run, place):
    folder = place("a.mp4")
    before = everything_below(folder)
    videos = ["a.mp4", "a.mp4", "gone.mp4"]
    texts, encoded = run(
        path=str(folder), format="list", videos=videos, prompts=["a red square"], frame_selection="first", repeats=3
    )
    assert "clips: 0 used, 2 trimmed, 1 dropped; each counts 3 times in a pass" in texts
    assert any(text.startswith("gone.mp4 is missing") for text in texts)
    assert encoded == 1, "the same frames of the same video, however often they are listed and repeated"
    assert everything_below(folder) == before


def test_a_run_on_a_table(run, place, tmp_path):
    folder = place("v1.mp4", "v2.mp4", "v3.mp4")
    with (tmp_path / "t.csv").open("w", newline="") as handle:
        csv.writer(handle).writerows(
            [("name", "contentUrl"), *((f"clip {k}", f"http://h/v{k}.mp4") for k in (1, 2, 3))]
        )
    texts, encoded = run(
        path=str(tmp_path / "t.csv"), format="webvid", video_folder=str(folder), max_clips=2, frame_stride=12,
        repeat_frames=True, flip=True,
    )  # fmt: skip
    assert "clips: 2 used, 0 trimmed, 0 dropped" in texts
    assert sum("its frames lie closer than asked: it has 31, 37 are needed" in text for text in texts) == 2
    assert encoded == 2
