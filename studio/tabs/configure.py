"""Configure: what will run, and would it start? The form of a family, the config that it makes, and the command."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import gradio as gr

from studio.forms import Form, Marks
from studio.jobs import JobError
from studio.page import CONFIGURE, QUICK, TELLING, TRAIN, Drawing, Page, awaited, come_in
from studio.parts.answer import answer, notes
from studio.parts.frames import frame_strips, frames_key, frames_value, seen_frames
from studio.run_form import (
    Preview,
    StillLooking,
    command,
    form_family,
    form_of,
    origins,
    patient,
    picks,
    preview,
    read_config,
    run_title,
    starting_values,
    values_from,
)
from studio.workspace import DEMO, PROJECT, WorkspaceError
from trainers.config import TrainConfig
from trainers.errors import why
from trainers.families import FAMILIES
from trainers.families.base import ModelFamily
from trainers.settings import ConfigError, to_yaml

#: What stands where frames can be shown, before they are.
_UNSEEN = "The first clips, each with its first, middle and last frame as they will be trained."
#: The components that say what the form would start, in the order of the updates that `Desk.told` gives.
_TOLD = ("head", "saved", "remarks", "line", "text", "queue", "save", "draft", "clock", "frames", "marks")


def build(page: Page) -> None:
    """Draw the tab and wire it."""
    first = next(iter(FAMILIES))
    told: dict[str, Any] = {"draft": page.draft, "marks": gr.State(None), "clock": gr.Timer(1.0, active=False)}
    filled, fresh = gr.State(None), gr.State(None)

    with awaited() as room, gr.Row(elem_classes="row stack"):
        with gr.Column(scale=1, min_width=0):
            told["head"] = gr.HTML(answer("Configure"), elem_id="configure-answer")
            chosen = gr.Radio(
                [(f"{family.title}\n{_methods(family)}", name) for name, family in FAMILIES.items()],
                value=first, label="Family", show_label=False, container=False, elem_classes="cards", elem_id="family",
            )  # fmt: skip
            with gr.Column(elem_classes="card"):
                with gr.Row(elem_classes="actions"):
                    gr.HTML('<h2 class="title">Basics</h2>', elem_classes="grow")
                    origin = gr.Dropdown(
                        origins(page.workspace, FAMILIES[first]), value="here", label="Start from", filterable=False,
                        interactive=True, min_width=200, elem_id="origin", elem_classes="origin",
                    )  # fmt: skip
                drawing = Drawing("configure-form")
            with gr.Column(elem_classes="card"):
                with gr.Row(elem_classes="actions"):
                    gr.HTML('<h2 class="title">What the model will see</h2>', elem_classes="grow")
                    look = gr.Button("Show the frames", size="md", elem_id="show-frames")
                told["frames"] = frame_strips(elem_id="frames")
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
                told["queue"] = gr.Button(
                    "Queue this run", variant="primary", elem_id="queue-run", interactive=False
                )  # fmt: skip
                told["save"] = gr.Button("Save without queueing", elem_id="save-run", interactive=False)
            told["saved"] = gr.HTML(elem_id="saved")
            told["remarks"] = gr.HTML(elem_id="remarks")
            told["line"] = gr.Code(
                language="shell", label="Command", interactive=False, lines=3, visible=False, show_line_numbers=False,
                wrap_lines=True, buttons=["copy"], elem_id="command",
            )  # fmt: skip
            told["text"] = gr.Code(
                language="yaml", label="Config", interactive=False, lines=12, max_lines=28, visible=False,
                show_line_numbers=False, buttons=["copy", "download"], elem_id="yaml",
            )  # fmt: skip

    desk = Desk(page)
    answers = [told[name] for name in _TOLD]
    opened = [chosen, origin, title, filled, *answers]
    around = [title, page.draft, told["frames"]]

    come_in(page.demo, room, desk.come_back, [page.place, *around], opened, **TELLING)
    drawing.asked_by(chosen.input, desk.switch, [chosen, *around], opened, trigger_mode="always_last")
    fill.click(desk.from_text, [paste, *around], [*opened, pasted], **TELLING)
    drawing.asked_by(page.begin_run.change, desk.begin, [page.begin_run, *around], [*opened, page.tabs])
    page.tab_items[CONFIGURE].select(desk.arrive, [page.begin_run, filled], [origin, fresh], **TELLING)

    def draw(now: dict[str, Any], marks: Marks) -> None:
        wire = Wire(page, form_of(FAMILIES[now["family"]], page.workspace))
        drawn = wire.form.build(now["values"], marks, prefix=now["family"])
        mine, seen = [*around, told["marks"], *drawn.components], [*answers, *drawn.outputs]
        typed = [component.input for component in (*drawn.components, title)]
        gr.on(typed, wire.refresh, mine, seen, trigger_mode="always_last", **QUICK)
        told["clock"].tick(wire.refresh, mine, seen, **QUICK)
        fresh.change(wire.offers, None, drawn.picks, **QUICK)
        drawing.asked_by(origin.input, wire.from_origin, [origin, *around, *drawn.components], opened)
        look.click(wire.look, drawn.components, told["frames"], **{**QUICK, "show_progress": "minimal"})
        kept = [title, told["text"], *drawn.components]
        going = [told["saved"], page.chosen_run, page.tabs, told["line"]]
        queued = told["queue"].click(wire.queue, kept, going, **TELLING)
        written = told["save"].click(wire.save, kept, [told["saved"], told["line"]], **QUICK)
        for event in (queued, written):
            event.failure(wire.refresh, mine, seen, **QUICK)

    drawing.anew(filled, [told["marks"]], draw)


class Desk:
    """What puts a form on the page, or another one: how it starts, and what it would start."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.workspace = page.workspace

    def opened(
        self,
        form: Form[TrainConfig],
        values: Sequence[Any],
        title: str,
        draft: Any,
        frames: Any,
        *,
        asked: int = 0,
        retitle: bool = False,
    ) -> list[Any]:
        """A form drawn with these values: updates of family, origins, title and form, and of what is told of it."""
        family = form_family(form)
        now = preview(form, family, values)
        return [
            family.name,
            gr.update(choices=origins(self.workspace, family), value="here"),
            title if retitle else gr.skip(),
            # The time makes each filling another one, so that what was typed meanwhile gives way to it.
            {
                "family": family.name,
                "values": list(values),
                "picks": form.picks,
                "at": time.time(),
                "asked": asked,
            },
            *self.told(form, title, draft, frames, values, now),
        ]

    def told(
        self, form: Form[TrainConfig], title: str, draft: Any, frames: Any, values: Sequence[Any], now: Preview
    ) -> list[Any]:
        """What the values would start: an update for each of `_TOLD`. Frames that are shown and are no longer what the
        model would see are taken away."""
        loose = [text for path, text in now.problems if path not in form.paths]
        if now.config is not None:
            run_id = self.workspace.next_run_id(run_title(title, now.config))
            yaml = gr.update(value=to_yaml(now.config), label="Config", visible=True)
            shown = [gr.update(value=command(self.workspace, run_id), visible=True), yaml]
        else:
            shown = [gr.skip(), gr.update(label="Config, as it was before")]
        as_before = isinstance(frames, dict) and frames.get("key") == frames_key(now.config)
        name = form_family(form).name
        keep = dict(draft) if isinstance(draft, dict) else {}
        keep |= {"family": name, "title": title, name: dict(zip(form.paths, values, strict=True))}
        return [
            headline(now),
            "",
            notes([*_to_mend(form, now), *(("error", text) for text in loose), *now.remarks]),
            *shown,
            gr.update(interactive=now.starts),
            gr.update(interactive=now.starts),
            keep,
            gr.Timer(active=now.unfinished),
            gr.skip() if as_before else frames_value(frames_key(now.config), [], _UNSEEN),
            form.marks(values, now.problems),
        ]

    def form(self, name: str) -> Form[TrainConfig]:
        """The form of a family, with what there is to pick from now."""
        return form_of(FAMILIES[name], self.workspace)

    def left(self, form: Form[TrainConfig], draft: Any, dataset: str | None = None) -> list[Any]:
        """The values as this browser left them; those to start from where it left none."""
        kept = draft.get(form_family(form).name) if isinstance(draft, dict) else None
        values = dict(zip(form.paths, starting_values(form, self.workspace, dataset), strict=True))
        if isinstance(kept, dict):
            values |= {path: value for path, value in kept.items() if path in values}
        return list(values.values())

    # --- handlers ---

    def come_back(self, place: dict[str, Any] | None, title: str, draft: Any, frames: Any) -> list[Any]:
        """The form as this browser left it, or as it starts."""
        kept = draft if isinstance(draft, dict) else {}
        form = self.form(kept["family"] if kept.get("family") in FAMILIES else next(iter(FAMILIES)))
        values = self.left(form, kept, (place or {}).get("dataset"))
        return self.opened(form, values, str(kept.get("title") or ""), draft, frames, retitle=True)

    def switch(self, name: str, title: str, draft: Any, frames: Any, asked: int) -> list[Any]:
        """Another family's form, as it was left."""
        form = self.form(name)
        return self.opened(form, self.left(form, draft), title, draft, frames, asked=asked)

    def from_text(self, own: str, title: str, draft: Any, frames: Any, request: gr.Request) -> list[Any]:
        """The form filled from a config that was pasted."""
        self.page.access.require_owner(request)  # a command may name files of this machine, which are read for it
        unchanged = [gr.skip() for _ in range(4 + len(_TOLD))]
        if not own.strip():
            return [*unchanged, notes([("error", "Paste a config first.")])]
        try:
            name, settings, said = read_config(own)
        except ConfigError as error:
            return [*unchanged, notes([("error", f"{w} {t}".strip()) for w, t in error.problems])]
        form = self.form(name)
        filled = notes([("ok", "The form is filled."), *said])
        return [*self.opened(form, form.shown(settings), title, draft, frames), filled]

    def begin(self, wish: Mapping[str, Any], title: str, draft: Any, frames: Any, asked: int) -> list[Any]:
        """The form for what the Dataset tab asks for: its dataset, and the frames and size that were looked with; and
        the way there."""
        form = self.form(str(wish["family"]))
        path = str(self.workspace.root / "datasets" / str(wish["dataset"]))
        values = self.left(form, draft)
        if wish["dataset"] == DEMO and dict(zip(form.paths, values, strict=True)).get("dataset.path") != path:
            values = starting_values(form, self.workspace, DEMO)
        merged = form.merge(values, {"dataset.path": path, "dataset.format": "dailies", **wish["settings"]})
        return [*self.opened(form, merged, title, draft, frames, asked=asked), gr.Tabs(selected=CONFIGURE)]

    def arrive(self, wish: Mapping[str, Any] | None, filled: dict[str, Any] | None) -> list[Any]:
        """What there is to start from, and to pick from where that is other than when the form was drawn.

        wish: what another tab asked for, which is left to `begin`."""
        if filled is None or (wish and wish["at"] > filled["at"]):
            return [gr.skip(), gr.skip()]
        family = FAMILIES[filled["family"]]
        now = picks(self.workspace, family)
        choices = gr.update(choices=origins(self.workspace, family), value="here")
        return [choices, gr.skip() if now == filled["picks"] else now]


