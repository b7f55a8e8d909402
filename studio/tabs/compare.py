"""Compare: which take is best? A wall of clips at the top; how to ask for another one folds out above it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from studio import progress
from studio.compare_form import (
    COUNTED,
    DRAFT,
    amiss_with_images,
    begins_from_image,
    checked_config,
    count_line,
    first_values,
    form_of,
    images_to_begin_with,
    kept_form,
    left_off,
    many,
    queue_comparison,
    read_run,
    run_to_begin_with,
    take_choices,
    takes_to_begin_with,
)
from studio.comparisons import comparison_value, comparisons, moved_value
from studio.forms import Form, Marks
from studio.jobs import JobQueue
from studio.page import COMPARE, QUICK, TELLING, Drawing, Page, awaited, come_in
from studio.parts.lists import head, head_value
from studio.parts.looks import Seen, changed, told
from studio.parts.measures import measure_list, measures_value
from studio.parts.pictures import PictureRoom, offered_clips, picture_room, pictures_value
from studio.parts.runs import Entry, Runs, find
from studio.parts.wall import empty_wall, wall
from studio.workspace import Workspace, WorkspaceError
from trainers.config import SampleConfig
from trainers.data.clips import DatasetError
from trainers.data.video import VideoError
from trainers.families import FAMILIES
from trainers.families.base import ModelFamily

SECONDS_BETWEEN_LOOKS = 1.5
NO_WALL = "Choose takes and prompts above; base and takes then stand here side by side, in step."
NO_TAKES = "Train a run: its checkpoints are the takes. Until then the base can be sampled alone."
WHAT_MOVEMENT_IS = "Movement is how far a pixel moves from frame to frame, in percent of the picture's diagonal."

# --- what changed since the last look ---------------------------------------------------------------------------------

#: Outputs of every look at the wall, after the comparison that is shown and what was seen.
SHOWN = ("head", "earlier", "stop", "again", "wall", "moved", "measures", "mp4", "gif")


def refresh(runs: Runs, shown: str | None, seen: Mapping[str, str]) -> list[Any]:
    """[comparison that is shown, seen, an update for each of SHOWN]: only what looks different from what was seen."""
    made = comparisons(runs.entries())
    entry = find(made, shown) or (made[0] if made else None)
    run = entry.id if entry else None
    names = [e.id for e in made]
    fresh: dict[str, tuple[Any, Any]] = {
        "earlier": ([names, run], gr.update(choices=names, value=run, visible=len(names) > 1)),
    }
    if entry is None:
        takes = len(runs.workspace.takes())
        nothing = head_value("No comparison yet", f"{many(takes, 'checkpoint')} to choose from." if takes else NO_TAKES)
        fresh["head"] = (nothing, nothing)
        fresh["stop"] = fresh["again"] = (False, gr.update(visible=False))
    else:
        now_so = head_value(entry.id, entry.line, state=entry.state, fraction=entry.fraction)
        fresh["head"] = (now_so, now_so)
        fresh["stop"] = stop_button(entry)
        fresh["again"] = again_button(entry)
    key = repr((entry.id, entry.job, entry.count)) if entry else "none"
    if key != seen.get("key"):
        events = runs.events(entry.info.folder) if entry else []
        drawn = comparison_value(runs.workspace, entry, events) if entry else empty_wall(NO_WALL)
        fresh["wall"] = (drawn, drawn)
        measures = moved_value(runs.workspace, entry, events) if entry else measures_value([])
        fresh["measures"] = (measures, measures)
        fresh["moved"] = (bool(measures["takes"]), gr.update(visible=bool(measures["takes"])))
        fresh |= downloads(runs.workspace, entry)
    return [run if run != shown else gr.skip(), *changed(SHOWN, fresh, seen, key)]


def downloads(workspace: Workspace, entry: Entry | None) -> dict[str, tuple[Any, Any]]:
    """The buttons that hand out the whole wall as one file, once the comparison has written it."""
    found: dict[str, tuple[Any, Any]] = {}
    for suffix in ("mp4", "gif"):
        file = entry.info.folder.grid.with_suffix(f".{suffix}") if entry and entry.state == "finished" else None
        if file is not None and file.exists():
            found[suffix] = (str(file), gr.update(visible=True, value=workspace.media(file)["path"]))
        else:
            found[suffix] = ("", gr.update(visible=False, value=None))
    return found


def stop_button(entry: Entry) -> tuple[Any, Any]:
    """How the button stands that ends a comparison which waits or runs."""
    if entry.queued:
        return "cancel", gr.update(visible=True, value="Cancel this comparison", interactive=True)
    if entry.running and entry.job is not None:
        asked = entry.job.cancel_requested
        return ["stop", asked], gr.update(visible=True, value="Stopping" if asked else "Stop", interactive=not asked)
    return False, gr.update(visible=False)


def again_button(entry: Entry) -> tuple[Any, Any]:
    """How the button stands that samples what a comparison lacks; what it has costs nothing."""
    over = not entry.queued and not entry.running and entry.state != "finished"
    return over, gr.update(visible=over, value="Sample what is missing")


def start_again(queue: JobQueue, run: str) -> None:
    """Put a comparison that did not finish back into the queue."""
    job = queue.last_of(run)
    if job is None:
        queue.submit(run, "sample")
    else:
        queue.retry(job.id)


# --- layout and wires -------------------------------------------------------------------------------------------------

#: What an opened form is, in the order of the updates that `Desk.opened` gives.
OPENED = ("filled", "own", "folded", "family", "takes", "pictures", "marks", "go", "total")


def build(page: Page) -> None:
    """Draw the tab and wire it."""
    workspace, queue = page.workspace, page.queue
    runs = Runs(workspace, queue)
    first = next(iter(FAMILIES))
    shown, seen, fresh = gr.State(None), gr.State({}), gr.State(None)
    parts: dict[str, Any] = {name: gr.State(None) for name in ("filled", "own", "marks")}
    parts["pictures"] = gr.State([])

    with awaited() as room:
        with gr.Row(elem_classes=["card", "actions"]):
            parts["head"] = head("comparison-head")
            parts["again"] = gr.Button("Sample what is missing", visible=False, size="md")
            parts["stop"] = gr.Button("Stop", variant="stop", visible=False, size="md")
            parts["earlier"] = gr.Dropdown(
                show_label=False, container=False, filterable=False, visible=False, elem_id="earlier",
                elem_classes="grow",
            )  # fmt: skip
        with gr.Accordion("New comparison", open=False, elem_id="new-comparison", elem_classes="card") as folded:
            parts["folded"] = folded
            parts["family"] = gr.Radio(
                [(family.title, name) for name, family in FAMILIES.items()],
                value=first, label="Family", visible=len(FAMILIES) > 1,
            )  # fmt: skip
            parts["takes"] = gr.Dropdown(
                choices=[], value=[], multiselect=True, allow_custom_value=True, label="Takes",
                info="Checkpoints of any run. The path of an adapter file can be typed as well.",
                elem_id="compare-takes",
            )  # fmt: skip
            drawing = Drawing("compare-form")
            problem = head("compare-problem")
            with gr.Row(elem_classes="actions"):
                parts["go"] = gr.Button(
                    "Compare", variant="primary", interactive=False, size="md", elem_id="compare-go"
                )
                parts["total"] = gr.Markdown("", elem_id="compare-total", elem_classes=["quiet", "grow"])
        parts["wall"] = wall(elem_id="wall")
        with gr.Row(elem_classes="actions"):
            for suffix in ("mp4", "gif"):
                label = f"Download all clips as one {suffix.upper()}"
                parts[suffix] = gr.DownloadButton(label, visible=False, size="md", elem_id=f"download-{suffix}")
        with gr.Column(visible=False, elem_classes="card") as parts["moved"]:
            gr.Markdown("### What has moved")
            parts["measures"] = measure_list(elem_id="moved")
            gr.Markdown(f"{progress.HOW_TO_READ} {WHAT_MOVEMENT_IS}", elem_classes="quiet")

    desk = Desk(workspace, runs)
    outputs = [shown, seen, *(parts[name] for name in SHOWN)]
    opened = [parts[name] for name in OPENED]

    def come(chosen: str | None, wish: Any, run: str | None, before: Seen, *kept: Any) -> list[Any]:
        """Arriving at the tab: a chosen comparison is shown, a chosen run's takes are offered."""
        entry = find(runs.entries(), chosen)
        if entry is not None and entry.info.kind == "sample":
            return [*refresh(runs, entry.id, before), *[gr.skip()] * (1 + len(OPENED))]
        return [*refresh(runs, run, before), *desk.arrive(chosen, wish, entry is not None, *kept)]

    def open_page(chosen: str | None, dataset: str | None, draft: Any) -> list[Any]:
        chosen = chosen or kept_form(draft).get("run")
        return [*refresh(runs, None, {}), *desk.fill(chosen, False, dataset, draft)]

    def look(run: str | None, before: Seen) -> list[Any]:
        return refresh(runs, run, before)

    def follow(chosen: str | None, run: str | None, before: Seen) -> list[Any]:
        """A comparison that was chosen elsewhere, or before a reload, is shown."""
        return refresh(runs, chosen if find(comparisons(runs.entries()), chosen) else run, before)

    def show(run: str | None, before: Seen) -> list[Any]:
        return [run, run, *refresh(runs, run, before)[1:]]

    def stop(run: str | None, before: Seen, request: gr.Request) -> list[Any]:
        page.access.require_owner(request)
        with told():
            job = queue.last_of(run) if run else None
            if job is not None:
                queue.cancel(job.id)
        return refresh(runs, run, before)

    def again(run: str | None, before: Seen, request: gr.Request) -> list[Any]:
        page.access.require_owner(request)
        with told():
            if run is not None:
                start_again(queue, run)
        return refresh(runs, run, before)

    around = [page.chosen_dataset, page.draft]
    kept = [parts["filled"], parts["own"], parts["takes"], *around]
    come_in(page.demo, room, open_page, [page.chosen_run, *around], [*outputs, *opened], **TELLING)
    arriving = [page.chosen_run, page.begin_comparison, shown, seen, *kept]
    page.tab_items[COMPARE].select(come, arriving, [*outputs, *opened, fresh], **TELLING)
    page.begin_comparison.change(desk.begin, [page.begin_comparison, *kept], [*opened, fresh], **TELLING)
    switching = [parts["family"], parts["filled"], *around]
    drawing.asked_by(parts["family"].input, desk.switch, switching, [*opened, page.draft], trigger_mode="always_last")
    page.chosen_run.change(follow, [page.chosen_run, shown, seen], outputs, **TELLING)
    gr.Timer(SECONDS_BETWEEN_LOOKS).tick(look, [shown, seen], outputs, **TELLING)
    parts["earlier"].input(show, [parts["earlier"], seen], [page.chosen_run, *outputs], **TELLING)
    parts["stop"].click(stop, [shown, seen], outputs, **TELLING)
    parts["again"].click(again, [shown, seen], outputs, **TELLING)

    def draw(now: dict[str, Any], marks: Marks, paths: list[str], images: list[str]) -> None:
        wire = Wire(page, runs, FAMILIES[now["family"]])
        rooms: list[PictureRoom] = []

        def draw_room() -> None:
            asked, row = wire.pictures(paths, images, now["values"])
            rooms.append(picture_room(wire.prefix, asked, row, offered_clips(workspace, now["dataset"])))

        after = {"prompts": draw_room} if wire.family.has_image_models else {}
        drawn = wire.form.build(now["values"], marks, prefix=wire.prefix, after=after)
        values, pictures = drawn.components, parts["pictures"]
        written = [parts["own"], parts["filled"], page.draft, parts["takes"], pictures, *values]
        counted = [parts["takes"], pictures, *values]
        count = [parts["go"], parts["total"], *(part for place in rooms for part in (place.room, place.row))]
        typed = [parts["takes"].input, *(control.input for control in values)]
        gr.on(typed, wire.keep, written, page.draft, trigger_mode="always_last", **QUICK)
        telling = [c for p, c in zip(wire.form.paths, values, strict=True) if p in COUNTED]
        typed = [parts["takes"].input, *(control.input for control in telling)]
        gr.on(typed, wire.count, counted, count, trigger_mode="always_last", **QUICK)
        offered = [*drawn.picks, *(place.clips for place in rooms)]
        fresh.change(wire.offers, page.chosen_dataset, offered, **QUICK).then(wire.count, counted, count, **QUICK)
        parts["go"].click(
            wire.submit,
            [seen, parts["marks"], *counted],
            [page.chosen_run, *outputs, parts["folded"], parts["marks"], problem, *drawn.outputs],
            **TELLING,
        )
        for place in rooms:
            for change in (
                place.upload.upload(wire.add_files, [place.upload, pictures], pictures, **TELLING),
                place.clips.select(
                    wire.add_clip, [place.clips, page.chosen_dataset, pictures], [pictures, place.clips], **TELLING
                ),
                place.row.remove(remove_image, pictures, pictures, **TELLING),
                place.row.earlier(move_image, pictures, pictures, **TELLING),
            ):
                change.success(wire.keep, written, page.draft, **QUICK)
                change.success(wire.count, counted, count, **QUICK)

    drawing.anew(parts["filled"], [parts["marks"], parts["takes"], parts["pictures"]], draw)


