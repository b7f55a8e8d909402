"""The page: a header, four tabs, and the selections that tabs share."""

from __future__ import annotations

from html import escape
from typing import Any

import gradio as gr

from studio.access import Access
from studio.jobs import JobQueue, JobState
from studio.page import COMPARE, CONFIGURE, DATASET, QUICK, TELLING, TRAIN, Page
from studio.progress import RunReader, status
from studio.tabs import compare, configure, dataset, train
from studio.worker import Worker
from studio.workspace import Workspace, WorkspaceError

TABS = {
    DATASET: ("Dataset", dataset.build),
    CONFIGURE: ("Configure", configure.build),
    TRAIN: ("Train", train.build),
    COMPARE: ("Compare", compare.build),
}

#: The browser keeps places and drafts in its own storage. They are no secrets: the key only makes them readable
#: again after the studio was restarted.
STORAGE = "dailies"

#: Ctrl+Enter queues the run of the form. And a text box of Gradio 6 tells of typed keys only (`keypress`): of what is
#: pasted, cut, deleted, dictated or composed it is told here, by a key press that types nothing.
KEYBOARD = """() => {
  document.addEventListener('keydown', (event) => {
    if (event.key !== 'Enter' || !(event.ctrlKey || event.metaKey)) return;
    const button = document.querySelector('#queue-run');
    if (button && button.offsetParent !== null && !button.disabled) { event.preventDefault(); button.click(); }
  });
  document.addEventListener('input', (event) => {
    if (event.target.matches('textarea, input[type=text]'))
      event.target.dispatchEvent(new KeyboardEvent('keypress', { key: 'Unidentified', bubbles: true }));
  });
}"""


def build(workspace: Workspace, queue: JobQueue, worker: Worker, access: Access) -> gr.Blocks:
    """The whole page. Theme and CSS are given where it is launched."""
    with gr.Blocks(title="Dailies", analytics_enabled=False, fill_width=True, delete_cache=(3600, 24 * 3600)) as demo:
        chosen_dataset, chosen_run = gr.State(None), gr.State(None)
        begin_run, begin_comparison = gr.State(None), gr.State(None)
        place = gr.BrowserState(None, storage_key=f"{STORAGE}-place", secret=STORAGE)
        draft = gr.BrowserState(None, storage_key=f"{STORAGE}-draft", secret=STORAGE)
        tab = gr.State(DATASET)
        with gr.Column(elem_id="shell"):
            gr.HTML("Dai<b>l</b>ies", elem_id="wordmark")
            now = gr.HTML(elem_id="now")
            with gr.Tabs(elem_id="tabs") as tabs:
                page = Page(
                    workspace=workspace,
                    queue=queue,
                    worker=worker,
                    access=access,
                    demo=demo,
                    tabs=tabs,
                    chosen_dataset=chosen_dataset,
                    chosen_run=chosen_run,
                    begin_run=begin_run,
                    begin_comparison=begin_comparison,
                    place=place,
                    draft=draft,
                )
                page.tab_items = {id: gr.Tab(label, id=id, render_children=True) for id, (label, _) in TABS.items()}
                for id, (_, draw) in TABS.items():
                    with page.tab_items[id]:
                        draw(page)
        clock = gr.Timer(3.0)

        for id, item in page.tab_items.items():
            item.select(_constant(id), None, tab, **TELLING)
        gr.on(
            [tab.change, chosen_dataset.change, chosen_run.change],
            remember,
            [tab, chosen_dataset, chosen_run],
            place,
            **QUICK,
        )
        demo.load(come_back, [place, tab], [tabs, tab, chosen_run], **TELLING)
        chip = Chip(workspace, queue)
        demo.load(chip.html, None, now, **QUICK)
        clock.tick(chip.html, None, now, **QUICK)
        demo.load(None, None, None, js=KEYBOARD)
    return demo


def remember(tab: str, dataset: str | None, run: str | None) -> dict[str, str | None]:
    """What the browser keeps over a reload."""
    return {"tab": tab, "dataset": dataset, "run": run}


def come_back(place: dict[str, Any] | None, tab: str) -> list[Any]:
    """The tab that was open, and the run that was chosen, if the browser remembers them.

    Who has opened another tab while the page was still loading stays there.
    """
    place = place or {}
    remembered = place.get("tab")
    if tab != DATASET or remembered not in TABS:
        return [gr.skip(), gr.skip(), place.get("run")]
    return [gr.Tabs(selected=remembered), remembered, place.get("run")]


class Chip:
    """What runs now, in a few words, for the header."""

    def __init__(self, workspace: Workspace, queue: JobQueue) -> None:
        self.workspace = workspace
        self.queue = queue
        self._readers: dict[str, RunReader] = {}

    def html(self) -> str:
        """The first running job with how far it is, and how many more there are; nothing when nothing runs."""
        jobs = self.queue.jobs()
        running = [job for job in jobs if job.state is JobState.RUNNING]
        waiting = sum(job.state is JobState.QUEUED for job in jobs)
        self._readers = {job.run_id: self._readers[job.run_id] for job in running if job.run_id in self._readers}
        if not running:
            return f'<span class="chip">{waiting} waiting</span>' if waiting else ""
        job = running[0]
        text = job.run_id
        try:
            reader = self._readers.setdefault(job.run_id, RunReader(self.workspace.run(job.run_id)))
            at = status(reader.events(), job)
            if at.step is not None and at.total:
                text += f" {round(100 * at.step / at.total)} %"
        except WorkspaceError:
            pass
        more = len(running) - 1 + waiting
        text += f", {more} more" if more else ""
        return f'<span class="chip"><span class="dot"></span>{escape(text)}</span>'


def _constant(value: str) -> Any:
    return lambda: value