class Wire:
    """The handlers of the form that is drawn."""

    def __init__(self, page: Page, form: Form[TrainConfig]) -> None:
        self.page = page
        self.desk = Desk(page)
        self.form = form
        self.family = form_family(form)

    def refresh(self, title: str, draft: Any, frames: Any, before: Marks, *values: Any) -> list[Any]:
        """What the values would start: an update for each of `_TOLD`, and marks at the fields."""
        told = self.desk.told(self.form, title, draft, frames, values, preview(self.form, self.family, values))
        return [*told, *self.form.updates(before, told[-1])]

    def offers(self) -> list[Any]:
        """What there is to pick from now; what is picked stays."""
        return self.desk.form(self.family.name).offers()

    def from_origin(self, choice: str, title: str, draft: Any, frames: Any, *rest: Any) -> list[Any]:
        """The form filled from defaults, a preset, the demo or a run; as it is from "here". rest: values, asked."""
        *values, asked = rest
        try:
            found = values_from(choice, self.form, self.family, self.page.workspace, values)
        except (WorkspaceError, ConfigError) as error:
            raise gr.Error(str(error), title="Start from") from error
        return self.desk.opened(self.desk.form(self.family.name), found, title, draft, frames, asked=asked)

    def look(self, request: gr.Request, *values: Any) -> Any:
        """The frames of the first clips, for the owner: a form may name any video of this machine."""
        self.page.access.require_owner(request)
        config, problems = self.form.check(values)
        if config is None:
            return frames_value("", [], f"Nothing can be shown yet: {problems[0][1]}")
        try:
            found = seen_frames(config, self.family, PROJECT, patient())
        except StillLooking as error:
            return frames_value(frames_key(config), [], str(error))
        return {**found, "line": self.form.in_words(found["line"])}

    def queue(self, request: gr.Request, title: str, shown: str, *values: Any) -> list[Any]:
        """Save the run, queue it, and go and watch it."""
        run_id = self._make(request, title, shown, values)
        try:
            self.page.queue.submit(run_id, "train")
        except JobError as error:
            raise gr.Error(str(error), title="Queue this run") from error
        return ["", run_id, gr.Tabs(selected=TRAIN), command(self.page.workspace, run_id)]

    def save(self, request: gr.Request, title: str, shown: str, *values: Any) -> list[Any]:
        """Save the run; the command starts it."""
        run_id = self._make(request, title, shown, values)
        said = notes(
            [("ok", f"Saved as {run_id}. Train lists it and can queue it; the command below starts it by itself.")]
        )
        return [said, command(self.page.workspace, run_id)]

    def _make(self, request: gr.Request, title: str, shown: str, values: Sequence[Any]) -> str:
        """A new run of what the form says, if that is what the page shows as its config."""
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


# --- what is said -----------------------------------------------------------------------------------------------------


def headline(now: Preview) -> str:
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


def _methods(family: ModelFamily) -> str:
    return ", ".join(name.replace("_", " ") for name in family.methods)
