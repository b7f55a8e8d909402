"""sidecar: a folder of videos with captions beside them, ``a.txt`` or ``a.json`` for ``a.mp4``.

The JSON is that of tumurzakov's dataset classes: an object with ``prompt``, or with ``sample`` whose ``prompt`` it is.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

from trainers.config import DatasetConfig
from trainers.data.clips import DatasetError, ReadableDataset
from trainers.data.originals import Entry, first, is_file, is_there, located, place

_CAPTIONS = (".txt", ".json")
_OURS = "metadata.jsonl"
#: What another trainer has encoded lies beside the videos that it came from.
_ENCODED = (".latent.pt", ".embed.pt")


def read(config: DatasetConfig, root: Path) -> list[Entry]:
    """The videos of the folder: all files but captions and hidden ones, numbered names by number, then the rest by
    name. Where both captions stand there, the text counts. Captions without a video come last, to be told of."""
    folder, files = files_of(config, root)
    captions = [path for path in files if path.suffix.lower() in _CAPTIONS]
    found = (path for path in files if path.suffix.lower() not in _CAPTIONS and path.name != _OURS)
    videos = sorted((path for path in found if not path.name.endswith(_ENCODED)), key=place_of(folder))
    if not videos:
        ours = any(path.name == _OURS for path in files)
        hint = "; it is a dataset of Dailies: set dataset.format to dailies" if ours else ""
        where = "" if config.subfolders else "; they are looked for in the folder itself, not below it"
        raise DatasetError(f"folder {folder} holds no videos{where}{hint}")
    there = set(files)
    taken = first(videos, lambda path: True, config.max_clips)
    stems = {path.with_suffix("") for path in videos}
    alone = sorted(path for path in captions if path.with_suffix("") not in stems)
    return [
        *(_entry(path, there, path.relative_to(folder).as_posix()) for path in taken),
        *(_without_video(path, folder) for path in alone),
    ]


def files_of(config: DatasetConfig, root: Path) -> tuple[Path, list[Path]]:
    """The folder that a config names and its files, but hidden ones; with `dataset.subfolders` those below as well."""
    folder = located(root, config.path)
    if not is_there(folder):
        raise DatasetError(f"folder {folder} does not exist")
    if is_file(folder):
        raise DatasetError(f"{folder} is a file; dataset.format {config.format} needs the folder of the videos")

    def failed(error: OSError) -> None:
        raise error

    files: list[Path] = []
    try:
        for parent, below, names in os.walk(folder, onerror=failed):
            below[:] = [name for name in below if not name.startswith(".")] if config.subfolders else []
            files += [Path(parent, name) for name in names if not name.startswith(".")]
        return folder, [file for file in files if file.is_file()]
    except OSError as error:
        raise DatasetError(f"folder {error.filename or folder} cannot be read: {error.strerror or error}") from error


def write(dataset: ReadableDataset, folder: Path) -> Path:
    """A new folder with the videos of a dataset and a text beside each; gives the folder."""
    for clip, file in place(dataset, folder):
        file.with_suffix(".txt").write_text(clip.text, encoding="utf-8")
    return folder


def place_of(folder: Path) -> Callable[[Path], tuple[tuple[str, ...], bool, int, str]]:
    """Where a file stands in the order: 2.mp4 before 10.mp4, both before a.mp4, all before those of a folder below."""

    def place(path: Path) -> tuple[tuple[str, ...], bool, int, str]:
        numbered = path.stem.isascii() and path.stem.isdigit()
        return path.relative_to(folder).parent.parts, not numbered, int(path.stem) if numbered else 0, path.name

    return place


def _entry(video: Path, there: set[Path], name: str) -> Entry:
    beside = [video.with_suffix(suffix) for suffix in _CAPTIONS if video.with_suffix(suffix) in there]
    if not beside:
        return Entry(video, "", name, remark=f"there is no {video.stem}.txt or {video.stem}.json beside it")
    try:
        text = beside[0].read_text(encoding="utf-8-sig")
        caption = text if beside[0].suffix == ".txt" else _prompt(text)
    except UnicodeDecodeError:
        problem = f"the caption of {video.name} cannot be read: {beside[0].name} is not UTF-8; save it as UTF-8"
    except OSError as error:
        problem = f"the caption of {video.name} cannot be read: {beside[0].name}: {error.strerror or error}"
    except ValueError as error:
        problem = f"the caption of {video.name} cannot be read: {beside[0].name} {error}"
    else:
        remark = f"{beside[0].name} has no prompt" if caption is None else ""
        return Entry(video, (caption or "").strip(), name, remark=remark)
    return Entry(video, "", name, problem=problem)


def _without_video(caption: Path, folder: Path) -> Entry:
    problem = f"{caption.name} has no video of its name beside it; put one there, or remove the text"
    return Entry(caption, "", caption.relative_to(folder).as_posix(), problem=problem)


def _prompt(text: str) -> str | None:
    """The prompt in a JSON text, None where there is none; ValueError where it is no JSON or no text."""
    try:
        data = json.loads(text) if text.strip() else {}
    except ValueError as error:
        raise ValueError(f"is not JSON: {error}") from None
    sample = data.get("sample") if isinstance(data, dict) else None
    for holder in (data, sample):
        if isinstance(holder, dict) and "prompt" in holder:
            prompt = holder["prompt"]
            if not isinstance(prompt, str):
                raise ValueError("has a prompt that is not a text")
            return prompt
    return None
