"""paired: a folder with two text files, one of video paths and one of captions, that belong together line by line.

Empty lines do not count, so the n-th video has the n-th caption, wherever either stands.
"""

from __future__ import annotations

from pathlib import Path

from trainers.config import DatasetConfig
from trainers.data.clips import DatasetError, ReadableDataset
from trainers.data.originals import Entry, is_file, is_there, located, missing, place

#: Captions are published under both names.
_TWINS = {"prompts.txt": "prompt.txt", "prompt.txt": "prompts.txt"}


def read(config: DatasetConfig, root: Path) -> list[Entry]:
    """The pairs in their order, up to `dataset.max_clips`; videos count from the folder. DatasetError where a list or
    a video is missing, or the lists differ in length."""
    folder = located(root, config.path)
    if not is_there(folder):
        lists = f"{config.video_list} and {config.caption_list}"
        raise DatasetError(f"folder {folder} does not exist; set dataset.path to the folder of {lists}")
    if is_file(folder):
        raise DatasetError(f"{folder} is a file; dataset.format paired needs the folder of the two lists")
    return pairs(folder, config)


def pairs(folder: Path, config: DatasetConfig) -> list[Entry]:
    """The pairs of a folder that is there."""
    videos = _list(folder, config.video_list, "dataset.video_list")
    captions = _list(folder, config.caption_list, "dataset.caption_list")
    files = f"{config.video_list} and {config.caption_list} in {folder}"
    if not videos and not captions:
        raise DatasetError(f"{files} are empty; write the path of a video and its caption in the same line of each")
    if len(videos) != len(captions):
        raise DatasetError(
            f"{files} do not belong together: {_counted(videos, 'video')} for {_counted(captions, 'caption')}, empty "
            "lines not counted; give each video one line in both",
            "dataset.caption_list",
        )
    entries = [
        _entry(folder, video, caption, f"correct line {number} of {config.video_list}")
        for (number, video), (_, caption) in zip(videos, captions, strict=True)
    ][: config.max_clips]
    gone = [entry.problem for entry in entries if entry.problem]
    if gone:
        more = f"; {len(gone) - 1} more of the {len(entries)} videos in {config.video_list} are missing"
        raise DatasetError(gone[0] + (more if len(gone) > 1 else ""))
    return entries


def lies_in(folder: Path, config: DatasetConfig) -> bool:
    """Whether both lists are there."""
    return all(is_file(_file(folder, name)) for name in (config.video_list, config.caption_list))


def write(dataset: ReadableDataset, folder: Path) -> Path:
    """A new folder with ``videos/``, ``videos.txt`` and ``prompts.txt`` from a dataset; gives the folder. A caption of
    several lines becomes one; DatasetError where there is none, for which such a list has no line."""
    bare = [clip.name for clip in dataset.clips if not clip.text.strip()]
    if bare:
        raise DatasetError(f"{bare[0]} has no caption, and a list of captions has no empty lines; write one first")
    placed = place(dataset, folder / "videos")
    lists = {
        "videos.txt": [f"videos/{video.name}" for _, video in placed],
        "prompts.txt": [" ".join(clip.text.split()) for clip, _ in placed],
    }
    for name, lines in lists.items():
        (folder / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="\n")
    return folder


def _entry(folder: Path, video: str, caption: str, way: str) -> Entry:
    file = located(folder, video)
    name = (file.relative_to(folder) if file.is_relative_to(folder) else file).as_posix()
    return Entry(file, caption, name, problem="" if is_file(file) else missing(file, video, way))


def _file(folder: Path, name: str) -> Path:
    """The list of that name, or under the other name that it may have."""
    file = located(folder, name)
    other = file.with_name(_TWINS.get(file.name, file.name))
    return other if not is_there(file) and is_file(other) else file


def _list(folder: Path, name: str, where: str) -> list[tuple[int, str]]:
    """(number, text) of the lines that are not empty, without what is blank around them."""
    file = _file(folder, name)
    try:
        text = file.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise DatasetError(
            f"folder {folder} has no {name}; dataset.format paired needs a list of videos and one of captions", where
        ) from error
    except UnicodeDecodeError as error:
        raise DatasetError(f"{file} is not UTF-8; save it as UTF-8", where) from error
    except (OSError, ValueError) as error:
        raise DatasetError(f"{file} cannot be read: {getattr(error, 'strerror', None) or error}", where) from error
    lines = enumerate(text.split("\n"), 1)  # splitlines would break captions at rarer signs
    return [(number, line.strip()) for number, line in lines if line.strip()]


def _counted(lines: list[tuple[int, str]], noun: str) -> str:
    return f"1 {noun}" if len(lines) == 1 else f"{len(lines)} {noun}s"