class Desk:
    """What puts a form on the page, or another one: for which run, and with what."""

    def __init__(self, workspace: Workspace, runs: Runs) -> None:
        self.workspace = workspace
        self.runs = runs

    def fill(
        self,
        chosen: str | None,
        opening: bool,
        dataset: str | None,
        draft: Any,
        family: str | None = None,
        asked: int = 0,
    ) -> list[Any]:
        """The form for a run, or for the newest, as this browser left it; open too where there is no comparison yet.

        family: that one's, whatever the run's is. An update for each of `OPENED`."""
        entries = self.runs.entries()
        opening = opening or not comparisons(entries)
        entry = run_to_begin_with(entries, chosen)
        config, run = read_run(entry), entry.id if entry else None
        left = left_off(draft, run)
        name = family or left.get("family") or (config.family if config else next(iter(FAMILIES)))
        form = form_of(FAMILIES[name], self.workspace)
        own = takes_to_begin_with(self.workspace.takes(), run) if not config or config.family == name else []
        takes = left["takes"] if left.get("takes") is not None and left["family"] == name else own
        images = images_to_begin_with(self.workspace, left, config)
        values = first_values(form, config, left)
        button, total, _ = counted_line(form, takes, images, values)
        # The time makes each filling another one, so that what was typed meanwhile gives way to it.
        filled = {"run": run, "family": name, "values": values, "at": time.time()}
        filled |= {"picks": form.picks, "dataset": dataset, "asked": asked}
        offered = gr.update(choices=take_choices(self.workspace, name), value=takes)
        return [filled, own, gr.update(open=opening), name, offered, images, form.marks(values), button, total]

    def arrive(
        self,
        chosen: str | None,
        wish: Mapping[str, Any] | None,
        opening: bool,
        filled: dict[str, Any] | None,
        before: list[str],
        taken: list[str] | None,
        dataset: str | None,
        draft: Any,
    ) -> list[Any]:
        """The form for a run. What was written for the same run stays; new takes join it, and what there is to pick.

        wish: what another tab asked for, which is left to `begin`. An update for each of `OPENED`, and what is new to
        pick from, if anything."""
        if filled is not None and wish and wish["at"] > filled["at"] and wish["run"] != filled["run"]:
            return [gr.skip()] * (1 + len(OPENED))
        entry = run_to_begin_with(self.runs.entries(), chosen)
        run = entry.id if entry else None
        if filled is None or filled["run"] != run:
            return [*self.fill(chosen, opening, dataset, draft), gr.skip()]
        name = filled["family"]
        of_run = entry is None or entry.info.family == name
        own = takes_to_begin_with(self.workspace.takes(), run) if of_run else []
        joined = own != before
        choices = take_choices(self.workspace, name)
        untouched = before == (taken or [])
        offered = gr.update(choices=choices, value=own) if untouched else gr.update(choices=choices)
        unfold = gr.update(open=opening) if joined else gr.skip()
        now = [form_of(FAMILIES[name], self.workspace).picks, dataset]
        fresh = [now, own] if joined or now != [filled["picks"], filled["dataset"]] else gr.skip()
        found = {"own": own, "folded": unfold, "takes": offered}
        return [*(found.get(part, gr.skip()) for part in OPENED), fresh]

    def begin(self, wish: Mapping[str, Any], *kept: Any) -> list[Any]:
        """Another tab asks to compare the takes of a run: the form stands open for it."""
        entry = find(self.runs.entries(), wish["run"])
        if entry is None or entry.info.kind == "sample":
            return [gr.skip()] * (1 + len(OPENED))
        found = self.arrive(wish["run"], None, True, *kept)
        found[OPENED.index("folded")] = gr.update(open=True)
        return found

    def switch(
        self, name: str, filled: dict[str, Any] | None, dataset: str | None, draft: Any, asked: int
    ) -> list[Any]:
        """Another family's form, as it was left; its takes are chosen anew."""
        run = filled["run"] if filled else None
        kept = {**kept_form(draft), "run": run, "family": name, "takes": None}
        draft = {**(draft if isinstance(draft, dict) else {}), DRAFT: kept}
        return [*self.fill(run, True, dataset, draft, name, asked), draft]


