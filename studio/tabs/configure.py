"""Configure: what will run, and would it start? The form of a family, the config that it makes, and the command."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from studio.forms import Choice, Form, Marks, Problem
from studio.jobs import JobError
from studio.page import CONFIGURE, QUICK, TELLING, TRAIN, Page, awaited, come_in
from studio.parts.answer import answer, notes
from studio.parts.frames import frame_strips, frames_key, frames_value, seen_frames
from studio.workspace import DEMO, PROJECT, Workspace, WorkspaceError
from trainers.config import TrainConfig
from trainers.data.clips import DatasetError, NotHereYet
from trainers.data.formats import open_dataset
from trainers.data.ledger import ledger, named, size_hints
from trainers.errors import why
from trainers.families import FAMILIES, family_of, file_findings, read_settings
from trainers.families.base import ModelFamily
from trainers.runs import RunFolder
from trainers.settings import ConfigError, read_yaml, to_yaml, validate

LEAD = ("method", "dataset.path", "base_model", "motion_adapter")
#: Seconds for which an answer may wait for videos that nobody has looked at yet; then it says how far it is.
PATIENCE = 1.5


class StillLooking(Exception):
    """Not every video of a dataset has been looked at yet; what has been is known from now on."""

    def __init__(self, done: int, total: int) -> None:
        super().__init__(f"The videos are being looked at, which is done once: {done} of {total} so far.")


@dataclass(frozen=True)
class Preview:
    """A run as it would start. config None: it would not, and `problems` say why. unfinished: ask again soon."""

    config: TrainConfig | None
    problems: list[Problem]
    remarks: list[tuple[Any, str]]
    line: str
    unfinished: bool = False

    @property
    def starts(self) -> bool:
        return self.config is not None and not self.problems


# --- plain functions of values ----------------------------------------------------------------------------------------


def form_of(family: ModelFamily, workspace: Workspace) -> Form[TrainConfig]:
    """The form of a family's runs in this workspace."""
    fixed: dict[str, Any] = {"family": family.name, "dataset.cache_dir": str(workspace.cache)}
    if not family.has_image_models:
        fixed["validation.images"] = []
    return Form(family.train_config, fixed=fixed, lead=LEAD, picks=picks(workspace, family))


def picks(workspace: Workspace, family: ModelFamily) -> dict[str, list[Choice]]:
    """What the workspace has to choose from for runs of a family, and its bases on the Hub, by field."""
    datasets = workspace.root / "datasets"
    return {
        "dataset.path": [(name, str(datasets / name)) for name in workspace.datasets()],
        "base_model": [
            *((_below(path, workspace.models), path) for path in workspace.base_models(family)),
            *((name, name) for name in family.hub_bases),
        ],
        "motion_adapter": [(_below(path, workspace.models), path) for path in workspace.motion_adapters()],
    }


def first_picks(workspace: Workspace, family: ModelFamily) -> dict[str, Any]:
    """The first of everything that there is to choose from, so that a new run has no gap to be filled."""
    return {path: choices[0][1] for path, choices in picks(workspace, family).items() if choices}


def starting_values(form: Form[TrainConfig], workspace: Workspace, dataset: str | None = None) -> list[Any]:
    """What the form shows before anybody has chosen: the demo's run for the demo, else defaults with the first base."""
    names = workspace.datasets()
    name = dataset if dataset in names else (names[0] if names else None)
    if name == DEMO:
        values = demo_values(form, workspace)
        if values is not None:
            return values
    given = first_picks(workspace, form_family(form))
    if name:
        given["dataset.path"] = str(workspace.root / "datasets" / name)
    return form.starting_values(given)


def form_family(form: Form[TrainConfig]) -> ModelFamily:
    """The family whose runs a form configures."""
    return FAMILIES[form.config_class.model_fields["family"].default]


def demo_values(form: Form[TrainConfig], workspace: Workspace) -> list[Any] | None:
    """The demo's run in the form, or None: it is of another family, or not part of this installation."""
    try:
        config = workspace.demo_config()
    except (WorkspaceError, ConfigError):
        return None
    return form.values(config) if isinstance(config, form.config_class) else None


