"""What every tab is handed: the rooms behind the page, and the few selections that tabs share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import wraps
from typing import TYPE_CHECKING, Any

import gradio as gr

if TYPE_CHECKING:
    from studio.access import Access
    from studio.jobs import JobQueue
    from studio.worker import Worker
    from studio.workspace import Workspace

#: How a handler is wired that answers at once: no spinner, and no endpoint in the list of the API.
QUICK: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private", "queue": False}
#: The same for a handler that sets a gr.State: its `change` is told only by events that come through the queue.
TELLING: dict[str, Any] = {**QUICK, "queue": True, "concurrency_limit": None}

DATASET, CONFIGURE, TRAIN, COMPARE = "dataset", "configure", "train", "compare"


@dataclass
class Page:
    """Handed to each tab's `build(page)`, which draws inside the tab and wires its events.

    A tab goes to another by returning `gr.Tabs(selected=TRAIN)` to `tabs`, after it has put what was chosen into
    `chosen_dataset` (a dataset's name or None) or `chosen_run` (a run's id or None). Both are gr.State: a tab listens
    to `chosen_run.change`. `demo.load` events fill a tab after a reload, when both are None: the newest on disk is
    taken then. `tab_items` are the gr.Tab by id, for `tab_items[TRAIN].select`.

    `draft` is the forms of Configure and Compare as they were left, and `place` what the browser remembers over a
    reload: {"tab": id, "dataset": name, "run": id}, any of them None. Both are made outside the tabs: what stands in
    a tab is not there before the tab is first opened.

    `begin_run` is what a new run should begin with: {"dataset": name, "family": name, "settings": {dotted field:
    value}, "at": time}; the time makes each wish another value, so that `begin_run.change` sees it. Configure
    opens itself when its form is filled: who came earlier could type into the form as it was before. In the same way
    `begin_comparison` is the run whose takes shall be compared: {"run": id, "at": time}.
    """

    workspace: Workspace
    queue: JobQueue
    worker: Worker
    access: Access
    demo: gr.Blocks
    tabs: gr.Tabs
    chosen_dataset: gr.State
    chosen_run: gr.State
    begin_run: gr.State
    begin_comparison: gr.State
    place: gr.BrowserState
    draft: gr.BrowserState
    tab_items: dict[str, gr.Tab] = field(default_factory=dict)


def awaited() -> gr.Column:
    """What a tab draws in: out of sight until `come_in` has filled it.

    Nobody can act on values that are about to be replaced. And Gradio 6 copies what a mounted control shows back into
    its own books at any time: an answer that arrives while a control is being mounted can be lost.
    """
    return gr.Column(visible=False, min_width=0)


class Drawing:
    """Where a form is drawn, for each visitor: anew whenever it is filled.

    From the moment another form is asked for until it is there, the old one is out of reach: what would be typed into
    it then would be lost.
    """

    def __init__(self, elem_id: str) -> None:
        self.room = gr.Column(min_width=0, elem_id=elem_id, elem_classes="drawing")
        self._asked = gr.Number(0, visible=False)
        self._leave, self._stay = _LEAVE.replace("ID", elem_id), _STAY.replace("ID", elem_id)

    def asked_by(
        self, event: Any, fill: Callable[..., Any], inputs: Sequence[Any], outputs: Sequence[Any], **how: Any
    ) -> None:
        """`event` asks for another form, which `fill` gives. Its last argument, after the inputs, tells which asking it
        is: a number that has to stand in filled["asked"]; 0 where nobody asked."""
        asking = event(fill, [*inputs, self._asked], outputs, js=self._leave, **TELLING, **how)
        asking.failure(None, js=self._stay)

    def anew(self, filled: gr.State, inputs: Sequence[Any], draw: Callable[..., None]) -> None:
        """Draw with `draw(filled, *inputs)` whenever `filled`, a dict, changes.

        What `draw` wires is the only listener of its event of its component: Gradio forgets those from outside. And it
        is gone with the next drawing, so it may answer what a person does, but nothing that filling itself brings
        about.
        """

        def drawn(now: dict[str, Any] | None, *values: Any) -> None:
            if now is not None:
                draw(now, *values)
                gr.HTML(str(now["asked"]), js_on_load=_ARRIVED, elem_classes="arrived")

        with self.room:
            gr.render([filled, *inputs], triggers=[filled.change], show_progress="hidden")(drawn)


#: How long a form is out of reach at most, should none come in its place.
_PATIENCE_MS = 10_000
#: What is known of the room ID stands in the page's head, for it may be asked for before the room is there.
_LEAVE = f"""(...values) => {{
    const number = Number(document.getElementById("leaving-ID")?.dataset.asked ?? 0) + 1;
    document.getElementById("leaving-ID")?.remove();
    const rule = document.createElement("style");
    rule.id = "leaving-ID";
    rule.dataset.asked = number;
    rule.textContent = "#ID > * {{ visibility: hidden; }}";
    document.head.append(rule);
    setTimeout(() => {{ rule.textContent = ""; }}, {_PATIENCE_MS});
    return [...values.slice(0, -1), number];
}}"""
_STAY = """() => { document.getElementById("leaving-ID").textContent = ""; }"""
_ARRIVED = """const rule = document.getElementById(`leaving-${element.closest(".drawing").id}`);
if (rule !== null && Number(props.value) >= Number(rule.dataset.asked)) rule.textContent = "";"""


def come_in(
    demo: gr.Blocks,
    room: gr.Column,
    fill: Callable[..., Any],
    inputs: Sequence[Any],
    outputs: Sequence[Any],
    **how: Any,
) -> Any:
    """When the page is loaded, fill what stands in `room`, then show it; show it too where filling has failed.

    `fill` gives a list, one item for each of `outputs`. Gives the event, for what has to follow.
    """

    @wraps(fill)
    def enter(*values: Any) -> list[Any]:
        return [*fill(*values), gr.update(visible=True)]

    loaded = demo.load(enter, inputs, [*outputs, room], **how)
    loaded.failure(lambda: gr.update(visible=True), None, room, **QUICK)
    return loaded
