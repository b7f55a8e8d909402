"""Train: how is it going? The queue at the left, the chosen run at the right, both read from disk."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import gradio as gr
import pandas as pd

from studio import progress
from studio.jobs import JobError, JobQueue, Kind
from studio.page import COMPARE, TELLING, Page
from studio.parts.lists import head, head_value, job_list, jobs_value, take_list, takes_value
from studio.parts.looks import Seen, changed, told
from studio.parts.pictures import looks_of
from studio.parts.runs import Entry, Runs, find
from studio.parts.wall import empty_wall, wall, wall_value
from studio.progress import Event
from studio.workspace import Workspace, WorkspaceError
from trainers.config import TrainConfig
from trainers.families import FAMILIES, load_config
from trainers.runs import RunFolder
from trainers.settings import ConfigError

SECONDS_BETWEEN_LOOKS = 1.5
LOG_LINES = 200
EMPTY_QUEUE = "Runs wait, run and end here. Configure one from your clips, or watch the demo train."
#: Series of the loss plot; each stands out from a light ground and a dark one.
COLOURS = {"loss": "#a39c8f", "smoothed": "#d07a16", "validation": "#4a86c8"}
#: Buttons in their order on the page. Each is shown where it makes sense; a disabled one says why.
ACTIONS = ("compare", "sample", "save", "resume", "up", "down", "stop", "remove")


@dataclass(frozen=True)
class Action:
    """How a button stands: shown or not; its label, which says why when it is disabled."""

    label: str = ""
    enabled: bool = True

    @property
    def update(self) -> Any:
        return gr.update(value=self.label, interactive=self.enabled, visible=bool(self.label))


# --- what the tab shows -----------------------------------------------------------------------------------------------


def run_to_show(entries: Sequence[Entry], chosen: str | None, shown: str | None) -> str | None:
    """The chosen run while it is there, else the one that is shown, else the first running one, else the newest."""
    for run in (chosen, shown):
        if find(entries, run) is not None:
            return run
    running = next((entry for entry in entries if entry.running), None)
    newest = max(entries, key=lambda entry: entry.info.created, default=None)
    best = running or newest
    return best.id if best else None


def run_kind(entry: Entry) -> str:
    """What kind of run it is, in a few words."""
    family = FAMILIES.get(entry.info.family)
    words = [family.title if family else entry.info.family]
    words += ["comparison"] if entry.info.kind == "sample" else [entry.info.method.replace("_", " ")]
    return ", ".join(word for word in words if word)


def actions(entry: Entry | None, waiting: Sequence[str], config: TrainConfig | None) -> dict[str, Action]:
    """Every button of the chosen run. waiting: ids of the waiting runs in their order."""
    shown = dict.fromkeys(ACTIONS, Action())
    if entry is None:
        return shown
    training = entry.info.kind == "train"
    saved = entry.info.folder.checkpoints() if training else []
    if not training:
        shown["compare"] = Action("Open the wall")
    elif saved:
        shown["compare"] = Action("Compare takes")
    else:
        shown["compare"] = Action("Compare takes: no checkpoint yet", enabled=False)
    if entry.running and entry.job is not None:
        if entry.job.cancel_requested:
            shown["stop"] = Action("Stopping", enabled=False)
        else:
            shown["stop"] = Action("Stop and save" if training else "Stop")
            if training:
                shown |= _wishes(entry, config)
    elif entry.queued:
        place = waiting.index(entry.id) if entry.id in waiting else 0
        shown["stop"] = Action("Cancel this run")
        shown["up"] = Action("Move up") if place else Action("Move up: already first", enabled=False)
        last = place == len(waiting) - 1
        shown["down"] = Action("Move down: already last", enabled=False) if last else Action("Move down")
    else:
        shown["resume"] = Action(_start_label(entry, saved[-1].step if saved else None))
        if entry.job is not None:
            shown["remove"] = Action("Remove from queue")
    return shown


def _wishes(entry: Entry, config: TrainConfig | None) -> dict[str, Action]:
    """What can be asked of a trainer while it trains; it answers after the step at hand."""
    if entry.status.phase not in ("training", "saving"):
        why = f"not while {entry.status.phase}" if entry.status.phase else "not training yet"
        return {
            "save": Action(f"Save now: {why}", enabled=False),
            "sample": Action(f"Sample now: {why}", enabled=False),
        }
    if config is not None and not config.validation.prompts:
        return {"save": Action("Save now"), "sample": Action("Sample now: no validation prompts", enabled=False)}
    return {"save": Action("Save now"), "sample": Action("Sample now")}


def _start_label(entry: Entry, saved_step: int | None) -> str:
    if entry.state == "finished":
        return ""
    if entry.info.kind == "sample":
        return "Start again" if entry.count else "Queue this comparison"
    if saved_step is not None:
        return f"Resume from step {saved_step}"
    return "Queue this run" if entry.job is None and not entry.count else "Start again"


def samples_value(
    workspace: Workspace, folder: RunFolder, events: Sequence[Event], config: TrainConfig | None, running: bool
) -> dict[str, Any]:
    """The wall of a training run: a row for each prompt and seed, a column for each step with samples, base first."""
    found = progress.samples(events)
    if config is None:
        return empty_wall("The run's config.yaml cannot be read, so its samples cannot be laid out.")
    validation = config.validation
    if not validation.prompts:
        return empty_wall("This run has no validation prompts, so it draws no samples.")
    if not found:
        return empty_wall("Samples appear here: of the base model first, then at every validation.")
    asked = [(prompt, seed) for prompt in validation.prompts for seed in validation.seeds]
    looks = looks_of(validation.images, len(validation.prompts), len(validation.seeds))
    rows = [{"prompt": prompt, "seed": seed, "look": look} for (prompt, seed), look in zip(asked, looks, strict=True)]
    by_step: dict[int, dict[int | None, Event]] = {}
    for event in found:
        by_step.setdefault(event["step"], {})[_row_of(event, asked)] = event
    columns: list[dict[str, Any]] = [
        {"label": f"step {step}" if step else "base", "sub": "" if step else "before training", "key": step}
        for step in by_step
    ]
    coming = _next_samples(max(by_step), config) if running else None
    if coming is not None and coming not in by_step:
        columns.append({"label": f"step {coming}", "sub": "to come", "key": coming})
    cells = [
        [_cell(workspace, folder, by_step.get(column["key"], {}).get(row)) for column in columns]
        for row in range(len(rows))
    ]
    size = config.dataset
    return wall_value(
        folder.id, columns, rows, cells, fps=validation.fps, num_frames=validation.num_frames or size.num_frames,
        height=validation.height or size.height, width=validation.width or size.width,
        pending="to come" if running else "not sampled", autoplay=True,
    )  # fmt: skip


def _row_of(event: Event, rows: Sequence[tuple[str, int]]) -> int | None:
    """A sample's row: its file is numbered by it. None for one of a prompt and seed that the run no longer has."""
    asked = event["prompt"], event["seed"]
    stem = PurePosixPath(event["path"]).stem
    if stem.isdigit() and int(stem) < len(rows) and rows[int(stem)] == asked:
        return int(stem)
    return next((place for place, row in enumerate(rows) if row == asked), None)