class Wire:
    """The handlers of the form that is drawn."""

    def __init__(self, page: Page, runs: Runs, family: ModelFamily) -> None:
        self.page = page
        self.runs = runs
        self.family = family
        self.form = form_of(family, page.workspace)
        self.prefix = f"compare-{family.name}"

    def keep(
        self,
        own: list[str],
        filled: dict[str, Any],
        draft: Any,
        paths: list[str] | None,
        images: list[str],
        *values: Any,
    ) -> dict[str, Any]:
        """The form as it stands, kept by the browser over a reload."""
        before = kept_form(draft).get("values")
        written = dict(zip(self.form.paths, values, strict=True))
        now = {
            "run": filled["run"],
            "family": self.family.name,
            "takes": None if paths == own else paths,  # None: those of the run, however many there will be
            "images": images,
            "values": {**(before if isinstance(before, dict) else {}), self.family.name: written},
        }
        return {**(draft if isinstance(draft, dict) else {}), DRAFT: now}

    def pictures(self, paths: list[str] | None, images: list[str], values: Sequence[Any]) -> tuple[bool, Any]:
        """(whether images are asked for, what the row of them shows)."""
        _, _, amiss = counted_line(self.form, paths, images, values)
        if amiss is None:
            return False, pictures_value([], [], "")
        return True, pictures_value(images, self.form.data(values)[0].get("prompts") or [], amiss)

    def count(self, paths: list[str] | None, images: list[str], *values: Any) -> list[Any]:
        """How many clips it would be, and whether it can begin; with the row of images where the family has one."""
        button, total, _ = counted_line(self.form, paths, images, values)
        if not self.family.has_image_models:
            return [button, total]
        asked, row = self.pictures(paths, images, values)
        return [button, total, gr.update(visible=asked), row if asked else gr.skip()]

    def offers(self, dataset: str | None) -> list[Any]:
        """What there is to pick from now, models and clips; what is picked stays."""
        picks = form_of(self.family, self.page.workspace).offers()
        clips = [gr.update(**offered_clips(self.page.workspace, dataset))] if self.family.has_image_models else []
        return [*picks, *clips]

    def submit(
        self,
        request: gr.Request,
        before: Seen,
        was: Marks,
        paths: list[str] | None,
        images: list[str],
        *values: Any,
    ) -> list[Any]:
        """Queue what the form asks for, and show its wall; or say at the fields what has to be mended."""
        self.page.access.require_owner(request)
        form = self.form
        config, found = checked_config(form, paths or [], values, images)
        now = form.marks(values, found)
        looks = form.updates(was, now)
        elsewhere = "\n".join(f"{where}: {text}" if where else text for where, text in found if where not in form.paths)
        told_so = head_value("", elsewhere, state="failed")
        if config is None:
            return [gr.skip()] * (3 + len(SHOWN)) + [gr.skip(), now, told_so, *looks]
        with told():
            run = queue_comparison(self.page.workspace, self.page.queue, config)
        return [run, run, *refresh(self.runs, run, before)[1:], gr.update(open=False), now, told_so, *looks]

    # --- images ---

    def add_files(self, request: gr.Request, files: list[str] | None, images: list[str]) -> list[str]:
        """Images, or the first frames of videos, that were uploaded."""
        self.page.access.require_owner(request)
        added = []
        for file in map(Path, files or []):
            try:
                added.append(str(self.page.workspace.add_image(file)))
            except VideoError as error:
                gr.Warning(str(error), title="Not added")
            file.unlink(missing_ok=True)
        return [*images, *added]

    def add_clip(self, request: gr.Request, clip: str | None, dataset: str | None, images: list[str]) -> list[Any]:
        """The first frame of a clip of a dataset."""
        self.page.access.require_owner(request)
        if not clip or not dataset:
            return [images, None]
        try:
            found = self.page.workspace.dataset(dataset)
            return [[*images, str(self.page.workspace.add_image(found.file(found.clip(clip))))], None]
        except (WorkspaceError, DatasetError, VideoError) as error:
            raise gr.Error(str(error), title="Not added") from error


def counted_line(
    form: Form[SampleConfig], paths: list[str] | None, images: list[str], values: Sequence[Any]
) -> tuple[Any, str, str | None]:
    """(update of the button, the sum beside it, what is wrong with the images: None where none are asked for)."""
    begins = FAMILIES[form.fixed["family"]].has_image_models and begins_from_image(form, values)
    amiss = amiss_with_images(checked_config(form, paths or [], values, images)[1], images) if begins else None
    label, line, possible = count_line(form, paths or [], values, amiss or "")
    return gr.update(value=label, interactive=possible), line, amiss


def remove_image(images: list[str], event: gr.EventData) -> list[str]:
    """The images without the one whose button was pressed."""
    return [file for place, file in enumerate(images) if place != event.place]


def move_image(images: list[str], event: gr.EventData) -> list[str]:
    """The images with the one whose button was pressed a place earlier."""
    place = event.place
    if not 0 < place < len(images):
        return images
    return [*images[: place - 1], images[place], images[place - 1], *images[place + 1 :]]
