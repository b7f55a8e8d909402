"""A comparison as it is drawn: its wall of clips, and what has moved in each take. Plain data from files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from studio import progress
from studio.parts.measures import measures_value
from studio.parts.pictures import looks_of
from studio.parts.runs import Entry
from studio.parts.wall import empty_wall, wall_value
from studio.progress import Event
from studio.workspace import Workspace, WorkspaceError
from trainers.config import SampleConfig
from trainers.families import load_sample_config
from trainers.runs import RunFolder
from trainers.settings import ConfigError


def comparison_value(workspace: Workspace, entry: Entry, events: Sequence[Event]) -> dict[str, Any]:
    """The wall of a comparison: base and takes as columns, prompts and seeds as rows, clips as far as there are."""
    folder = entry.info.folder
    try:
        config = load_sample_config(folder.config)
    except ConfigError as error:
        return empty_wall(f"The comparison's config cannot be read: {error}")
    columns = take_columns(workspace, config)
    rows = wall_rows(config)
    cells: list[list[dict[str, Any] | None]] = [[None] * len(columns) for _ in rows]
    for event in events:
        place = _place(event, columns, rows) if event["type"] == "sample" else None
        if place is not None:
            row, column = place
            cells[row][column] = _cell(workspace, folder, event)
    shown = [{key: value for key, value in column.items() if key not in ("take", "strength")} for column in columns]
    looks = looks_of(config.images, len(config.prompts), len(config.seeds))
    begun = [{**row, "look": look} for row, look in zip(rows, looks, strict=True)]
    return wall_value(
        entry.id, shown, begun, cells, fps=config.fps, num_frames=config.num_frames, height=config.height,
        width=config.width, pending="waiting" if entry.running or entry.queued else "not sampled",
    )  # fmt: skip


def moved_value(workspace: Workspace, entry: Entry, events: Sequence[Event]) -> dict[str, Any]:
    """How much each take of a comparison has moved, over all its clips so far: base first, then by step."""
    try:
        config = load_sample_config(entry.info.folder.config)
    except ConfigError:
        return measures_value([])
    columns, rows = take_columns(workspace, config), wall_rows(config)
    found: dict[int, dict[int, Event]] = {}  # column -> row -> the last that was measured
    for event in events:
        place = _place(event, columns, rows) if event["type"] == "measure" else None
        if place is not None:
            found.setdefault(place[1], {})[place[0]] = event
    takes = []
    for column in sorted(found, key=lambda c: (columns[c]["take"] != "base", next(iter(found[c].values()))["step"], c)):
        measures = found[column].values()
        moves = progress.mean_motion(measures)
        bars = [
            {"name": name, "colour": progress.MEASURE_COLOURS[name], "value": mean, "text": share(mean)}
            for name, mean in progress.measure_means(measures).items()
        ]
        look = {key: columns[column].get(key, "") for key in ("label", "sub", "mark")}
        takes.append({**look, "moves": "" if moves is None else f"{100 * moves:.2g} %", "bars": bars})
    return measures_value(takes)


def share(value: float | None) -> str:
    """``0.83``; nothing where it is not known."""
    return "" if value is None else f"{value:.2f}"


def wall_rows(config: SampleConfig) -> list[dict[str, Any]]:
    """The rows in the order in which the trainer samples them."""
    return [{"prompt": prompt, "seed": seed} for prompt in config.prompts for seed in config.seeds]


def take_columns(workspace: Workspace, config: SampleConfig) -> list[dict[str, Any]]:
    """The columns in the order in which the trainer samples them: base first, then each take at each strength."""
    columns: list[dict[str, Any]] = []
    if config.include_base:
        columns.append({"label": "base", "sub": "no take", "key": "base", "take": "base", "strength": None})
    for path in config.checkpoints:
        for strength in config.strengths:
            label, mark = take_name(workspace, Path(path))
            columns.append(
                {
                    "label": label,
                    "sub": f"strength {strength:g}",
                    "mark": mark,
                    "key": f"{path} {strength}",
                    "take": str(Path(path).expanduser()),
                    "strength": strength,
                }
            )
    return columns


def take_name(workspace: Workspace, path: Path) -> tuple[str, str]:
    """(name, mark) of a checkpoint of a run here, as ("orbit-lora-0007 300", "best"), or of an adapter file."""
    run = RunFolder(path.parent.parent)
    if path.parent.name != "checkpoints" or run.path.parent != workspace.root / "runs":
        return path.stem, ""
    step = next((c.step for c in run.checkpoints() if c.path.name == path.name), None)
    if step is None:
        return f"{run.id} {path.name}", "deleted"
    best = run.best()
    return f"{run.id} {step}", "best" if best is not None and best.step == step else ""


def _place(
    event: Event, columns: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]
) -> tuple[int, int] | None:
    """(row, column) of the clip that an event is about. An event that does not say is found by what it shows."""
    row, column = event.get("row"), event.get("column")
    if not isinstance(row, int):
        asked = {"prompt": event["prompt"], "seed": event["seed"]}
        row = next((index for index, known in enumerate(rows) if known == asked), -1)
    if not isinstance(column, int):
        column = next((index for index, known in enumerate(columns) if _is_take(event, known)), -1)
    return (row, column) if 0 <= row < len(rows) and 0 <= column < len(columns) else None


def _is_take(event: Event, column: Mapping[str, Any]) -> bool:
    return bool(event["take"] == column["take"]) and column["strength"] in (None, event["strength"])


def _cell(workspace: Workspace, folder: RunFolder, event: Event) -> dict[str, Any]:
    try:
        return {"video": workspace.media(folder.path / event["path"])}
    except WorkspaceError as error:
        return {"error": str(error)}


def comparisons(entries: Sequence[Entry]) -> list[Entry]:
    """The comparisons, newest first."""
    found = [entry for entry in entries if entry.info.kind == "sample"]
    return sorted(found, key=lambda entry: (entry.info.created, entry.id), reverse=True)