def preview(form: Form[TrainConfig], family: ModelFamily, values: Sequence[Any]) -> Preview:
    """What the values of a form would start: the schema's word, the family's, and the ledger's."""
    config, problems = form.check(values)
    if config is None:
        way = "; choose one, or make one in the Dataset tab"
        problems = [(w, t + way if w == "dataset.path" and t.endswith("must be set") else t) for w, t in problems]
        return Preview(None, problems, [], "")
    remarks: list[tuple[Any, str]] = []
    for finding in file_findings(config, PROJECT):
        if finding.level == "error":
            said = finding.text.removeprefix(f"{finding.where} ")
            words = form.sentence(finding.where, said) if said != finding.text else said
            problems.append((finding.where, form.in_words(words)))
        else:
            remarks.append((finding.level, form.in_words(finding.text)))
    line, unfinished = "", False
    try:
        dataset = open_dataset(config.dataset, PROJECT, _patient(), fetch=False)
        rows = ledger(dataset, config, family)
        usable = [row for row in rows if row.status != "dropped"]
        times = f", each {config.dataset.repeats} times in a pass" if config.dataset.repeats > 1 else ""
        line = f"{len(usable)} of {len(rows)} clips used{times}, {config.max_train_steps} steps"
        dropped = [row for row in rows if row.status == "dropped"]
        if not rows:
            problems.append(("dataset.path", f"Dataset {dataset.name} has no clips yet; add some in the Dataset tab."))
        elif not usable:
            problems.append(
                ("dataset.path", f"None of the {len(rows)} clips can be used: {form.in_words(named(dropped[0]))}")
            )
        else:
            ours = config.dataset.format == "dailies"
            remarks += [("warning", f"Left out: {form.in_words(named(row))}") for row in dropped[:8]]
            if len(dropped) > 8:
                rest = "; the Dataset tab lists them" if ours else ""
                remarks.append(("warning", f"{len(dropped) - 8} more are left out{rest}."))
            told = [] if ours else [row for row in usable if row.reason]  # ours have it in the Dataset tab
            remarks += [("info", form.in_words(named(row))) for row in told[:8]]
            if len(told) > 8:
                remarks.append(("info", f"Of {len(told) - 8} more clips there is the like to say."))
            hints = [*size_hints(rows, config.dataset), *family.advice(config, rows)]
            remarks += [(hint.level, form.in_words(hint.text)) for hint in hints]
    except NotHereYet as error:
        remarks.append(("warning", f"{form.in_words(str(error))}; what becomes of its clips is said in the run's log."))
        line = f"{config.max_train_steps} steps, on clips that are not on this machine yet"
    except DatasetError as error:
        problems.append((error.where, form.in_words(str(error))))
    except StillLooking as error:
        unfinished = True
        problems.append(("dataset.path", str(error)))
    return Preview(config, problems, remarks, line, unfinished)


def _patient() -> Callable[[int, int], None]:
    """Told of videos that are measured; stops when the answer has waited long enough."""
    began = time.monotonic()

    def report(done: int, total: int) -> None:
        if done < total and time.monotonic() - began >= PATIENCE:
            raise StillLooking(done, total)

    return report


def headline(form: Form[TrainConfig], now: Preview) -> str:
    """The answer at the top of the tab."""
    if now.starts:
        return answer("This run would start", now.line)
    more = len(now.problems) - 1
    rest = f" ({more} more below.)" if more else ""
    return answer("This run would not start yet", now.problems[0][1] + rest, "bad")


def _to_mend(form: Form[TrainConfig], now: Preview) -> list[tuple[Any, str]]:
    """Why the buttons above cannot be pressed: the fields that stand in the way."""
    wrong = dict.fromkeys(control.label for control in form.controls if control.path in dict(now.problems))
    return [("error", f"To be mended first: {', '.join(wrong)}.")] if wrong else []


#: What stands where frames can be shown, before they are.
_UNSEEN = "The first clips, each with its first, middle and last frame as they will be trained."


def run_title(title: str, config: TrainConfig) -> str:
    """The title of a run; from its dataset and method where nobody gave one."""
    name = Path(config.dataset.path).name or Path(config.base_model).name
    return title.strip() or f"{name} {config.method.replace('_', ' ')}"


