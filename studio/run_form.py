"""The form of a run: what it starts from, what it would start, and what is said of it. Plain functions of values."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from studio.forms import Choice, Form, Problem
from studio.workspace import DEMO, PROJECT, Workspace, WorkspaceError
from trainers.config import TrainConfig
from trainers.data.clips import DatasetError, NotHereYet
from trainers.data.formats import open_dataset
from trainers.data.ledger import ledger, named, size_hints
from trainers.families import FAMILIES, family_of, file_findings, read_settings
from trainers.families.base import ModelFamily
from trainers.runs import RunFolder
from trainers.settings import ConfigError, read_yaml, validate

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
        dataset = open_dataset(config.dataset, PROJECT, patient(), fetch=False)
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


def patient() -> Callable[[int, int], None]:
    """Told of videos that are measured; stops when the answer has waited long enough."""
    began = time.monotonic()

    def report(done: int, total: int) -> None:
        if done < total and time.monotonic() - began >= PATIENCE:
            raise StillLooking(done, total)

    return report


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
    *(f"dataset.{name}" for name in ("max_clips_at_random", "id_token", "id_token_glued")),
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
    if origin == "here":
        return list(now)
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
