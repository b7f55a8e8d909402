"""What lies in a workspace: datasets, base models and runs, by name. No text of a user ever becomes a path.

Names that we make hold a-z, 0-9 and hyphens; names that we accept may come from folders that a person put there, but
cannot lead out of their parent folder.
"""

from __future__ import annotations

import json
import re
import shutil
import threading
import unicodedata
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

import trainers
from studio.jobs import Kind
from trainers.config import SampleConfig, TrainConfig
from trainers.data.clips import Dataset
from trainers.data.images import read_image, sha256_of_image, write_image
from trainers.errors import named, why
from trainers.families import parse_config
from trainers.families.base import ModelFamily
from trainers.runs import RunFolder
from trainers.settings import ConfigError, read_yaml, to_yaml

#: Where the trainers package lies: trainers start there, and examples/ stands beside it.
PROJECT = Path(trainers.__file__).resolve().parent.parent

#: The name of the demo's dataset in a workspace.
DEMO = "orbit"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_IMAGE = re.compile(r"[0-9a-f]{64}\.png")
_RUN_NUMBER = re.compile(r"-(\d{4,})$")
#: Windows reads these as devices, in every folder.
_RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))}
#: The only folders that are ever served: (parent, folder inside each of its entries).
_SERVED = {("datasets", "clips"), ("datasets", "thumbs"), ("runs", "samples")}
_MEDIA = {".mp4", ".webm", ".gif", ".webp", ".png", ".jpg", ".jpeg"}
_Yaml: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times faster, where libyaml is there


class WorkspaceError(Exception):
    """Something that is not in the workspace, or cannot be put there: one sentence."""


@dataclass(frozen=True)
class RunInfo:
    """A run in a list. created: seconds since the epoch. family is "unknown" where config.yaml cannot be read."""

    id: str
    kind: Kind
    title: str
    family: str
    method: str
    created: float
    folder: RunFolder


@dataclass(frozen=True)
class TakeInfo:
    """A checkpoint that can be compared. best: the lowest validation loss of its run."""

    label: str
    path: Path
    run_id: str
    step: int
    best: bool
    starred: bool


