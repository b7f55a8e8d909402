import os
import shutil
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from studio import workspace as workspace_module
from studio.workspace import Workspace, WorkspaceError
from trainers.data.video import VideoError
from trainers.families import get_family, load_config, parse_config, parse_sample_config
from trainers.runs import RunFolder
from trainers.settings import read_yaml

posix = pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege on Windows")


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "ws")


def train_config():
    return parse_config(
        {"family": "animatediff", "method": "motion_module", "base_model": "b", "dataset": {"path": "d"}}
    )


def sample_config():
    return parse_sample_config({"family": "animatediff", "base_model": "b", "prompts": ["a"]})


def add_checkpoint(folder: RunFolder, step: int, validation_loss: float | None = None) -> None:
    with folder.new_checkpoint(step) as path:
        value = "null" if validation_loss is None else validation_loss
        (path / "meta.json").write_text(f'{{"step": {step}, "validation_loss": {value}}}')


# --- names


@pytest.mark.parametrize(
    ("title", "name"),
    [
        ("Orbit shots", "orbit-shots"),
        ("  Ünïcode & Ko. ", "unicode-ko"),
        ("../../etc/passwd", "etc-passwd"),
        ("${alert(1)}", "alert-1"),
        ("вращение", "clips"),
        ("", "clips"),
        ("x" * 300, "x" * 40),
        ("CON", "con-2"),
    ],
)
def test_a_title_becomes_a_name_of_our_own_characters(workspace, title, name):
    dataset = workspace.new_dataset(title)
    assert workspace.datasets() == [name]
    assert dataset.path.resolve() == workspace.root / "datasets" / name


def test_a_taken_name_is_numbered(workspace):
    for _ in range(3):
        workspace.new_dataset("Orbit")
    assert workspace.datasets() == ["orbit", "orbit-2", "orbit-3"]


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../runs", "a/b", "a\\b", "/etc", ".hidden", "a\0b", "C:x", None, "a" * 101]
)
def test_no_name_leads_out_of_its_folder(workspace, name):
    for find in (workspace.dataset, workspace.delete_dataset, workspace.run):
        with pytest.raises(WorkspaceError, match="is not the name of a"):
            find(name)


def test_unknown_names_are_answered_with_the_known_ones(workspace):
    workspace.new_dataset("orbit")
    with pytest.raises(WorkspaceError, match="no dataset pan; known: orbit"):
        workspace.dataset("pan")
    with pytest.raises(WorkspaceError, match="no run pan-0001"):
        workspace.run("pan-0001")


def test_a_deleted_dataset_is_gone_and_its_name_free(workspace):
    workspace.new_dataset("orbit")
    workspace.delete_dataset("orbit")
    assert workspace.datasets() == [] and list((workspace.root / "datasets").iterdir()) == []
    assert workspace.new_dataset("orbit").path.name == "orbit"


@posix
def test_of_a_linked_dataset_only_the_link_is_deleted(workspace, tmp_path):
    disk = workspace.new_dataset("orbit").path.rename(tmp_path / "disk")
    (workspace.root / "datasets" / "far").symlink_to(disk)
    workspace.delete_dataset("far")
    assert workspace.datasets() == [] and (disk / "metadata.jsonl").exists()


