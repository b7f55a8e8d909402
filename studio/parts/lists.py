"""Small lists of the Train tab: the queue, the head of what is looked at, the takes of a run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from studio.parts import part
from studio.parts.runs import Entry


def job_list() -> Any:
    """The queue. Event `pick` with the data {"run": id}."""
    return part("jobs", jobs_value([], None, ""), elem_id="queue")


def jobs_value(entries: Iterable[Entry], chosen: str | None, empty: str) -> dict[str, Any]:
    """What the queue shows. empty: what it says without any run."""
    shown = [
        {
            "run": entry.id,
            "title": entry.id,
            "state": entry.state,
            "line": f"comparison, {entry.line}" if entry.info.kind == "sample" else entry.line,
            "fraction": entry.fraction,
            "group": "Queue" if entry.job else "Not in the queue",
        }
        for entry in entries
    ]
    return {"jobs": shown, "chosen": chosen, "empty": empty}


def head(elem_id: str, **settings: Any) -> Any:
    """The name of what is looked at, with its status line."""
    return part("head", head_value("", ""), elem_id=elem_id, **settings)


def head_value(
    title: str, line: str, *, kind: str = "", state: str = "none", fraction: float | None = None
) -> dict[str, Any]:
    """What a head shows: kind is the quiet line below the title, fraction (0 to 1) draws a bar."""
    return {"title": title, "kind": kind, "line": line, "state": state, "fraction": fraction}


def take_list() -> Any:
    """The checkpoints of a run. Event `star` with the data {"run": id, "step": step, "on": bool}."""
    return part("takes", takes_value("", [], ""), elem_id="takes")


def takes_value(run: str, takes: Sequence[dict[str, Any]], empty: str) -> dict[str, Any]:
    """What the list of takes shows: step, loss (text), marks and starred of each."""
    return {"run": run, "takes": list(takes), "empty": empty}