class Workspace:
    """A folder with datasets/, images/, models/, cache/ and runs/. Threads may share it."""

    def __init__(self, root: Path) -> None:
        self.root = root.expanduser().resolve()
        self._heads: dict[Path, tuple[int, dict[str, Any]]] = {}
        self._served: set[Path] = set()
        self._lock = threading.Lock()
        try:
            for name in ("datasets", "models", "cache", "runs"):
                (self.root / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise WorkspaceError(f"{self.root} cannot be a workspace: {why(error)}") from error

    @property
    def db(self) -> Path:
        """The job list."""
        return self.root / "studio.db"

    @property
    def cache(self) -> Path:
        """What runs share: encoded clips and sampled cells, for `dataset.cache_dir` and `cache_dir`."""
        return self.root / "cache"

    @property
    def models(self) -> Path:
        return self.root / "models"

    @property
    def images(self) -> Path:
        """Pictures that clips begin from, named after what they show, so that a config that names one stays true."""
        return self.root / "images"

    def add_image(self, source: Path) -> Path:
        """Keep the picture of an image file, or the first frame of a video, as PNG; gives its file. VideoError where
        there is none to be read."""
        picture = read_image(source)
        file = self.images / f"{sha256_of_image(picture)}.png"
        if not file.exists():
            write_image(file, picture)
        return file

    def has_image(self, file: str) -> bool:
        """Whether a text names a picture that is kept here."""
        path = Path(file)
        return path.parent == self.images and bool(_IMAGE.fullmatch(path.name)) and path.is_file()

    # --- datasets ----------------------------------------------------------------------------------------------------

    def datasets(self) -> list[str]:
        """Names of the datasets, in alphabetical order."""
        return [path.name for path in _folders(self.root / "datasets") if (path / "metadata.jsonl").exists()]

    def dataset(self, name: str) -> Dataset:
        """The dataset of that name."""
        return Dataset.open(self._dataset_path(name))

    def new_dataset(self, title: str) -> Dataset:
        """An empty dataset, its folder named after the title."""
        parent, slug = self.root / "datasets", _slug(title, "clips")
        taken = {path.name.lower() for path in parent.iterdir()} | _RESERVED
        number = 1
        while (name := slug if number == 1 else f"{slug}-{number}") in taken:
            number += 1
        return Dataset.create(parent / name)

    def delete_dataset(self, name: str) -> None:
        """Delete a dataset with its clips, for good. Of a linked folder, only the link."""
        path = self._dataset_path(name)
        if path.is_symlink():
            path.unlink()
            return
        # Out of sight in one step, so that a deletion which stops half-way leaves no half dataset.
        doomed = path.with_name(f".deleted-{uuid.uuid4().hex}")
        try:
            path.rename(doomed)
            shutil.rmtree(doomed)
        except OSError as error:
            raise WorkspaceError(f"dataset {name} cannot be deleted: {named(error)}") from error

    def _dataset_path(self, name: str) -> Path:
        path = self.root / "datasets" / _checked(name, "dataset")
        if not (path / "metadata.jsonl").exists():
            raise WorkspaceError(f"there is no dataset {name}; known: {', '.join(self.datasets()) or 'none yet'}")
        return path

    # --- runs --------------------------------------------------------------------------------------------------------

    def new_run(self, config: TrainConfig | SampleConfig, title: str) -> RunFolder:
        """A run folder that holds only its config.yaml; its id is the title and the next number, as orbit-lora-0007."""
        while True:
            path = self.root / "runs" / self.next_run_id(title)
            try:
                path.mkdir()
                break
            except FileExistsError:  # another process was faster
                continue
        folder = RunFolder(path)
        writing = folder.config.with_suffix(".writing")
        writing.write_text(to_yaml(config), encoding="utf-8")
        writing.replace(folder.config)
        return folder

    def next_run_id(self, title: str) -> str:
        """The id that a run of that title would get now."""
        numbers = [int(m.group(1)) for path in (self.root / "runs").iterdir() if (m := _RUN_NUMBER.search(path.name))]
        return f"{_slug(title, 'run')}-{max(numbers, default=0) + 1:04d}"

    def run(self, id: str) -> RunFolder:
        """The run of that id."""
        path = self.root / "runs" / _checked(id, "run")
        folder = RunFolder(path)
        if not folder.config.exists():
            raise WorkspaceError(f"there is no run {id}; it was moved or deleted")
        return folder

    def runs(self, kind: Kind | None = None) -> list[RunInfo]:
        """The runs, newest first; of one kind, or all."""
        folders = [RunFolder(path) for path in _folders(self.root / "runs")]
        found = [self._info(folder) for folder in folders if folder.config.exists()]
        newest = sorted(found, key=lambda info: (info.created, info.id), reverse=True)
        return [info for info in newest if kind is None or info.kind == kind]

    def takes(self) -> list[TakeInfo]:
        """Every checkpoint of every training run, newest run first, last step first."""
        return [take for info in self.runs("train") for take in _takes(info)]

    def _info(self, folder: RunFolder) -> RunInfo:
        head = self._head(folder.config)
        return RunInfo(
            id=folder.id,
            kind="sample" if "prompts" in head and "dataset" not in head else "train",
            title=_title(folder.id),
            family=str(head.get("family", "unknown")),
            method=str(head.get("method", "")),
            created=folder.config.stat().st_mtime,  # written once, when the run is made
            folder=folder,
        )

    def _head(self, config: Path) -> dict[str, Any]:
        """The settings of a run, remembered until the file changes: lists of runs are drawn often."""
        changed = config.stat().st_mtime_ns
        known = self._heads.get(config)
        if known is None or known[0] != changed:
            try:
                data = yaml.load(config.read_text(encoding="utf-8"), Loader=_Yaml)
            except (OSError, ValueError, yaml.YAMLError):
                data = {}
            known = (changed, data if isinstance(data, dict) else {})
            self._heads[config] = known
        return known[1]

    # --- models ------------------------------------------------------------------------------------------------------

    def base_models(self, family: ModelFamily) -> list[str]:
        """Paths of the folders below models/ that are bases of a family."""
        return [str(path) for path in self._below_models(2) if family.is_base(path)]

    def motion_adapters(self) -> list[str]:
        """Paths of the diffusers motion adapter folders below models/."""
        return [str(path) for path in self._below_models(3) if _class_name(path / "config.json") == "MotionAdapter"]

    def _below_models(self, depth: int) -> Iterator[Path]:
        level = [self.models]
        for _ in range(depth):
            level = [inner for path in level for inner in _folders(path)]
            yield from level

    # --- what the page may show --------------------------------------------------------------------------------------

    def media(self, path: Path) -> dict[str, Any]:
        """The value by which Gradio shows a clip, thumbnail or sample in its place, without a copy in its cache.

        WorkspaceError for every other file: only clips/, thumbs/ and samples/ folders are served, and what a link
        inside them leads to outside is not.
        """
        folder = self._served_folder(path)
        file = path.resolve()
        if folder is None or not file.is_relative_to(folder) or file.suffix.lower() not in _MEDIA:
            raise WorkspaceError(f"{path.name} is not a clip, thumbnail or sample of this workspace; it is not shown")
        if not file.is_file():
            raise WorkspaceError(f"{path.name} is no longer there; it was moved or deleted")
        with self._lock:
            if folder not in self._served:
                import gradio as gr  # only where there is a page

                gr.set_static_paths([folder])
                self._served.add(folder)
        return {"path": str(file), "meta": {"_type": "gradio.FileData"}}

    def _served_folder(self, path: Path) -> Path | None:
        """The true folder that may be served and holds this path by name, or None.

        A dataset or run may be a link that the owner made (to a larger disk, say); its media folder may not.
        """
        absolute = path if path.is_absolute() else Path.cwd() / path
        if not absolute.is_relative_to(self.root):
            absolute = absolute.resolve()
        try:
            parts = absolute.relative_to(self.root).parts
        except ValueError:
            return None
        if len(parts) < 4 or ".." in parts or (parts[0], parts[2]) not in _SERVED or not _NAME.fullmatch(parts[1]):
            return None
        owner = (self.root / parts[0] / parts[1]).resolve()
        folder = owner / parts[2]
        return folder if folder.is_dir() and not folder.is_symlink() else None

    # --- the demo ----------------------------------------------------------------------------------------------------

    def add_demo(self) -> None:
        """Copy the demo's clips and its base model into the workspace, where they are not there yet."""
        for source, target in self._demo_folders().items():
            if target.exists():
                continue
            if not source.is_dir():
                raise WorkspaceError("the demo is not part of this installation: examples/demo is missing")
            writing = target.with_name(f".copying-{uuid.uuid4().hex}")
            try:
                shutil.copytree(source, writing)
                writing.rename(target)
            except OSError as error:
                shutil.rmtree(writing, ignore_errors=True)
                if not target.exists():  # else another process was faster
                    raise WorkspaceError(f"the demo cannot be copied to {target}: {why(error)}") from error

    def demo_config(self) -> TrainConfig:
        """The demo's training run on the workspace's copies."""
        try:
            settings = read_yaml(PROJECT / "examples" / "demo" / "orbit.yaml")
        except ConfigError as error:
            raise WorkspaceError(f"the demo is not part of this installation: {error}") from error
        moved = _with_paths(settings, self._demo_folders())
        moved["dataset"]["cache_dir"] = str(self.cache)
        return parse_config(moved)

    def _demo_folders(self) -> dict[Path, Path]:
        demo = PROJECT / "examples" / "demo"
        return {demo / "dataset": self.root / "datasets" / DEMO, demo / "base": self.models / "demo"}


def _checked(name: str, what: str) -> str:
    """A name that stays in its parent folder."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise WorkspaceError(f"{name!r} is not the name of a {what}")
    return name


def _slug(title: str, otherwise: str) -> str:
    """a-z, 0-9 and single hyphens, at most 40 of them; `otherwise` where nothing of the title remains."""
    plain = unicodedata.normalize("NFKD", title).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:40].rstrip("-") or otherwise


def _title(id: str) -> str:
    """``Orbit lora 7`` of ``orbit-lora-0007``."""
    number = _RUN_NUMBER.search(id)
    words = (id[: number.start()] if number else id).replace("-", " ").strip() or id
    return words[:1].upper() + words[1:] + (f" {int(number.group(1))}" if number else "")


def _takes(info: RunInfo) -> Iterator[TakeInfo]:
    best, stars = info.folder.best(), info.folder.starred()
    for checkpoint in reversed(info.folder.checkpoints()):
        is_best, starred = best is not None and checkpoint.step == best.step, checkpoint.step in stars
        marks = [mark for mark, holds in (("best", is_best), ("starred", starred)) if holds]
        label = f"{info.id}, step {checkpoint.step}" + (f" ({', '.join(marks)})" if marks else "")
        yield TakeInfo(label, checkpoint.path, info.id, checkpoint.step, is_best, starred)


def _folders(parent: Path) -> list[Path]:
    """The folders in a folder, by name, but those that no `_checked` name could mean (hidden ones among them)."""
    try:
        return sorted(path for path in parent.iterdir() if _NAME.fullmatch(path.name) and path.is_dir())
    except OSError:
        return []


def _class_name(config: Path) -> str | None:
    try:
        data = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return data.get("_class_name") if isinstance(data, dict) else None


def _with_paths(value: Any, moved: dict[Path, Path]) -> Any:
    """Settings with every path that lies in a moved folder put where it is now; relative ones count from PROJECT."""
    if isinstance(value, dict):
        return {key: _with_paths(inner, moved) for key, inner in value.items()}
    if isinstance(value, list):
        return [_with_paths(inner, moved) for inner in value]
    if isinstance(value, str):
        for source, target in moved.items():
            if (PROJECT / value).is_relative_to(source):
                return str(target / (PROJECT / value).relative_to(source))
    return value