def test_a_place_that_cannot_be_a_workspace_is_named(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(WorkspaceError, match="file cannot be a workspace"):
        Workspace(file)


# --- runs


def test_a_run_holds_its_config_and_nothing_else(workspace):
    config = train_config()
    run = workspace.new_run(config, "Orbit LoRA")
    assert run.id == "orbit-lora-0001"
    assert [path.name for path in run.path.iterdir()] == ["config.yaml"]
    assert load_config(run.config) == config
    assert workspace.run(run.id).path == run.path


def test_runs_are_listed_newest_first_with_what_they_are(workspace):
    train = workspace.new_run(train_config(), "Orbit")
    wall = workspace.new_run(sample_config(), "First look")
    os.utime(train.config, (1000, 1000))
    os.utime(wall.config, (2000, 2000))
    first, second = workspace.runs()
    assert (first.id, first.kind, first.title, first.created) == ("first-look-0002", "sample", "First look 2", 2000)
    assert (second.id, second.kind, second.family, second.method) == (
        "orbit-0001", "train", "animatediff", "motion_module",
    )  # fmt: skip
    assert [info.id for info in workspace.runs("train")] == [train.id]
    assert [info.id for info in workspace.runs("sample")] == [wall.id]


def test_a_run_with_a_broken_config_is_listed_not_hidden(workspace):
    run = workspace.new_run(train_config(), "Orbit")
    run.config.write_text("family: [")
    (info,) = workspace.runs()
    assert (info.id, info.kind, info.family) == (run.id, "train", "unknown")
    run.config.write_text("family: mended\n")
    os.utime(run.config, (3000, 3000))
    assert workspace.runs()[0].family == "mended"


def test_many_runs_are_listed_quickly_the_second_time(workspace):
    text = workspace.new_run(train_config(), "Orbit").config.read_text()
    for number in range(2, 202):
        folder = workspace.root / "runs" / f"orbit-{number:04d}"
        folder.mkdir()
        RunFolder(folder).config.write_text(text)
    assert len(workspace.runs()) == 201
    start = time.perf_counter()
    workspace.runs()
    assert time.perf_counter() - start < 0.5  # 0.02 s where it was written


def test_takes_are_the_checkpoints_of_training_runs(workspace):
    older, newer = workspace.new_run(train_config(), "Orbit"), workspace.new_run(train_config(), "Orbit")
    workspace.new_run(sample_config(), "Wall")
    os.utime(older.config, (1000, 1000))
    add_checkpoint(older, 10)
    for step, loss in ((10, 0.5), (20, 0.3), (30, 0.4)):
        add_checkpoint(newer, step, loss)
    newer.wish("star", step=30)
    takes = workspace.takes()
    assert [take.label for take in takes] == [
        "orbit-0002, step 30 (starred)",
        "orbit-0002, step 20 (best)",
        "orbit-0002, step 10",
        "orbit-0001, step 10",
    ]
    assert [(take.best, take.starred) for take in takes] == [
        (False, True),
        (True, False),
        (False, False),
        (False, False),
    ]
    assert takes[0].path == newer.path / "checkpoints" / "step-000030" and takes[0].run_id == newer.id


# --- models


def test_models_are_found_by_what_lies_in_them(workspace):
    def write(path: str, text: str) -> None:
        file = workspace.models / path
        file.parent.mkdir(parents=True)
        file.write_text(text)

    write("tiny/model_index.json", "{}")
    write("org/base/model_index.json", "{}")
    write("a/b/too-deep/model_index.json", "{}")
    write("tiny/motion_adapter/config.json", '{"_class_name": "MotionAdapter"}')
    write("tiny/unet/config.json", '{"_class_name": "UNet2DConditionModel"}')
    write("broken/config.json", "{")
    write("org/base/transformer/config.json", '{"in_channels": 16}')
    write("neither/model_index.json", "{}")
    animatediff, cogvideox = get_family("animatediff"), get_family("cogvideox")
    assert workspace.base_models(animatediff) == [str(workspace.models / "tiny")]
    assert workspace.base_models(cogvideox) == [str(workspace.models / "org" / "base")]
    assert workspace.motion_adapters() == [str(workspace.models / "tiny" / "motion_adapter")]


# --- media


@pytest.fixture
def clip(workspace) -> Path:
    path = workspace.new_dataset("orbit").path / "clips" / "a.mp4"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"not shown, only served")
    return path