def command(workspace: Workspace, run_id: str) -> str:
    """The line that starts a run from the project's folder: what the queue runs."""
    path = workspace.root / "runs" / run_id
    folder = RunFolder(path.relative_to(PROJECT) if path.is_relative_to(PROJECT) else path)
    config, run_dir = shlex.quote(str(folder.config)), shlex.quote(str(folder.path))
    return f"python -m trainers.train \\\n  --config {config} \\\n  --run-dir {run_dir}"


def read_config(text: str) -> tuple[str, dict[str, Any], list[tuple[Any, str]]]:
    """(family, settings, what to say of them) from YAML of ours, or from an upstream config that a family knows.

    ConfigError where it is neither. Settings that cannot be used are named, not refused: the form shows the rest.
    """
    found = read_settings(text, "train")
    family = family_of(found.settings)
    said: list[tuple[Any, str]] = [("info", note) for note in found.notes]
    validation = found.settings.get("validation")
    if not family.has_image_models and isinstance(validation, dict) and validation.get("images"):
        said.append(("warning", f"validation.images is left out: {family.title} begins from no image"))
    try:
        validate(family.train_config, found.settings)
    except ConfigError as error:
        said = [("error", f"{where} {what}".strip()) for where, what in error.problems] + said
    return family.name, found.settings, said


def origins(workspace: Workspace, family: ModelFamily) -> list[Choice]:
    """What a run can start from: defaults, the family's presets, the demo, earlier runs."""
    found: list[Choice] = [("What stands below", "here"), ("Defaults", "defaults")]
    found += [(f"Preset: {name}", f"preset:{name}") for name in family.presets]
    try:
        if workspace.demo_config().family == family.name:
            found.append(("The demo: two minutes on a CPU", "demo"))
    except (WorkspaceError, ConfigError):
        pass
    runs = [info for info in workspace.runs("train") if info.family == family.name]
    return found + [(f"Run {info.id}", f"run:{info.id}") for info in runs[:50]]


#: What a preset leaves as it was chosen, unless it names it: it says how to train, not on what.
KEPT = (
    *(f"dataset.{name}" for name in ("path", "format", "subfolders", "video_folder", "videos", "prompts", "max_clips")),
    *(f"dataset.{name}" for name in ("video_list", "caption_list", "video_column", "caption_column", "hub_config")),
    *(f"dataset.{name}" for name in ("id_token", "id_token_glued")),
    "base_model",
    "motion_adapter",
    "validation.prompts",
    "validation.images",
)


def values_from(
    origin: str, form: Form[TrainConfig], family: ModelFamily, workspace: Workspace, now: Sequence[Any] = ()
) -> list[Any]:
    """The form filled from one of `origins`. now: its values as they are, of which a preset leaves what it does not
    name of `KEPT`."""
    kind, _, name = origin.partition(":")
    if kind == "run":
        return form.shown(read_yaml(workspace.run(name).config))
    if kind == "demo":
        values = demo_values(form, workspace)
        if values is None:
            raise WorkspaceError("the demo is not part of this installation: examples/demo is missing")
        return values
    preset = family.presets.get(name, {})
    values = form.starting_values({**first_picks(workspace, family), **preset})
    if kind == "preset" and now:
        shown = zip(form.paths, now, values, strict=True)
        return [before if path in KEPT and path not in preset else value for path, before, value in shown]
    return values


def _below(path: str, parent: Path) -> str:
    return str(Path(path).relative_to(parent)) if Path(path).is_relative_to(parent) else path


# --- the tab ----------------------------------------------------------------------------------------------------------


