"""Datasets of the Hugging Face Hub: tables of videos in folders, and on a Hub of the test's own."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlsplit

import films
import huggingface_hub.constants
import pytest

from trainers.config import DatasetConfig, TrainConfig
from trainers.data import facts
from trainers.data.clips import DatasetError, NotHereYet, ReadableDataset
from trainers.data.formats import hub, open_dataset, repository
from trainers.data.ledger import ledger
from trainers.families import get_family, parse_config

FAMILY = get_family("animatediff")
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def film(tmp_path_factory) -> Path:
    """31 frames at 8 fps, 64 x 64."""
    return films.plain(tmp_path_factory.mktemp("source") / "film.mp4", count=31)


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch) -> Path:
    """A home and a cache of the Hub of the test's own."""
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(folder / "hub"))
    facts._memory.cache_clear()
    repository._downloaded.cache_clear()
    return folder


@pytest.fixture
def put(tmp_path, film):
    """Write files below a folder: texts as they are given, the film where None is; gives the folder."""

    def write(files: dict[str, str | None], folder: str = "set") -> Path:
        for name, text in files.items():
            file = tmp_path / folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(_content(name, text, film))
        return tmp_path / folder

    return write


def _content(name: str, text: str | None, film: Path) -> bytes:
    return film.read_bytes() + b"\0\0\0\x20free" + name.encode()[:24].ljust(24) if text is None else text.encode()


def rows(*lines: dict) -> str:
    return "".join(json.dumps(line) + "\n" for line in lines)


def dataset(path: Path | str, *, fetch: bool = True, **values) -> ReadableDataset:
    return open_dataset(DatasetConfig(path=str(path), format="hub", **values), fetch=fetch)


def pairs(found: ReadableDataset) -> list[tuple[str, str]]:
    return [(clip.file_name, clip.text) for clip in found.clips]


def config_of(path: Path | str, **values) -> TrainConfig:
    section = {"path": str(path), "format": "hub", "num_frames": 16, "height": 64, "width": 64, **values}
    return parse_config({"family": FAMILY.name, "method": "motion_module", "base_model": "b", "dataset": section})


def refused(path: Path | str, **values) -> DatasetError:
    with pytest.raises(DatasetError) as caught:
        dataset(path, **values)
    assert "\n" not in str(caught.value)
    return caught.value


# --- tables in folders -----------------------------------------------------------------------------------------------

META = rows({"file_name": "a.mp4", "text": " one "}, {"file_name": "b/c.mp4", "text": "two"})