def refused(workspace: Workspace, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        path.write_text("")
    with pytest.raises(WorkspaceError):
        workspace.media(path)


def test_media_of_a_clip_and_of_a_sample(workspace, clip):
    assert workspace.media(clip) == {"path": str(clip), "meta": {"_type": "gradio.FileData"}}
    run = workspace.new_run(train_config(), "Orbit")
    sample = run.sample_dir(10) / "0.mp4"
    sample.parent.mkdir(parents=True)
    sample.write_bytes(b"")
    assert workspace.media(sample)["path"] == str(sample)


def test_only_media_folders_are_served(workspace, clip):
    root = workspace.root
    run = workspace.new_run(train_config(), "Orbit").path
    for path in (
        root / "studio.db", root / "a.mp4", root / "datasets" / "a.mp4", root / "datasets" / "orbit" / "metadata.jsonl",
        root / "datasets" / "orbit" / "a.mp4", root / "datasets" / ".x" / "clips" / "a.mp4", run / "config.yaml",
        run / "checkpoints" / "a.mp4", root / "cache" / "x" / "samples" / "a.mp4", root.parent / "a.mp4",
        clip.with_name("page.html"), clip.with_name("image.svg"),
    ):  # fmt: skip
        refused(workspace, path)
    refused(workspace, clip.parent / ".." / ".." / ".." / "studio.db")
    with pytest.raises(WorkspaceError, match="no longer there"):
        workspace.media(clip.with_name("gone.mp4"))


@posix
def test_links_inside_a_media_folder_do_not_lead_out(workspace, clip, tmp_path):
    secret = tmp_path / "secret.mp4"
    secret.write_text("")
    link = clip.with_name("link.mp4")
    link.symlink_to(secret)
    refused(workspace, link)
    shutil.rmtree(clip.parent)
    clip.parent.symlink_to(tmp_path)
    refused(workspace, clip.parent / "secret.mp4")


@posix
def test_a_dataset_on_another_disk_is_served_from_its_true_place(workspace, clip, tmp_path):
    disk = tmp_path / "disk"
    clip.parent.parent.rename(disk)
    (workspace.root / "datasets" / "orbit").symlink_to(disk)
    assert workspace.media(clip)["path"] == str(disk / "clips" / "a.mp4")


def test_gradio_serves_media_in_place_even_when_registered_late(workspace, clip, tmp_path, monkeypatch):
    import gradio as gr
    import httpx
    from gradio_client import Client

    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    (clip.parent.parent / "private.mp4").write_text("")
    with gr.Blocks(analytics_enabled=False) as page:
        shown = gr.HTML()
        gr.Button().click(lambda: {"clips": [workspace.media(clip)]}, outputs=shown, api_name="show")
    page.launch(prevent_thread_lock=True, quiet=True, server_name="127.0.0.1", run_history=False)
    try:
        client = Client(page.local_url, verbose=False, download_files=False)
        (value,) = client.predict(api_name="/show")["clips"]
        assert value["path"] == str(clip)
        assert list((tmp_path / "gradio").rglob("*.mp4")) == []
        found = httpx.get(f"{page.local_url}gradio_api/file={clip}", headers={"Range": "bytes=0-9"})
        assert (found.status_code, found.content) == (206, clip.read_bytes()[:10])
        for other in (clip.parent.parent / "private.mp4", clip.parent.parent / "metadata.jsonl", workspace.db):
            assert httpx.get(f"{page.local_url}gradio_api/file={other}").status_code == 403
    finally:
        page.close()


# --- the demo


@pytest.fixture
def small_demo(tmp_path, monkeypatch) -> Path:
    """A project with a demo of the same shape, so that this test does not wait for the real one to be copied."""
    demo = tmp_path / "project" / "examples" / "demo"
    for name in ("dataset/clips/a.mp4", "dataset/metadata.jsonl", "base/model_index.json", "base/unet/config.json",
                 "base/inner/config.json"):  # fmt: skip
        (demo / name).parent.mkdir(parents=True, exist_ok=True)
        (demo / name).write_text("{}")
    (demo / "orbit.yaml").write_text(
        "family: animatediff\nmethod: lora\nbase_model: examples/demo/base\n"
        "motion_adapter: examples/demo/base/inner\ndataset:\n  path: examples/demo/dataset\n"
    )
    monkeypatch.setattr(workspace_module, "PROJECT", tmp_path / "project")
    return demo


def test_the_demo_is_copied_once_and_edits_stay(workspace, small_demo):
    workspace.add_demo()
    copy = workspace.root / "datasets" / "orbit"
    (copy / "metadata.jsonl").write_text("edited")
    workspace.add_demo()
    assert workspace.datasets() == ["orbit"]
    assert (copy / "metadata.jsonl").read_text() == "edited" and (copy / "clips" / "a.mp4").exists()
    assert workspace.base_models(get_family("animatediff")) == [str(workspace.models / "demo")]


def test_pictures_are_kept_by_what_they_show(workspace, tmp_path):
    red, same, blue = tmp_path / "red.png", tmp_path / "same.bmp", tmp_path / "blue.jpg"
    for file, colour in ((red, "red"), (same, "red"), (blue, "blue")):
        Image.new("RGB", (40, 30), colour).save(file)
    kept = workspace.add_image(red)
    assert kept.parent == workspace.root / "images" and kept == workspace.add_image(same) != workspace.add_image(blue)
    assert len(list(workspace.images.iterdir())) == 2
    assert Image.open(kept).getpixel((0, 0)) == (255, 0, 0)
    assert workspace.has_image(str(kept))
    for file in (red, kept.with_name("0" * 64 + ".png"), workspace.images / ".." / "images" / kept.name, kept.name):
        assert not workspace.has_image(str(file))
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(VideoError, match=r"text\.png is neither"):
        workspace.add_image(tmp_path / "text.png")
    with pytest.raises(WorkspaceError):
        workspace.media(kept)  # the page shows them in small, and never serves the folder


def test_the_demos_run_uses_the_copies_and_the_shared_cache(workspace, small_demo):
    config = workspace.demo_config()
    assert config.dataset.path == str(workspace.root / "datasets" / "orbit")
    assert config.base_model == str(workspace.models / "demo")
    assert config.motion_adapter == str(workspace.models / "demo" / "inner")
    assert config.dataset.cache_dir == str(workspace.root / "cache")


def test_a_missing_demo_is_said(workspace, small_demo):
    shutil.rmtree(small_demo)
    with pytest.raises(WorkspaceError, match="not part of this installation"):
        workspace.add_demo()
    with pytest.raises(WorkspaceError, match="not part of this installation"):
        workspace.demo_config()
    assert workspace.datasets() == []


def test_the_real_demo(workspace, root):
    workspace.add_demo()
    config = workspace.demo_config()
    assert len(workspace.dataset("orbit").clips) >= 3
    assert workspace.base_models(get_family(config.family)) == [config.base_model]
    given = read_yaml(root / "examples" / "demo" / "orbit.yaml")
    assert config.max_train_steps == given["max_train_steps"]