def build(page: Page) -> None:
    """Draw the tab and wire it."""
    workspace = page.workspace
    forms = {name: form_of(family, workspace) for name, family in FAMILIES.items()}
    first = next(iter(FAMILIES))

    with awaited() as room, gr.Row(elem_classes="row stack"):
        with gr.Column(scale=1, min_width=0):
            head = gr.HTML(answer("Configure"), elem_id="configure-answer")
            chosen = gr.Radio(
                [(f"{family.title}\n{_methods(family)}", name) for name, family in FAMILIES.items()],
                value=first, label="Family", show_label=False, container=False, elem_classes="cards", elem_id="family",
            )  # fmt: skip
            with gr.Column(elem_classes="card"):
                with gr.Row(elem_classes="actions"):
                    gr.HTML('<h2 class="title">Basics</h2>', elem_classes="grow")
                    origin = gr.Dropdown(
                        origins(workspace, FAMILIES[first]), value="here", label="Start from", filterable=False,
                        min_width=200, elem_id="origin", elem_classes="origin",
                    )  # fmt: skip
                columns: list[gr.Column] = []
                marks: dict[str, gr.State] = {}
                for name, form in forms.items():
                    with gr.Column(visible=name == first, min_width=0) as column:
                        values = starting_values(form, workspace)
                        form.build(values, prefix=name)
                        marks[name] = gr.State(form.marks(values))
                    columns.append(column)
            with gr.Column(elem_classes="card"):
                with gr.Row(elem_classes="actions"):
                    gr.HTML('<h2 class="title">What the model will see</h2>', elem_classes="grow")
                    look = gr.Button("Show the frames", size="md", elem_id="show-frames")
                frames = frame_strips(elem_id="frames")
            with gr.Accordion("Use a config of your own", open=False):
                reads = ", ".join(family.reads for family in FAMILIES.values() if family.reads)
                gr.Markdown(f"Paste a config of Dailies, or of another trainer: {reads}.", elem_classes="quiet")
                paste = gr.Textbox(
                    label="Config", show_label=False, container=False, lines=8, max_lines=24, elem_classes="mono",
                    elem_id="paste-config",
                )  # fmt: skip
                fill = gr.Button("Fill the form from this config", elem_id="fill-form")
                pasted = gr.HTML()
        with gr.Column(elem_classes="aside", scale=0, min_width=0), gr.Column(elem_classes="card"):
            gr.HTML('<h2 class="title">The run, as it will start</h2>')
            title = gr.Textbox(label="Title", placeholder="From dataset and method", max_lines=1, max_length=100)
            with gr.Row(elem_classes="actions"):
                queue = gr.Button("Queue this run", variant="primary", elem_id="queue-run", interactive=False)
                save = gr.Button("Save without queueing", elem_id="save-run", interactive=False)
            saved = gr.HTML(elem_id="saved")
            remarks = gr.HTML(elem_id="remarks")
            line = gr.Code(
                language="shell", label="Command", interactive=False, lines=3, visible=False, show_line_numbers=False,
                wrap_lines=True, buttons=["copy"], elem_id="command",
            )  # fmt: skip
            text = gr.Code(
                language="yaml", label="Config", interactive=False, lines=12, max_lines=28, visible=False,
                show_line_numbers=False, buttons=["copy", "download"], elem_id="yaml",
            )  # fmt: skip
    draft = page.draft
    clock = gr.Timer(1.0, active=False)
    shared = [head, saved, remarks, line, text, queue, save, draft, clock, frames]
    everything = [chosen, *columns, origin, title, *(c for form in forms.values() for c in form.components)]

    def fill_all(name: str, given: Mapping[str, Sequence[Any] | None], run: str | None = None) -> list[Any]:
        """Updates of `everything`: family `name` in sight, the forms in `given` filled."""
        cells = [
            cell for key, form in forms.items() for cell in form.refill(given.get(key), picks(workspace, FAMILIES[key]))
        ]
        return [
            name,
            *(gr.update(visible=key == name) for key in forms),
            gr.update(choices=origins(workspace, FAMILIES[name]), value="here"),
            gr.skip() if run is None else run,
            *cells,
        ]

    def come_back(kept: dict[str, Any] | None, place: dict[str, Any] | None) -> list[Any]:
        """The form as this browser left it, or as it starts."""
        kept = kept if isinstance(kept, dict) else {}
        name = str(kept.get("family")) if kept.get("family") in forms else first
        given = {}
        for key, form in forms.items():
            values = starting_values(form, workspace, (place or {}).get("dataset"))
            was = kept.get(key)
            known = dict(zip(form.paths, values, strict=True))
            if isinstance(was, dict):
                known |= {path: value for path, value in was.items() if path in known}
            given[key] = list(known.values())
        return fill_all(name, given, str(kept.get("title") or ""))

    def from_origin(choice: str, name: str, *all_values: Any) -> list[Any]:
        if choice == "here":
            return [gr.skip() for _ in everything]
        rest = iter(all_values)
        now = {key: [next(rest) for _ in form.components] for key, form in forms.items()}
        try:
            values = values_from(choice, forms[name], FAMILIES[name], workspace, now[name])
        except (WorkspaceError, ConfigError) as error:
            raise gr.Error(str(error), title="Start from") from error
        return fill_all(name, {name: values})

    def from_text(own: str, request: gr.Request) -> list[Any]:
        page.access.require_owner(request)  # a command may name files of this machine, which are read for it
        if not own.strip():
            return [*(gr.skip() for _ in everything), notes([("error", "Paste a config first.")])]
        try:
            name, settings, said = read_config(own)
        except ConfigError as error:
            return [*(gr.skip() for _ in everything), notes([("error", f"{w} {t}".strip()) for w, t in error.problems])]
        told = notes([("ok", "The form is filled."), *said])
        return [*fill_all(name, {name: forms[name].shown(settings)}), told]

    loaded = come_in(page.demo, room, come_back, [draft, page.place], everything, **QUICK)
    switched = chosen.input(
        lambda name: fill_all(name, {})[: 2 + len(columns)], chosen, everything[: 2 + len(columns)], **QUICK
    )
    controls = [component for form in forms.values() for component in form.components]
    started = origin.input(from_origin, [origin, chosen, *controls], everything, **QUICK)
    filled = fill.click(from_text, paste, [*everything, pasted], **QUICK)
    page.tab_items[CONFIGURE].select(lambda name: fill_all(name, {}), chosen, everything, **QUICK)

    for name, form in forms.items():
        wire = _Wire(page, FAMILIES[name], form)
        mine = [chosen, title, draft, frames, marks[name], *form.components]
        outputs = [*shared, marks[name], *form.outputs]
        for event in (loaded, switched, started, filled):
            event.then(wire.refresh, mine, outputs, **QUICK)
        clock.tick(wire.refresh, mine, outputs, **QUICK)
        typed = [component.input for component in (*form.components, title)]
        gr.on(typed, wire.refresh, mine, outputs, trigger_mode="always_last", **QUICK)
        page.begin_run.change(
            wire.begin, [page.begin_run, chosen, *form.components], [chosen, *columns, *form.components], **QUICK
        ).then(wire.refresh, mine, outputs, **QUICK)
        look.click(wire.look, [chosen, *form.components], frames, **{**QUICK, "show_progress": "minimal"})
        kept = [chosen, title, text, *form.components]
        queued = queue.click(wire.queue, kept, [saved, page.chosen_run, page.tabs, line], **TELLING)
        written = save.click(wire.save, kept, [saved, line], **QUICK)
        for event in (queued, written):
            event.failure(wire.refresh, mine, outputs, **QUICK)