@pytest.mark.parametrize(
    ("files", "values"),
    [
        ({"metadata.jsonl": META}, {}),
        ({"metadata.csv": "file_name,text\na.mp4,one\n\nb/c.mp4,two\n"}, {}),
        ({"metadata.csv": "\ufeffvideo_file_name, text\r\na.mp4,one\r\nb/c.mp4,two\r\n"}, {}),
        ({"list.csv": 'clip,said\na.mp4,one\n"b/c.mp4",two\n'}, {"video_column": "clip", "caption_column": "said"}),
        ({"rows.jsonl": rows({"video": {"path": "a.mp4"}, "text": "one"}, {"video": "b/c.mp4", "text": "two"})}, {}),
        ({"metadata.jsonl": META, "other.csv": "x\n1\n", ".cache/metadata.csv": "x\n"}, {}),
        ({"metadata.jsonl": META, "test/metadata.jsonl": rows({"file_name": "z.mp4", "text": "no"})}, {}),
        ({"train.csv": "video,text\na.mp4,one\nb/c.mp4,two\n", "validation.csv": "video,text\nz.mp4,no\n"}, {}),
        ({"p/metadata.jsonl": rows({"file_name": "../a.mp4", "text": "one"}, {"file_name": "b/c.mp4", "text": "two"})},
         {"hub_config": "p"}),
        ({"README.md": "---\nconfigs:\n- config_name: x\n  data_files: x.csv\n- config_name: default\n  data_files:\n"
          "  - split: test\n    path: '*.jsonl'\n  - split: train\n    path: [t/r*.csv]\n---\n# Clips\n",
          "t/rows.csv": "video,text\na.mp4,one\nb/c.mp4,two\n", "metadata.jsonl": "no table of ours"}, {}),
        ({"README.md": "---\nconfigs:\n- config_name: small\n  data_dir: t\n---\n",
          "t/rows.csv": "video,text\na.mp4,one\nb/c.mp4,two\n", "metadata.jsonl": "not asked for"},
         {"hub_config": "small"}),
        ({"videos.txt": "a.mp4\nb/c.mp4\n", "prompt.txt": "one\ntwo\n"}, {}),
    ],
)  # fmt: skip
def test_tables_as_the_hub_has_them(put, files, values):
    folder = put({"a.mp4": None, "b/c.mp4": None, **files})
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    found = dataset(folder, **values)
    assert [clip.text for clip in found.clips] == ["one", "two"]
    assert [found.file(clip).resolve() for clip in found.clips] == [folder / "a.mp4", folder / "b" / "c.mp4"]
    assert all(clip.num_frames == 31 for clip in found.clips)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_a_table_may_be_named_itself(put):
    folder = put({"a.mp4": None, "my.csv": "video,text\na.mp4,one\n", "other.csv": "x\n"})
    assert pairs(dataset(folder / "my.csv")) == [("a.mp4", "one")]
    assert "is no table of videos; dataset.format hub reads .jsonl, .csv or .parquet" in str(refused(folder / "a.mp4"))


def test_videos_may_lie_elsewhere(put):
    folder = put({"metadata.csv": "video,text\na.mp4,one\ngone.mp4,two\n"})
    videos = put({"a.mp4": None}, "elsewhere")
    found = dataset(folder, video_folder=str(videos))
    assert pairs(found) == [("a.mp4", "one"), ("gone.mp4", "two")]
    config = config_of(folder, video_folder=str(videos))
    (_, row) = ledger(found, config, FAMILY)
    assert row.reason == (
        f"gone.mp4 is missing: there is no file {videos / 'gone.mp4'}; put it there, or take row 2 out of metadata.csv"
    )
    error = refused(folder)
    assert error.where == "dataset.video_folder"
    assert str(error) == (
        f"none of the 2 videos that {folder / 'metadata.csv'} names is in {folder} (such as a.mp4); set "
        "dataset.video_folder to the folder from which they count"
    )
    error = refused(folder, video_folder=str(folder / "none"))
    assert (str(error), error.where) == (
        f"the folder of the videos, {folder / 'none'}, does not exist",
        "dataset.video_folder",
    )


def test_only_the_first_clips_are_taken(put):
    lines = [{"file_name": f"{k}.mp4", "text": str(k)} for k in range(5)]
    folder = put({"metadata.jsonl": rows(*lines), "0.mp4": None, "2.mp4": None, "3.mp4": None})
    assert [clip.text for clip in dataset(folder, max_clips=2).clips] == ["0", "1", "2"]


def test_rows_that_cannot_be_used_stay_with_a_sentence(put):
    lines = [{"file_name": "a.mp4", "text": "x"}, {"file_name": " ", "text": "y"}, {"text": "z"}]
    lines += [{"file_name": "a.mp4", "text": ["no"]}, {"file_name": "a.mp4", "text": None}]
    folder = put({"metadata.jsonl": rows(*lines), "a.mp4": None})
    found = dataset(folder)
    reasons = [row.reason for row in ledger(found, config_of(folder), FAMILY)]
    assert reasons == [
        "",
        "row 2 of metadata.jsonl names no video; take it out",
        "row 3 of metadata.jsonl names no video; take it out",
        "the caption in row 4 of metadata.jsonl is not a text",
        "has no caption: it trains with an empty one",
    ]


