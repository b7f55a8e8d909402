"""Dataset: what will the model see? Datasets, their clips and captions, and what training makes of each."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr

from studio.imports import Import, Imports
from studio.page import QUICK, TELLING, Page, awaited, come_in
from studio.parts.answer import Tone, answer, notes
from studio.parts.clipgrid import card, clip_grid, grid_value
from studio.progress import duration
from studio.workspace import DEMO, Workspace, WorkspaceError
from trainers.config import TrainConfig
from trainers.data.clips import Clip, Dataset, DatasetError
from trainers.data.ledger import LedgerRow, ledger
from trainers.data.video import VideoError
from trainers.errors import named, why
from trainers.families import FAMILIES, get_family
from trainers.settings import ConfigError, fields, validate

#: What "Seen as" asks for, as fields of a training config with the words at their controls, in order.
SEEN = {
    "dataset.num_frames": "Frames",
    "dataset.height": "Height",
    "dataset.width": "Width",
    "dataset.frame_stride": "Stride",
}


@dataclass(frozen=True)
class View:
    """Everything that the tab shows of a dataset."""

    answer: str
    seen: str
    grid: dict[str, Any]
    num_clips: int


# --- what is shown: plain functions of what lies on disk --------------------------------------------------------------


def seen_config(dataset: Dataset, family_name: str, settings: dict[str, Any]) -> TrainConfig:
    """A training config that asks only for frames and size, in the first method that takes it; else ConfigError."""
    family = get_family(family_name)
    nested = {path.partition(".")[2]: value for path, value in settings.items()}
    failures = []
    for method in family.methods:
        data = {
            "family": family.name,
            "method": method,
            "base_model": "any",
            "dataset": {"path": str(dataset.path), **nested},
        }
        try:
            return validate(family.train_config, data)
        except ConfigError as error:
            failures.append(error)
    raise min(failures, key=lambda error: len(error.problems))


def seen_defaults(family_name: str) -> list[Any]:
    """What a family takes when nobody says otherwise, in the order of `SEEN`."""
    known = dict(fields(get_family(family_name).train_config))
    return [known[path].get_default(call_default_factory=True) for path in SEEN]


def view(workspace: Workspace, name: str | None, family_name: str, seen: Sequence[Any]) -> View:
    """A dataset as a family would see it. name None: there is none yet."""
    if name is None:
        text = "Make a dataset and add video files to it, or open the demo."
        return View(
            answer("No dataset yet", text),
            "",
            grid_value("", [], "Clips stand here, each with its caption and with what training makes of it."),
            0,
        )
    try:
        dataset = workspace.dataset(name)
        clips = list(dataset.clips)
    except (WorkspaceError, DatasetError) as error:
        return View(answer(name, str(error), "bad"), "", grid_value(name, [], str(error)), 0)
    rows: list[LedgerRow] = []
    problem = ""
    try:
        rows = ledger(
            dataset, seen_config(dataset, family_name, dict(zip(SEEN, seen, strict=True))), FAMILIES[family_name]
        )
    except ConfigError as error:
        problem = _sentence(error, seen)
    except DatasetError as error:
        problem = str(error)
    by_clip = {row.clip.file_name: row for row in rows}
    cards = [_card(workspace, dataset, clip, by_clip.get(clip.file_name)) for clip in clips]
    line = problem or summary(rows, len(clips), dataset.seconds)
    empty = "" if clips else "No clips yet. Add video files on the left: mp4, mov, webm, mkv, gif and others."
    head = answer(name, line if clips else "No clips yet", "bad" if problem else "")
    return View(head, seen_line(rows, problem), grid_value(name, cards, empty), len(clips))


def _sentence(error: ConfigError, seen: Sequence[Any]) -> str:
    """What is wrong with what "Seen as" asks for."""
    where, what = error.problems[0]
    field = where.rpartition(".")[2].replace("_", " ").capitalize()
    given = dict(zip(SEEN, seen, strict=True))
    return f"{field} is empty; give a whole number" if given.get(where, where) is None else f"{field} {what}"


def summary(rows: Sequence[LedgerRow], count: int, seconds: float) -> str:
    """``12 clips, 36 s; 10 used, 2 left out, 3 without a caption``."""
    total = f"{count} clip{'' if count == 1 else 's'}, {duration(seconds)}"
    counts: Counter[str] = Counter(row.status for row in rows)
    words = {"used": "used", "trimmed": "trimmed", "dropped": "left out"}
    parts = [f"{counts[status]} {word}" for status, word in words.items() if counts[status]]
    bare = sum(not row.clip.text.strip() for row in rows)
    if bare:
        parts.append(f"{bare} without a caption")
    return f"{total}; {', '.join(parts)}" if parts else total


def seen_line(rows: Sequence[LedgerRow], problem: str) -> str:
    """What stands beneath "Seen as": how many can be used, and the reasons why not."""
    if problem:
        return notes([("error", problem)])
    if not rows:
        return ""
    usable = [row for row in rows if row.status != "dropped"]
    tone: Tone = "ok" if len(usable) == len(rows) else "warning"
    first = (tone, f"{len(usable)} of {len(rows)} clips can be used.")
    sizes = Counter((row.num_frames, row.width, row.height) for row in usable)
    lines: list[tuple[Tone, str]] = [("", f"{n} as {f} frames at {w} x {h}") for (f, w, h), n in sizes.most_common(6)]
    return notes([first, *lines])


def import_list(imports: Sequence[Import]) -> str:
    """The files of an import, refused ones first."""
    if not imports:
        return ""
    refused: list[tuple[Tone, str]] = [
        ("bad", _refusal(entry.name, entry.outcome)) for entry in imports if entry.outcome
    ]
    added = [entry.name for entry in imports if entry.outcome == ""]
    waiting = [entry.name for entry in imports if entry.outcome is None]
    items: list[tuple[Tone, str]] = list(refused)
    if added:
        items.append(("ok", f"Added {len(added)}: {_some(added)}"))
    if waiting:
        done = len(imports) - len(waiting)
        items.append(("", f"Importing {done + 1} of {len(imports)}: {waiting[0]}"))
    return notes(items)


def _refusal(name: str, why: str) -> str:
    return f"Refused: {why}" if name in why else f"{name} was refused: {why}"


def dataset_choices(workspace: Workspace) -> list[tuple[str, str]]:
    """(label of two lines, name) of every dataset."""
    found = []
    for name in workspace.datasets():
        try:
            dataset = workspace.dataset(name)
            count = len(dataset.clips)
            line = f"{count} clip{'' if count == 1 else 's'}, {duration(dataset.seconds)}" if count else "no clips yet"
        except (WorkspaceError, DatasetError):
            line = "cannot be read"
        found.append((f"{name}\n{line}", name))
    return found


def _card(workspace: Workspace, dataset: Dataset, clip: Clip, row: LedgerRow | None) -> dict[str, Any]:
    row = replace(row, reason=_at_the_card(row)) if row else None
    try:
        thumbnail = workspace.media(dataset.thumbnail(clip))
        video = workspace.media(dataset.file(clip))
    except (WorkspaceError, DatasetError, VideoError, OSError) as error:
        shown = card(clip, row, None, None)
        return {**shown, "status": "dropped", "verdict": f"Cannot be shown: {why(error)}"}
    return card(clip, row, thumbnail, video)


def _at_the_card(row: LedgerRow) -> str:
    """A reason as it stands at the clip itself: without the clip's name, settings called as under "Seen as"."""
    text = row.reason.removeprefix(f"{row.clip.name} ")
    for path, label in SEEN.items():
        text = text.replace(path, label)
    return text