class _Wire:
    """The handlers of one family's form. All families hear a shared button; those that are not chosen stay silent."""

    def __init__(self, page: Page, family: ModelFamily, form: Form[TrainConfig]) -> None:
        self.page = page
        self.family = family
        self.form = form

    def refresh(self, chosen: str, title: str, draft: Any, frames: Any, before: Marks, *values: Any) -> list[Any]:
        """What the values would start: answer, remarks, command, YAML, buttons, draft, and marks at the fields. Frames
        that are shown and are no longer what the model would see are taken away."""
        form = self.form
        if chosen != self.family.name:
            return [gr.skip() for _ in range(11 + len(form.outputs))]
        now = preview(form, self.family, values)
        marks = form.marks(values, now.problems)
        loose = [text for path, text in now.problems if path not in form.paths]
        if now.config is not None:
            run_id = self.page.workspace.next_run_id(run_title(title, now.config))
            yaml = gr.update(value=to_yaml(now.config), label="Config", visible=True)
            shown = [gr.update(value=command(self.page.workspace, run_id), visible=True), yaml]
        else:
            shown = [gr.skip(), gr.update(label="Config, as it was before")]
        as_before = isinstance(frames, dict) and frames.get("key") == frames_key(now.config)
        keep = dict(draft) if isinstance(draft, dict) else {}
        keep |= {"family": chosen, "title": title, chosen: dict(zip(form.paths, values, strict=True))}
        return [
            headline(form, now),
            "",
            notes([*_to_mend(form, now), *(("error", text) for text in loose), *now.remarks]),
            *shown,
            gr.update(interactive=now.starts),
            gr.update(interactive=now.starts),
            keep,
            gr.Timer(active=now.unfinished),
            gr.skip() if as_before else frames_value(frames_key(now.config), [], _UNSEEN),
            marks,
            *form.updates(before, marks),
        ]

    def look(self, request: gr.Request, chosen: str, *values: Any) -> Any:
        """The frames of the first clips, for the owner: a form may name any video of this machine."""
        if chosen != self.family.name:
            return gr.skip()
        self.page.access.require_owner(request)
        config, problems = self.form.check(values)
        if config is None:
            return frames_value("", [], f"Nothing can be shown yet: {problems[0][1]}")
        try:
            found = seen_frames(config, self.family, PROJECT, _patient())
        except StillLooking as error:
            return frames_value(frames_key(config), [], str(error))
        return {**found, "line": self.form.in_words(found["line"])}

    def begin(self, wish: dict[str, Any] | None, chosen: str, *values: Any) -> list[Any]:
        """The form for what the Dataset tab asks for: its dataset, and the frames and size that were looked with."""
        form, workspace = self.form, self.page.workspace
        if not wish or wish.get("family") != self.family.name:
            return [gr.skip() for _ in range(1 + len(FAMILIES) + len(form.components))]
        path = str(workspace.root / "datasets" / str(wish["dataset"]))
        current = dict(zip(form.paths, values, strict=True))
        base = list(values)
        if wish["dataset"] == DEMO and current.get("dataset.path") != path:
            base = starting_values(form, workspace, DEMO)
        merged = form.merge(base, {"dataset.path": path, "dataset.format": "dailies", **wish["settings"]})
        columns = [gr.update(visible=name == self.family.name) for name in FAMILIES]
        return [self.family.name, *columns, *form.refill(merged, picks(workspace, self.family))]

    def queue(self, request: gr.Request, chosen: str, title: str, shown: str, *values: Any) -> list[Any]:
        """Save the run, queue it, and go and watch it."""
        run_id = self._make(request, chosen, title, shown, values)
        if run_id is None:
            return [gr.skip() for _ in range(4)]
        try:
            self.page.queue.submit(run_id, "train")
        except JobError as error:
            raise gr.Error(str(error), title="Queue this run") from error
        return ["", run_id, gr.Tabs(selected=TRAIN), command(self.page.workspace, run_id)]

    def save(self, request: gr.Request, chosen: str, title: str, shown: str, *values: Any) -> list[Any]:
        """Save the run; the command starts it."""
        run_id = self._make(request, chosen, title, shown, values)
        if run_id is None:
            return [gr.skip(), gr.skip()]
        said = notes(
            [("ok", f"Saved as {run_id}. Train lists it and can queue it; the command below starts it by itself.")]
        )
        return [said, command(self.page.workspace, run_id)]

    def _make(self, request: gr.Request, chosen: str, title: str, shown: str, values: Sequence[Any]) -> str | None:
        """A new run of what the form says, if that is what the page shows as its config."""
        if chosen != self.family.name:
            return None
        self.page.access.require_owner(request)
        now = preview(self.form, self.family, values)
        if now.config is None or now.problems:
            raise gr.Error(now.problems[0][1], title="This run would not start yet")
        if (shown or "").split() != to_yaml(now.config).split():  # a page that was still loading, say
            raise gr.Error("The form changed a moment ago; look at the config as it is now, then press again.")
        try:
            return self.page.workspace.new_run(now.config, run_title(title, now.config)).id
        except (WorkspaceError, OSError) as error:
            raise gr.Error(f"The run cannot be saved: {why(error)}", title="Save") from error


def _methods(family: ModelFamily) -> str:
    return ", ".join(name.replace("_", " ") for name in family.methods)