def _next_samples(last: int, config: TrainConfig) -> int | None:
    every = config.validation.every_steps
    if every is None or last >= config.max_train_steps:
        return None
    return min((last // every + 1) * every, config.max_train_steps)


def _cell(workspace: Workspace, folder: RunFolder, event: Event | None) -> dict[str, Any] | None:
    if event is None:
        return None
    try:
        return {"video": workspace.media(folder.path / event["path"])}
    except WorkspaceError as error:
        return {"error": str(error)}


def run_takes(folder: RunFolder, running: bool) -> dict[str, Any]:
    """The checkpoints of a run, newest first."""
    best, stars, takes = folder.best(), folder.starred(), []
    checkpoints = folder.checkpoints()
    for checkpoint in reversed(checkpoints):
        loss = checkpoint.meta().get("validation_loss")
        marks = ["best"] if best is not None and best.step == checkpoint.step else []
        marks += ["last"] if checkpoint is checkpoints[-1] and not running else []
        takes.append(
            {
                "step": checkpoint.step,
                "loss": f"{loss:.4g}" if isinstance(loss, (int, float)) else "",
                "marks": marks,
                "starred": checkpoint.step in stars,
            }
        )
    return takes_value(folder.id, takes, "No checkpoint yet. The last step is always saved.")


def loss_plot(table: pd.DataFrame) -> Any:
    """The update that shows a loss table; hidden while there is none."""
    return gr.update(visible=False) if table.empty else gr.update(value=with_all(table, COLOURS), visible=True)


def with_all(table: pd.DataFrame, series: Iterable[str]) -> pd.DataFrame:
    """A table (step, a value, series) in which each of `series` stands.

    Gradio 6.31 draws only the series that the first table had, so each stands in every table, if only with no value.
    And only the table is sent: with a new y_lim beside it, the old one is drawn anew.
    """
    absent = [name for name in series if name not in set(table["series"])]
    unseen = pd.DataFrame({"step": table["step"].iloc[0], table.columns[1]: float("nan"), "series": absent})
    return pd.concat([table, unseen], ignore_index=True) if absent else table


def read_config(folder: RunFolder) -> TrainConfig | None:
    """The config of a training run; None when it cannot be read."""
    try:
        return load_config(folder.config)
    except ConfigError:
        return None


# --- what changed since the last look ---------------------------------------------------------------------------------

#: Outputs of every handler, after the run that is shown and what was seen.
SHOWN = (
    "jobs",
    "demo",
    "head",
    *ACTIONS,
    "training",
    "plot",
    "moved",
    "measures",
    "samples",
    "takes",
    "logbook",
    "log",
)


def refresh(runs: Runs, chosen: str | None, shown: str | None, seen: Mapping[str, str]) -> list[Any]:
    """[run that is shown, seen, an update for each of SHOWN]: only what looks different from what was seen.

    Cheap when nothing happened: a list of folders, a query, one read past the end of each event log.
    """
    entries = runs.entries()
    shown_now = run_to_show(entries, chosen, shown)
    entry = find(entries, shown_now)
    fresh: dict[str, tuple[Any, Any]] = {}  # name -> (what to compare, the update)

    listed = jobs_value(entries, shown_now, EMPTY_QUEUE)
    fresh["jobs"] = (listed, listed)
    fresh["demo"] = (not entries, gr.update(visible=not entries))
    if entry is None:
        nothing = head_value("Nothing has run yet", "A run's losses, samples and takes stand here.")
        fresh["head"] = (nothing, nothing)
    else:
        now_so = head_value(entry.id, entry.line, kind=run_kind(entry), state=entry.state, fraction=entry.fraction)
        fresh["head"] = (now_so, now_so)
    key = _key(entry, [e.id for e in entries if e.queued])
    if key != seen.get("key"):
        fresh |= _details(runs, entry, [e.id for e in entries if e.queued])
    return [shown_now if shown_now != shown else gr.skip(), *changed(SHOWN, fresh, seen, key)]


def _key(entry: Entry | None, waiting: Sequence[str]) -> str:
    """Changes when anything of the chosen run may look different. The waiting runs matter for its buttons."""
    if entry is None:
        return "none"
    folder = entry.info.folder
    sizes = [file.stat().st_size if file.exists() else 0 for file in (folder.log, folder.control)]
    saved = [checkpoint.path.name for checkpoint in folder.checkpoints()]
    return repr((entry.id, entry.job, entry.count, sizes, saved, list(waiting) if entry.queued else None))


def _details(runs: Runs, entry: Entry | None, waiting: Sequence[str]) -> dict[str, tuple[Any, Any]]:
    """All that stands below the head of the chosen run, with what tells whether it looks different."""
    training = entry is not None and entry.info.kind == "train"
    config = read_config(entry.info.folder) if entry is not None and training else None
    fresh: dict[str, tuple[Any, Any]] = {
        name: (repr(action), action.update) for name, action in actions(entry, waiting, config).items()
    }
    fresh["logbook"] = (entry is not None, gr.update(visible=entry is not None))
    fresh["training"] = (training, gr.update(visible=training))
    log = progress.log_tail(entry.info.folder, LOG_LINES) if entry is not None else ""
    log = log or "Nothing is written here before the run has started."
    fresh["log"] = (log, log)
    if entry is None or not training:
        fresh["plot"] = fresh["moved"] = (False, gr.update(visible=False))
        return fresh
    folder = entry.info.folder
    events = runs.events(folder)
    table = progress.loss_table(events)
    fresh["plot"] = ([entry.id, len(table), table.tail(3).to_dict("list")], loss_plot(table))
    measures = progress.measure_table(events)
    moved = measures["step"].nunique() > 1
    fresh["moved"] = (moved, gr.update(visible=moved))
    if moved:
        drawn = with_all(measures, progress.MEASURES)
        fresh["measures"] = ([entry.id, measures.to_dict("list")], gr.update(value=drawn))
    samples = samples_value(runs.workspace, folder, events, config, entry.running)
    fresh["samples"] = (samples, samples)
    takes = run_takes(folder, entry.running)
    fresh["takes"] = (takes, takes)
    return fresh


# --- what the buttons do ----------------------------------------------------------------------------------------------


def act(name: str, workspace: Workspace, queue: JobQueue, run: str | None) -> str | None:
    """Do what a button of the chosen run says; gives a word to show, where the page itself does not show it."""
    if run is None:
        raise JobError("choose a run first")
    folder, job = workspace.root / "runs" / run, queue.last_of(run)
    if name in ("save", "sample"):
        workspace.run(run).wish(name)
        return {"save": "A checkpoint is saved after this step.", "sample": "Samples are drawn after this step."}[name]
    if name == "resume":
        if job is not None:
            queue.retry(job.id)
        else:
            kind: Kind = next((info.kind for info in workspace.runs() if info.id == run), "train")
            queue.submit(run, kind, resume=kind == "train" and bool(RunFolder(folder).checkpoints()))
        return None
    if job is None:
        raise JobError(f"run {run} is not in the queue")
    if name == "stop":
        queue.cancel(job.id)
    elif name in ("up", "down"):
        queue.move(job.id, -1 if name == "up" else 1)
    elif name == "remove":
        for old in queue.jobs():
            if old.run_id == run and old.state.ended:
                queue.remove(old.id)
    return None


def star(workspace: Workspace, run: str, step: int, on: bool) -> None:
    """Star a checkpoint, or take its star away."""
    folder = workspace.run(run)
    if step not in {checkpoint.step for checkpoint in folder.checkpoints()}:
        raise WorkspaceError(f"step {step} of run {run} is no longer there")
    folder.wish("star" if on else "unstar", step=step)


def queue_demo(workspace: Workspace, queue: JobQueue) -> str:
    """Put a run of the demo in the queue; gives its id."""
    workspace.add_demo()
    folder = workspace.new_run(workspace.demo_config(), "demo")
    queue.submit(folder.id, "train")
    return folder.id


# --- layout and wires -------------------------------------------------------------------------------------------------


def build(page: Page) -> None:
    """Draw the tab and wire it."""
    runs = Runs(page.workspace, page.queue)
    shown, seen = gr.State(None), gr.State({})
    parts: dict[str, Any] = {}
    with gr.Row(elem_classes="row stack"):
        with gr.Column(elem_classes="side", scale=0, min_width=0), gr.Column(elem_classes="card"):
            gr.Markdown("### Queue")
            parts["jobs"] = job_list()
            parts["demo"] = gr.Button("Queue the demo run", variant="primary", visible=False, elem_id="queue-demo")
        with gr.Column(scale=1, min_width=0):
            with gr.Column(elem_classes="card"):
                parts["head"] = head("run-head")
                with gr.Row(elem_classes="actions"):
                    for name in ACTIONS:
                        looks = {"compare": "primary", "stop": "stop"}.get(name, "secondary")
                        parts[name] = gr.Button(name, variant=looks, visible=False, size="md", elem_id=f"act-{name}")
                parts["plot"] = gr.LinePlot(
                    x="step",
                    y="loss",
                    color="series",
                    color_map=COLOURS,
                    x_title="step",
                    y_title="loss",
                    color_title=" ",
                    height=260,
                    visible=False,
                    show_label=False,
                    buttons=[],
                    elem_id="loss",
                )
                with gr.Column(visible=False) as parts["moved"]:
                    gr.Markdown("### What has moved")
                    parts["measures"] = gr.LinePlot(
                        x="step",
                        y="value",
                        color="series",
                        color_map=progress.MEASURE_COLOURS,
                        x_title="step",
                        y_title="share",
                        color_title=" ",
                        y_lim=[0, 1],
                        height=220,
                        show_label=False,
                        buttons=[],
                        elem_id="measures",
                    )
                    gr.Markdown(progress.HOW_TO_READ, elem_classes="quiet")
            with gr.Column(visible=False) as parts["training"]:
                with gr.Column(elem_classes="card"):
                    gr.Markdown("### Samples")
                    parts["samples"] = wall(elem_id="samples")
                with gr.Column(elem_classes="card"):
                    gr.Markdown("### Takes")
                    parts["takes"] = take_list()
            with gr.Accordion("Log", open=False, visible=False, elem_classes="card") as parts["logbook"]:
                parts["log"] = gr.Textbox(
                    lines=16, max_lines=16, interactive=False, show_label=False, container=False, elem_classes="mono",
                    elem_id="log",
                )  # fmt: skip

    outputs = [shown, seen, *(parts[name] for name in SHOWN)]
    inputs = [page.chosen_run, shown, seen]

    def look(chosen: str | None, run: str | None, before: Seen) -> Any:
        return refresh(runs, chosen, run, before)

    def look_anew(chosen: str | None) -> Any:
        return refresh(runs, chosen, None, {})

    def pick(before: Seen, event: gr.EventData) -> Any:
        return [str(event.run), *refresh(runs, str(event.run), None, before)]

    def presser(name: str) -> Any:
        def press(chosen: str | None, run: str | None, before: Seen, request: gr.Request) -> Any:
            page.access.require_owner(request)
            with told():
                word = act(name, page.workspace, page.queue, run)
            if word:
                gr.Info(word, title="Asked")
            return refresh(runs, chosen, run, before)

        return press

    def demo(before: Seen, request: gr.Request) -> Any:
        page.access.require_owner(request)
        with told():
            run = queue_demo(page.workspace, page.queue)
        return [run, *refresh(runs, run, None, before)]

    def toggle_star(chosen: str | None, run: str | None, before: Seen, event: gr.EventData, request: gr.Request) -> Any:
        page.access.require_owner(request)
        with told():
            star(page.workspace, str(event.run), int(event.step), bool(event.on))
        return refresh(runs, chosen, run, before)

    def compare(run: str | None) -> Any:
        return run, {"run": run, "at": time.time()}, gr.Tabs(selected=COMPARE)

    page.demo.load(look_anew, page.chosen_run, outputs, **TELLING)
    gr.Timer(SECONDS_BETWEEN_LOOKS).tick(look, inputs, outputs, **TELLING)
    page.chosen_run.change(look, inputs, outputs, **TELLING)
    parts["jobs"].pick(pick, seen, [page.chosen_run, *outputs], **TELLING)
    parts["takes"].star(toggle_star, inputs, outputs, **TELLING)
    parts["demo"].click(demo, seen, [page.chosen_run, *outputs], **TELLING)
    parts["compare"].click(compare, shown, [page.chosen_run, page.begin_comparison, page.tabs], **TELLING)
    for name in ACTIONS:
        if name != "compare":
            parts[name].click(presser(name), inputs, outputs, **TELLING)