def _some(names: Sequence[str], most: int = 6) -> str:
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def _signed_in(request: Any) -> Any:
    """The request as `Access` reads it. A server function gets the bare web request, whose login Gradio keeps."""
    if isinstance(request, gr.Request) or not hasattr(request, "cookies"):
        return request
    app = request.app
    name = f"access-token-{getattr(app, 'cookie_id', '')}", f"access-token-unsecure-{getattr(app, 'cookie_id', '')}"
    token = request.cookies.get(name[0]) or request.cookies.get(name[1])
    return SimpleNamespace(username=getattr(app, "tokens", {}).get(token))


# --- the tab ----------------------------------------------------------------------------------------------------------


def build(page: Page) -> None:
    """Draw the tab and wire it."""
    workspace, access = page.workspace, page.access
    imports = Imports()
    editing = threading.Lock()  # captions come from several requests at once; a dataset has one file

    def save_caption(wish: dict[str, Any], request: gr.Request) -> dict[str, Any]:
        try:
            access.require_owner(_signed_in(request))
            with editing:
                workspace.dataset(str(wish["dataset"])).set_text(str(wish["id"]), str(wish["text"]))
        except (gr.Error, WorkspaceError, DatasetError) as error:
            return {"error": str(getattr(error, "message", error))}
        except OSError as error:
            return {"error": f"it cannot be stored: {why(error)}"}
        return {}

    def remove_clip(wish: dict[str, Any], request: gr.Request) -> dict[str, Any]:
        try:
            access.require_owner(_signed_in(request))
            with editing:
                workspace.dataset(str(wish["dataset"])).remove(str(wish["id"]))
        except (gr.Error, WorkspaceError, DatasetError) as error:
            return {"error": str(getattr(error, "message", error))}
        except OSError as error:
            return {"error": f"it cannot be stored: {why(error)}"}
        return {}

    first_family = next(iter(FAMILIES))
    with awaited() as room, gr.Row(elem_classes="row stack"):
        with gr.Column(elem_classes="side", min_width=0, scale=0):
            with gr.Column(elem_classes="card"):
                gr.HTML('<h2 class="title">Datasets</h2>')
                names = gr.Radio(choices=[], show_label=False, container=False, elem_classes="list", elem_id="datasets")
                demo_button = gr.Button("Open the demo", visible=False, elem_id="open-demo")
                title = gr.Textbox(
                    label="Name of a new dataset", show_label=False, container=False, max_lines=1, max_length=100,
                    placeholder="Name of a new dataset", elem_id="new-dataset-name",
                )  # fmt: skip
                new = gr.Button("New dataset", elem_id="new-dataset")
            with gr.Column(elem_classes="card", visible=False) as add_card:
                gr.HTML('<h2 class="title">Add clips</h2>')
                files = gr.File(file_count="multiple", show_label=False, container=False, height=96, elem_id="upload")
                imported = gr.HTML(elem_id="imported")
            with gr.Column(elem_classes="card"):
                gr.HTML('<h2 class="title">Seen as</h2>')
                family = gr.Dropdown(
                    choices=[(known.title, known.name) for known in FAMILIES.values()],
                    value=first_family, label="Family", filterable=False, elem_id="seen-family",
                )  # fmt: skip
                with gr.Row(elem_classes="pair"):
                    boxes = [
                        gr.Number(value, label=label, min_width=90, elem_id=f"seen-{path.rpartition('.')[2]}")
                        for (path, label), value in zip(SEEN.items(), seen_defaults(first_family), strict=True)
                    ]
                seen = gr.HTML(elem_id="seen")
        with gr.Column(scale=1, min_width=0):
            with gr.Row(elem_classes="actions head"):
                head = gr.HTML(answer("Dataset"), elem_id="dataset-answer", elem_classes="grow")
                delete = gr.Button("Delete dataset", size="md", visible=False, elem_id="delete-dataset")
                go = gr.Button("Configure a run", variant="primary", size="md", visible=False, elem_id="configure-run")
            with gr.Row(elem_classes="actions card", visible=False) as confirm:
                question = gr.HTML(elem_classes="grow")
                yes = gr.Button("Delete for good", variant="stop", size="md", elem_id="delete-yes")
                no = gr.Button("Keep", size="md")
            grid = clip_grid(save_caption, remove_clip)
    clock = gr.Timer(1.0, active=False)

    shown = [names, head, seen, grid, imported, add_card, delete, go, demo_button, confirm]

    def show(name: str | None, family_name: str, *numbers: Any) -> list[Any]:
        choices = dataset_choices(workspace)
        known = [value for _, value in choices]
        name = name if name in known else (known[0] if known else None)
        now = view(workspace, name, family_name, numbers)
        return [
            gr.update(choices=choices, value=name),
            now.answer,
            now.seen,
            now.grid,
            import_list(imports.of(name) if name else []),
            gr.update(visible=name is not None),
            gr.update(visible=name is not None),
            gr.update(visible=name is not None, interactive=now.num_clips > 0),
            gr.update(visible=DEMO not in known),
            gr.update(visible=False),
        ]

    def choose(name: str | None, family_name: str, *numbers: Any) -> list[Any]:
        """The datasets with `name` chosen, and the timer, which runs while files are being imported."""
        updates = show(name, family_name, *numbers)
        chosen = updates[0]["value"]
        return [*updates, chosen, gr.Timer(active=bool(chosen and imports.busy(chosen)))]

    asked = [family, *boxes]
    everything = [*shown, page.chosen_dataset, clock]

    def create(request: gr.Request, text: str, family_name: str, *rest: Any) -> list[Any]:
        access.require_owner(request)
        if not text.strip():
            raise gr.Error("Give the dataset a name first.", title="New dataset", duration=5)
        try:
            made = workspace.new_dataset(text)
        except (WorkspaceError, DatasetError, OSError) as error:
            raise gr.Error(named(error), title="New dataset") from error
        return [*choose(made.name, family_name, *rest), ""]

    def open_demo(request: gr.Request, family_name: str, *numbers: Any) -> list[Any]:
        access.require_owner(request)
        try:
            workspace.add_demo()
        except WorkspaceError as error:
            raise gr.Error(str(error), title="Demo") from error
        return choose(DEMO, family_name, *numbers)

    def upload(request: gr.Request, paths: list[str] | None, name: str | None, *rest: Any) -> list[Any]:
        access.require_owner(request)
        if not paths or not name:
            return [*(gr.skip() for _ in everything), None]
        try:
            imports.start(workspace.dataset(name), [Path(path) for path in paths])
        except (WorkspaceError, DatasetError) as error:
            raise gr.Error(str(error), title="Add clips") from error
        return [*choose(name, *rest), None]

    def come_back(place: dict[str, Any] | None, *rest: Any) -> list[Any]:
        return choose((place or {}).get("dataset"), *rest)

    def ask(name: str | None) -> list[Any]:
        count = len(workspace.dataset(name).clips) if name in workspace.datasets() else 0
        clips = "its clip" if count == 1 else f"its {count} clips"
        return [gr.update(visible=True), answer(f"Delete {name} with {clips} for good?", "Runs keep what they made.")]

    def erase(request: gr.Request, name: str | None, *rest: Any) -> list[Any]:
        access.require_owner(request)
        if not name or imports.busy(name):
            raise gr.Error("Files are still being imported; wait until that is done.", title="Delete dataset")
        try:
            workspace.delete_dataset(name)
        except WorkspaceError as error:
            raise gr.Error(str(error), title="Delete dataset") from error
        imports.forget(name)
        return choose(None, *rest)

    def configure(name: str | None, family_name: str, *numbers: Any) -> dict[str, Any]:
        looked = zip(SEEN, numbers, seen_defaults(family_name), strict=True)
        settings = {path: value for path, value, usual in looked if value is not None and value != usual}
        return {"dataset": name, "family": family_name, "settings": settings, "at": time.time()}

    names.input(choose, [names, *asked], everything, **TELLING)
    family.input(seen_defaults, family, boxes, **QUICK).then(show, [names, *asked], shown, **QUICK)
    gr.on([box.input for box in boxes], show, [names, *asked], shown, trigger_mode="always_last", **QUICK)
    gr.on([new.click, title.submit], create, [title, *asked], [*everything, title], **TELLING)
    demo_button.click(open_demo, asked, everything, **TELLING)
    files.upload(upload, [files, names, *asked], [*everything, files], **TELLING)
    clock.tick(choose, [names, *asked], everything, **TELLING)
    delete.click(ask, names, [confirm, question], **QUICK)
    no.click(lambda: gr.update(visible=False), None, confirm, **QUICK)
    yes.click(erase, [names, *asked], everything, **TELLING)
    for told in (grid.saved, grid.removed):  # events of our own have no place in gr.on
        told(show, [names, *asked], shown, trigger_mode="always_last", **QUICK)
    go.click(configure, [names, *asked], page.begin_run, **TELLING)  # Configure opens when its form is filled
    come_in(page.demo, room, come_back, [page.place, *asked], everything, **TELLING)