BAD = {
    "nothing": ({"a.txt": "x"}, "has no table of videos: no metadata.jsonl, metadata.csv", "dataset.path"),
    "empty": ({"metadata.csv": ""}, "has no rows", "dataset.path"),
    "no rows": ({"metadata.csv": "video,text\n"}, "has no rows", "dataset.path"),
    "no videos": ({"metadata.csv": "clip,text\na,b\n"}, "has no column video of videos; its columns: clip, text; set",
                  "dataset.video_column"),
    "no captions": ({"metadata.jsonl": rows({"file_name": "a", "said": "b"})},
                    "has no column text of captions; its columns: file_name, said; set", "dataset.caption_column"),
    "no JSON": ({"metadata.jsonl": '{"file_name": "a", "text": "b"}\n\n{'}, "line 3, is not JSON", "dataset.path"),
    "no object": ({"metadata.jsonl": "[]\n"}, "line 1, is not an object", "dataset.path"),
    "a huge field": ({"metadata.csv": "video,text\n" + "x" * 200_000}, "field larger than", "dataset.path"),
    "tests only": ({"test.csv": "video,text\na.mp4,b\n"}, "has no table of videos", "dataset.path"),
    "a damaged table": ({"metadata.parquet": "PAR1"}, "parquet", "dataset.path"),
    "a card without train": ({"README.md": "---\nconfigs:\n- data_files:\n  - split: test\n    path: a.csv\n---\n"},
                             "its card names no files for train", "dataset.path"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_table_is_one_sentence_that_names_it(put, kind):
    files, words, where = BAD[kind]
    error = refused(put(files))
    assert words in str(error)
    assert error.where == where


def test_a_table_that_is_not_utf8(put):
    folder = put({"metadata.csv": ""})
    (folder / "metadata.csv").write_bytes("video,text\nä.mp4,x\n".encode("latin-1"))
    assert str(refused(folder)) == f"{folder / 'metadata.csv'} is not UTF-8; save it as UTF-8"
    (folder / "metadata.csv").rename(folder / "metadata.jsonl")
    assert str(refused(folder)) == f"{folder / 'metadata.jsonl'} is not UTF-8; save it as UTF-8"


def test_a_part_that_is_not_there(put):
    folder = put({"README.md": "---\nconfigs:\n- config_name: small\n- config_name: large\n---\n", "metadata.csv": ""})
    error = refused(folder, hub_config="tiny")
    assert (str(error), error.where) == (
        f"{folder} has no part 'tiny'; it has small, large",
        "dataset.hub_config",
    )
    other = put({"metadata.csv": "video,text\na,b\n"}, "other")
    assert f"{other} has no table of videos in its part tiny" in str(refused(other, hub_config="tiny"))


@pytest.mark.skipif(find_spec("pyarrow") is not None, reason="pyarrow is installed")
def test_parquet_without_its_package_names_it(put):
    error = refused(put({"data/train-00000.parquet": "PAR1"}))
    assert str(error) == "train-00000.parquet is a parquet file, which needs the package pyarrow: pip install pyarrow"


def test_videos_within_a_parquet_file(tmp_path, film, home):
    """As `datasets` uploads them: a structure of bytes and path. They are taken out once."""
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    videos = [{"bytes": _content(f"{k}", None, film), "path": f"{k}.mp4"} for k in range(6)]
    (tmp_path / "set" / "data").mkdir(parents=True)
    table = pyarrow.table({"video": [*videos, {"bytes": None, "path": "x.mp4"}], "text": [str(k) for k in range(7)]})
    parquet.write_table(table, tmp_path / "set" / "data" / "train-00000-of-00001.parquet")
    values = {"cache_dir": str(tmp_path / "cache")}
    with pytest.raises(NotHereYet, match="holds the videos themselves; the run will take them out of it"):
        dataset(tmp_path / "set", fetch=False, **values)
    found = dataset(tmp_path / "set", max_clips=2, **values)
    assert [(clip.text, clip.num_frames) for clip in found.clips] == [("0", 31), ("1", 31)]
    assert len(list((tmp_path / "cache").rglob("*.mp4"))) == 2
    taken = {file: file.stat().st_mtime_ns for file in (tmp_path / "cache").rglob("*.mp4")}
    assert pairs(dataset(tmp_path / "set", fetch=False, max_clips=2, **values)) == pairs(found)
    found = dataset(tmp_path / "set", **values)
    assert [clip.text for clip in found.clips] == [str(k) for k in range(7)]
    assert "x.mp4 is missing" in (found.problem(found.clips[6]) or "")
    assert {file: file.stat().st_mtime_ns for file in taken} == taken
    plain = pyarrow.table({"video": ["a.mp4"], "text": ["one"]})
    (tmp_path / "plain").mkdir()
    parquet.write_table(plain, tmp_path / "plain" / "metadata.parquet")
    (tmp_path / "plain" / "a.mp4").write_bytes(film.read_bytes())
    assert pairs(dataset(tmp_path / "plain")) == [("a.mp4", "one")]


# --- the Hub ---------------------------------------------------------------------------------------------------------


class Server:
    """The few answers of the Hub that fetching a dataset needs. files: content by path; refuse: (status, code)."""

    def __init__(self, files: dict[str, bytes], refuse: tuple[int, str] | None = None) -> None:
        self.sent: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self, body: bytes, status: int = 200, **headers: str) -> None:
                self.send_response(status)
                for name, value in {"Content-Length": str(len(body)), **headers}.items():
                    self.send_header(name.replace("_", "-"), value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            def do_GET(self) -> None:
                path = unquote(urlsplit(self.path).path)
                if refuse:
                    return self.answer(b"{}", refuse[0], X_Error_Code=refuse[1])
                if path.startswith("/api/") and "/tree/" in path:
                    tree = [
                        {"type": "file", "path": name, "size": len(data), "oid": f"{number:040x}"}
                        for number, (name, data) in enumerate(files.items())
                    ]
                    return self.answer(json.dumps(tree).encode(), Content_Type="application/json")
                if path.startswith("/api/"):
                    facts = {"id": "owner/clips", "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]}
                    return self.answer(json.dumps(facts).encode(), Content_Type="application/json")
                name = path.partition(f"/resolve/{COMMIT}/")[2]
                if self.command == "GET":
                    outer.sent.append(name)
                number = list(files).index(name)
                return self.answer(files[name], ETag=f'"{number:040x}"', X_Repo_Commit=COMMIT)

            do_HEAD = do_GET

            def log_message(self, *arguments: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()


@pytest.fixture
def serve(monkeypatch, film) -> Iterator:
    """Begin a Hub of these files and make it the one that is asked."""
    servers = []

    def begin(files: dict[str, str | None], refuse: tuple[int, str] | None = None) -> Server:
        server = Server({name: _content(name, text, film) for name, text in files.items()}, refuse)
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.address)
        monkeypatch.setattr(
            huggingface_hub.constants,
            "HUGGINGFACE_CO_URL_TEMPLATE",
            server.address + "/{repo_id}/resolve/{revision}/{filename}",
        )
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        servers.append(server)
        return server

    yield begin
    for server in servers:
        server.http.shutdown()
        server.http.server_close()


def test_a_dataset_is_fetched_by_its_id(serve, monkeypatch):
    server = serve(
        {
            "README.md": "# Clips",
            "train/metadata.jsonl": rows({"file_name": "a.mp4", "text": "one"}, {"file_name": "b.mp4", "text": "two"}),
            "train/a.mp4": None,
            "train/b.mp4": None,
            "test/metadata.jsonl": rows({"file_name": "z.mp4", "text": "no"}),
            "test/z.mp4": None,
            "huge.bin": "not asked for",
        }
    )
    with pytest.raises(NotHereYet) as caught:
        dataset("owner/clips", fetch=False)
    assert str(caught.value) == (
        "owner/clips is no folder on this machine; the run will look for it on the Hugging Face Hub and fetch it"
    )
    assert not server.sent
    found = dataset("owner/clips", max_clips=1)
    assert pairs(found) == [("a.mp4", "one")]
    assert sorted(server.sent) == ["README.md", "test/metadata.jsonl", "train/a.mp4", "train/metadata.jsonl"]
    with pytest.raises(NotHereYet):
        dataset("owner/clips", fetch=False)  # the second video is not here
    found = dataset("owner/clips")
    assert (found.name, pairs(found)) == ("clips", [("a.mp4", "one"), ("b.mp4", "two")])
    assert sorted(server.sent)[2:] == ["train/a.mp4", "train/b.mp4", "train/metadata.jsonl"]
    found.reload()
    assert len(server.sent) == 5
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    repository._downloaded.cache_clear()
    for fetch in (True, False):
        assert pairs(dataset("owner/clips", fetch=fetch)) == pairs(found), "what was fetched is there without a network"


def test_two_lists_on_the_hub(serve):
    server = serve({"videos.txt": "videos/a.mp4\n", "prompts.txt": "one\n", "videos/a.mp4": None, "weights.bin": "x"})
    assert pairs(dataset("owner/clips")) == [("videos/a.mp4", "one")]
    assert "weights.bin" not in server.sent


def test_videos_of_ones_own_with_a_table_from_the_hub(serve, put):
    server = serve({"list.csv": "video,text\na.mp4,one\n", "a.mp4": None})
    videos = put({"a.mp4": None}, "mine")
    found = dataset("owner/clips", video_folder=str(videos))
    assert found.file(found.clips[0]) == videos / "a.mp4"
    assert server.sent == ["list.csv"]


def test_a_table_from_the_hub_leads_nowhere_else(serve, film):
    secret = str(film)
    serve({"list.csv": f"video,text\na.mp4,one\n{secret},two\n../../../x.mp4,three\n", "a.mp4": None})
    found = dataset("owner/clips")
    assert [found.problem(clip) for clip in found.clips] == [
        None,
        f"{secret} leads out of the dataset; the row is not used",
        "../../../x.mp4 leads out of the dataset; the row is not used",
    ]


@pytest.mark.parametrize(
    ("refuse", "words"),
    [
        ((404, "RepoNotFound"), "there is no folder or file owner/clips on this machine, and no dataset of that name "
         "on the Hugging Face Hub; correct dataset.path, or log in with hf auth login if it is private"),
        ((403, "GatedRepo"), "dataset owner/clips is gated on the Hugging Face Hub; accept its terms at "
         "https://huggingface.co/datasets/owner/clips and log in with hf auth login"),
    ],
)  # fmt: skip
def test_what_the_hub_does_not_give_is_one_sentence(serve, refuse, words):
    serve({}, refuse)
    assert str(refused("owner/clips")) == words


def test_what_is_cut_off_is_one_sentence(serve):
    serve({"list.csv": "video,text\na.mp4,one\n", "a.mp4": None}, (400, ""))
    assert "owner/clips" in str(refused("owner/clips"))


def test_without_a_network_there_is_one_sentence(tmp_path):
    assert str(refused("owner/clips")) == (
        "there is no folder or file owner/clips on this machine, and the Hugging Face Hub cannot be reached for it; "
        "give a folder, or fetch the dataset while there is a network"
    )
    for name in (str(tmp_path / "no"), "a/b/c", "with space"):
        assert "does not exist, and is no id of a dataset" in str(refused(name))
    assert "owner--clips" in str(refused("owner--clips"))


def test_many_videos_are_fetched_by_their_folders(tmp_path):
    table = tmp_path / "metadata.csv"
    some = [hub._Row(f"v/[{k}].mp4", "", table, k) for k in range(3)]
    assert hub._patterns(some, tmp_path) == ["v/[[]0].mp4", "v/[[]1].mp4", "v/[[]2].mp4"]
    many = [hub._Row(f"v{k % 2}/{k}.mp4", "", table, k) for k in range(500)]
    assert hub._patterns(many, tmp_path) == ["v0/*", "v1/*"]
