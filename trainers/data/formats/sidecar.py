"""sidecar: a folder of videos with captions beside them, ``a.txt`` or ``a.json`` for ``a.mp4``.

The JSON is that of tumurzakov's dataset classes: an object with ``prompt``, or with ``sample`` whose ``prompt`` it is.
"""

from __future__ import annotations

import json
from pathlib import Path

from trainers.config import DatasetConfig
from trainers.data.clips import DatasetError, ReadableDataset
from trainers.data.originals import Entry, first, is_file, is_there, located, place

_CAPTIONS = (".txt", ".json")
_OURS = "metadata.jsonl"


def read(config: DatasetConfig, root: Path) -> list[Entry]:
    """The videos of the folder itself: all files but captions and hidden ones, numbered names by number, then the rest
    by name. Where both captions stand there, the text counts."""
    folder = located(root, config.path)
    if not is_there(folder):
        raise DatasetError(f"folder {folder} does not exist")
    if is_file(folder):
        raise DatasetError(f"{folder} is a file; dataset.format sidecar needs the folder of the videos")
    try:
        files = [path for path in folder.iterdir() if not path.name.startswith(".") and path.is_file()]
    except OSError as error:
        raise DatasetError(f"folder {folder} cannot be read: {error.strerror or error}") from error
    found = (path for path in files if path.suffix.lower() not in _CAPTIONS and path.name != _OURS)
    videos = sorted(found, key=_place)
    if not videos:
        ours = any(path.name == _OURS for path in files)
        hint = "; it is a dataset of Dailies: set dataset.format to dailies" if ours else ""
        raise DatasetError(
            f"folder {folder} holds no videos; they are looked for in the folder itself, not below it{hint}"
        )
    names = {path.name for path in files}
    return [_entry(path, names) for path in first(videos, lambda path: True, config.max_clips)]


def write(dataset: ReadableDataset, folder: Path) -> Path:
    """A new folder with the videos of a dataset and a text beside each; gives the folder."""
    for clip, file in place(dataset, folder):
        file.with_suffix(".txt").write_text(clip.text, encoding="utf-8")
    return folder


def _place(path: Path) -> tuple[bool, int, str]:
    """Where a file stands in the order: 2.mp4 before 10.mp4, both before a.mp4."""
    numbered = path.stem.isascii() and path.stem.isdigit()
    return not numbered, int(path.stem) if numbered else 0, path.name


def _entry(video: Path, names: set[str]) -> Entry:
    beside = [video.with_suffix(suffix) for suffix in _CAPTIONS if video.with_suffix(suffix).name in names]
    if not beside:
        return Entry(video, "", video.name, remark=f"there is no {video.stem}.txt or {video.stem}.json beside it")
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
        return Entry(video, (caption or "").strip(), video.name, remark=remark)
    return Entry(video, "", video.name, problem=problem)


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
