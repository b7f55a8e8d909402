"""Pictures that clips begin from: a row of them in the order of the prompts, and how they look in small."""

from __future__ import annotations

import base64
import functools
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from studio.parts import part
from studio.workspace import PROJECT, Workspace, WorkspaceError
from trainers.data.clips import DatasetError
from trainers.data.images import file_for_each, read_image
from trainers.data.video import VideoError

#: Long side of a picture on the page, in pixels.
_SIDE = 240


def picture_row(shown: dict[str, Any], **settings: Any) -> Any:
    """The part, with `pictures_value`. Events `earlier` and `remove`, each with the data {"place": number}."""
    return part("pictures", shown, **settings)


def pictures_value(files: Sequence[str], prompts: Sequence[str], problem: str) -> dict[str, Any]:
    """What the row shows of each file: how it looks, its name where that cannot be shown, and what it is for.

    problem: what is wrong with them, in a sentence, or nothing.
    """
    single = len(files) == 1 and len(prompts) != 1
    shown = []
    for place, file in enumerate(files):
        whose = prompts[place] if place < len(prompts) else "no prompt"
        shown.append({"look": thumbnail(file), "name": Path(file).name, "for": "all prompts" if single else whose})
    return {"pictures": shown, "problem": problem}


def thumbnail(file: str) -> str:
    """A file's picture in small, as an address that holds it (data:); empty where there is none to be read.

    For files that a config on disk names, or that the workspace made: what it shows is seen by whoever sees the page.
    """
    path = PROJECT / Path(file).expanduser()
    try:
        facts = path.stat()
    except OSError:
        return ""
    return _small(path, facts.st_size, facts.st_mtime_ns)


def looks_of(files: Sequence[str], prompts: int, times: int) -> list[str]:
    """What stands beside the rows of a wall, `times` for each prompt: its image in small, or nothing."""
    looks = [thumbnail(file) for file in file_for_each(files, prompts)] or [""] * prompts
    return [look for look in looks for _ in range(times)]


@functools.lru_cache(maxsize=256)
def _small(path: Path, size: int, mtime_ns: int) -> str:
    """Remembered until the file's size or time is another."""
    try:
        picture = Image.fromarray(read_image(path))
    except VideoError:
        return ""
    picture.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    data = io.BytesIO()
    picture.save(data, "WEBP", quality=80)
    return "data:image/webp;base64," + base64.b64encode(data.getvalue()).decode()


@dataclass(frozen=True)
class PictureRoom:
    """Where the pictures of a form are looked at and chosen: the row, an upload, and the clips of a dataset."""

    room: gr.Column
    row: Any
    upload: gr.UploadButton
    clips: gr.Dropdown


def picture_room(prefix: str, visible: bool, shown: dict[str, Any], clips: dict[str, Any]) -> PictureRoom:
    """Draw the row with the two ways to add to it. Element ids are `prefix`-images and the like.

    shown: `pictures_value`. clips: `offered_clips`."""
    with gr.Column(visible=visible, min_width=0, elem_classes=["wide", "pictures-room"]) as room:
        row = picture_row(shown, elem_id=f"{prefix}-images")
        with gr.Row(elem_classes="actions"):
            upload = gr.UploadButton(
                "Upload images", file_count="multiple", file_types=["image", "video"], size="md",
                elem_id=f"{prefix}-upload",
            )  # fmt: skip
            offered = gr.Dropdown(**clips, elem_id=f"{prefix}-clips")
    return PictureRoom(room, row, upload, offered)


def offered_clips(workspace: Workspace, dataset: str | None) -> dict[str, Any]:
    """Settings of `PictureRoom.clips`: the clips of a dataset by their captions, none chosen."""
    try:
        clips = workspace.dataset(dataset).clips if dataset else ()
    except (WorkspaceError, DatasetError):
        clips = ()
    choices = [(clip.text or clip.name, clip.file_name) for clip in clips]
    label = f"Or the first frame of a clip of {dataset}"
    return {"choices": choices, "value": None, "label": label, "visible": bool(choices)}
