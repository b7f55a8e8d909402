"""Datasets on disk, captions and thumbnails."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
from pathlib import Path

import films
import pytest
from PIL import Image

from trainers.data.clips import Dataset, DatasetError
from trainers.data.video import VideoError, frames_decoded


@pytest.fixture(scope="module")
def film(tmp_path_factory) -> Path:
    """31 frames at 8 fps, 64 x 64."""
    return films.plain(tmp_path_factory.mktemp("source") / "Café – take 2 (final).mp4", count=31)


@pytest.fixture(scope="module")
def made(tmp_path_factory, film) -> Path:
    """A dataset of one clip. Read it, never write into it."""
    dataset = Dataset.create(tmp_path_factory.mktemp("sets") / "one")
    dataset.add(film, "a red square")
    return dataset.path


@pytest.fixture
def one(tmp_path, made) -> Dataset:
    """A dataset of one clip, to be changed."""
    return Dataset.open(shutil.copytree(made, tmp_path / "one"))


def lines(dataset: Dataset) -> list[dict]:
    return [json.loads(line) for line in (dataset.path / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]


def foreign(folder: Path, *rows: dict | str) -> Path:
    """A folder with a metadata.jsonl that somebody else wrote."""
    folder.mkdir(exist_ok=True)
    text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    (folder / "metadata.jsonl").write_text(text, encoding="utf-8")
    return folder


# --- Import ----------------------------------------------------------------------------------------------------------


def test_an_imported_clip_and_its_facts(one, film):
    (clip,) = one.clips
    assert one.name == "one"
    assert clip.file_name.startswith("clips/cafe-take-2-final-")
    assert clip.name == clip.file_name.removeprefix("clips/")
    assert (clip.text, clip.num_frames, clip.fps, clip.width, clip.height) == ("a red square", 31, 8.0, 64, 64)
    assert clip.duration == one.seconds == pytest.approx(31 / 8)
    assert clip.source["name"] == film.name
    assert (clip.source["fps"], clip.source["width"], clip.source["height"]) == (8.0, 64, 64)
    assert one.file(clip).is_file()
    assert one.problem(clip) is None
    assert {clip}  # samples of clips are kept in sets
    assert sorted(path.name for path in one.path.iterdir() if not path.name.startswith(".")) == [
        "clips",
        "metadata.jsonl",
    ]
    assert Dataset.open(one.path).clips == one.clips


def test_opening_again_decodes_nothing(one):
    before = frames_decoded()
    again = Dataset.open(one.path)
    assert again.clips == one.clips
    assert frames_decoded() == before


def test_the_hub_reads_the_folder_as_it_is(one):
    (row,) = lines(one)
    assert set(row) >= {"file_name", "text"}
    assert (one.path / row["file_name"]).is_file()


@pytest.mark.parametrize(
    "name", ["../../etc/x.mp4", "..\\..\\x.mp4", "/abs/x.mp4", "日本.mp4", ".hidden.mp4", "a" * 300 + ".mp4"]
)
def test_no_name_of_a_person_becomes_a_path(tmp_path, film, name):
    dataset = Dataset.create(tmp_path / "set")
    clip = dataset.add(film, source_name=name)
    assert dataset.file(clip).resolve().parent == (dataset.path / "clips").resolve()
    assert clip.name.isascii()
    assert len(clip.name) < 60
    assert not clip.name.startswith(".")
    assert clip.source["name"] == name.replace("\\", "/").rsplit("/", 1)[-1]


def test_the_same_content_twice_is_refused_by_name(one, film, tmp_path):
    copy = shutil.copy(film, tmp_path / "other name.mp4")
    earlier = one.clips[0].name
    with pytest.raises(DatasetError, match=rf"^other name\.mp4 is already in dataset one, as {earlier}$"):
        one.add(Path(copy))
    with pytest.raises(DatasetError, match="is already in dataset one"):
        one.add(one.file(one.clips[0]))  # what import made of it
    assert len(one.clips) == 1
    assert len(list((one.path / "clips").iterdir())) == 1


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path, film: path.write_text("a letter"), "is not a video"),
        (lambda path, film: films.truncated(path, film), "is cut off or damaged: "),
        (lambda path, film: films.sound(path), "is not a video (only sound)"),
    ],
    ids=["text", "truncated", "sound"],
)
def test_a_refused_upload_leaves_nothing(one, film, tmp_path, make, words):
    path = tmp_path / "upload-3.mp4"
    make(path, film)
    before = one.clips
    with pytest.raises(VideoError) as error:
        one.add(path, source_name="my dog.mp4")
    assert str(error.value).startswith(f"my dog.mp4 {words}")
    assert Dataset.open(one.path).clips == before
    assert not list(one.path.glob(".incoming*"))
    assert len(list((one.path / "clips").iterdir())) == 1


def test_rotated_and_odd_clips_come_in_upright_and_even(tmp_path, film):
    dataset = Dataset.create(tmp_path / "set")
    wide = films.plain(tmp_path / "wide.mp4", count=3, width=96)
    phone = dataset.add(films.rotated(tmp_path / "phone.mp4", wide, 90))
    assert (phone.width, phone.height) == (64, 96)
    odd = tmp_path / "odd.mkv"
    films.ffmpeg("-i", wide, "-vf", "format=yuv444p,crop=65:63", odd)
    clip = dataset.add(odd)
    assert (clip.width, clip.height, clip.source["width"], clip.source["height"]) == (64, 62, 65, 63)


# --- Editing ---------------------------------------------------------------------------------------------------------

CAPTIONS = [
    "",
    "emoji 😀 and \\ backslash",
    "${alert(1)}",
    "<img src=x onerror=alert(1)>",
    '"quoted"',
    "two\nlines",
    "a\u2028b\x85c",
]


@pytest.mark.parametrize("text", CAPTIONS)
def test_any_caption_is_kept_as_it_is(one, text):
    one.set_text(one.clips[0].file_name, f"\r\n{text}\n")
    assert one.clips[0].text == text
    assert Dataset.open(one.path).clips[0].text == text


def test_half_a_character_does_not_break_the_file(one):
    one.set_text(one.clips[0].file_name, "broken \ud83d emoji")
    assert Dataset.open(one.path).clips[0].text == "broken ? emoji"


def test_an_edit_keeps_what_others_wrote(one):
    row = lines(one)[0] | {"licence": "CC0", "tags": ["a"]}
    foreign(one.path, row)
    one.set_text(row["file_name"], "new")
    assert lines(one) == [row | {"text": "new"}]


def test_an_edit_by_somebody_else_is_seen(one):
    other = Dataset.open(one.path)
    other.set_text(other.clips[0].file_name, "theirs")
    assert one.clips[0].text == "theirs"


def test_removing(one):
    clip = one.clips[0]
    file, picture = one.file(clip), one.thumbnail(clip)
    one.remove(clip.file_name)
    assert one.clips == ()
    assert not file.exists()
    assert not picture.exists()
    for act in (lambda: one.remove(clip.file_name), lambda: one.set_text("clips/none.mp4", "x")):
        with pytest.raises(DatasetError, match="dataset one has no clip clips/"):
            act()


def test_a_removed_clip_can_come_back(one, film):
    one.remove(one.clips[0].file_name)
    assert one.add(film).num_frames == 31


def test_removing_leaves_files_that_somebody_put_there(tmp_path, film):
    folder = foreign(tmp_path / "theirs", {"file_name": "a.mp4", "text": "x"})
    shutil.copy(film, folder / "a.mp4")
    Dataset.open(folder).remove("a.mp4")
    assert (folder / "a.mp4").exists()
    assert Dataset.open(folder).clips == ()


def test_a_failed_write_loses_nothing(one, monkeypatch):
    before = (one.path / "metadata.jsonl").read_bytes()

    def full(self, target):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", full)
        with pytest.raises(DatasetError, match="dataset one cannot be changed: no space is left on the disk"):
            one.set_text(one.clips[0].file_name, "x" * 5000)
    assert (one.path / "metadata.jsonl").read_bytes() == before
    assert not list(one.path.glob(".metadata*"))
    assert one.clips[0].text == "a red square"


def write_captions(path: str, file_name: str, key: str, together) -> None:
    dataset = Dataset.open(path)
    together.wait(60)
    for number in range(40):
        dataset.set_text(file_name, f"{key} {number}")


def test_two_editors_lose_no_caption(tmp_path, film):
    names = [f"{k}.mp4" for k in range(3)]
    folder = foreign(tmp_path / "set", *({"file_name": name, "text": ""} for name in names))
    for name in names:
        shutil.copy(film, folder / name)
    context = multiprocessing.get_context("spawn")
    together = context.Barrier(len(names))
    writers = [context.Process(target=write_captions, args=(str(folder), name, name, together)) for name in names]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
        assert writer.exitcode == 0
    assert [clip.text for clip in Dataset.open(folder).clips] == [f"{name} 39" for name in names]


# --- Opening ---------------------------------------------------------------------------------------------------------


def test_a_folder_of_the_hubs_convention_is_a_dataset(tmp_path, film):
    folder = foreign(
        tmp_path / "hub", {"file_name": "videos/a.mp4", "text": "one", "mood": 3}, "", {"file_name": "b.mp4"}
    )
    (folder / "videos").mkdir()
    shutil.copy(film, folder / "videos" / "a.mp4")
    films.plain(folder / "b.mp4", count=5)
    before = (folder / "metadata.jsonl").read_bytes()
    first, second = Dataset.open(folder).clips
    assert (first.text, first.num_frames, first.fps, first.width) == ("one", 31, 8.0, 64)
    assert len(first.sha256) == 64
    assert (second.text, second.num_frames) == ("", 5)
    assert (folder / "metadata.jsonl").read_bytes() == before  # opening writes nothing


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (['{"file_name": "a.mp4"}', "{oops"], "line 2, is not JSON"),
        (["[1]"], "line 1: is not an object"),
        (['{"text": "x"}'], "line 1: has no file_name"),
        (['{"file_name": 7}'], "line 1: has no file_name"),
        (['{"file_name": "../x.mp4"}'], "line 1: file_name '../x.mp4' leads out of the dataset's folder"),
        (['{"file_name": "/x.mp4"}'], "leads out of the dataset's folder"),
        (['{"file_name": "a/../../x.mp4"}'], "leads out of the dataset's folder"),
        (['{"file_name": "C:/x.mp4"}'], "leads out of the dataset's folder"),
        ([json.dumps({"file_name": "..\\x.mp4"})], "leads out of the dataset's folder"),
        (['{"file_name": ".x.mp4"}'], "line 1: file_name '.x.mp4' is hidden"),
        (['{"file_name": "clips/.x/a.mp4"}'], "is hidden"),
        (['{"file_name": "a.mp4", "text": 5}'], "line 1: the text of a.mp4 is not a text"),
        (['{"file_name": "a.mp4"}', "", '{"file_name": "a.mp4"}'], "a.mp4 stands twice, in lines 1 and 3"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, rows, words):
    folder = foreign(tmp_path / "set", *rows)
    with pytest.raises(DatasetError) as error:
        Dataset.open(folder)
    assert words in str(error.value)
    assert str(folder / "metadata.jsonl") in str(error.value)


def test_where_there_is_no_dataset(tmp_path):
    with pytest.raises(DatasetError, match=f"dataset folder {tmp_path / 'none'} does not exist"):
        Dataset.open(tmp_path / "none")
    with pytest.raises(DatasetError, match=r"is not a dataset: it has no metadata\.jsonl"):
        Dataset.open(tmp_path)
    (tmp_path / "metadata.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DatasetError, match=r"metadata\.jsonl cannot be read"):
        Dataset.open(tmp_path)


def test_creating(tmp_path):
    dataset = Dataset.create(tmp_path / "new" / "set")
    assert (dataset.clips, dataset.seconds) == ((), 0)
    assert Dataset.open(dataset.path).clips == ()
    with pytest.raises(DatasetError, match="already holds a dataset"):
        Dataset.create(dataset.path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(DatasetError, match="cannot be made"):
        Dataset.create(tmp_path / "file" / "set")


def test_an_edited_file_is_noticed_and_a_copied_one_trusted(one):
    (clip,) = one.clips
    os.utime(one.file(clip), (1, 1))
    before = frames_decoded()
    assert Dataset.open(one.path).clips == (clip,)
    assert frames_decoded() == before
    films.plain(one.file(clip), count=7)
    (edited,) = Dataset.open(one.path).clips
    assert edited.num_frames == 7
    assert edited.sha256 != clip.sha256


# --- Thumbnails ------------------------------------------------------------------------------------------------------


def test_thumbnails_are_made_once_and_follow_the_content(one):
    (clip,) = one.clips
    picture = one.thumbnail(clip)
    assert picture.parent == one.path / "thumbs"
    with Image.open(picture) as image:
        assert (image.format, image.width) == ("WEBP", 320)
    before = picture.stat().st_mtime_ns, frames_decoded()
    assert one.thumbnail(clip) == picture
    assert (picture.stat().st_mtime_ns, frames_decoded()) == before
    films.plain(one.file(clip), count=7)
    one.reload()
    other = one.thumbnail(one.clips[0])
    assert other != picture
    assert [path.name for path in (one.path / "thumbs").iterdir()] == [other.name]
