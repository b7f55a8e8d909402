"""The form of a comparison: what it begins with, what it would make, and how it gets into the queue."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from studio.forms import Choice, Form
from studio.jobs import JobQueue
from studio.parts.runs import Entry, find
from studio.workspace import PROJECT, TakeInfo, Workspace
from trainers.config import SampleConfig, TrainConfig
from trainers.families import FAMILIES, file_findings, get_family, load_config
from trainers.families.base import ModelFamily
from trainers.settings import ConfigError, fields, hints, validate

#: More checkpoints of a run than these are not chosen by themselves.
TAKES_AT_FIRST = 4
#: Where the browser's draft keeps this form; the other keys are Configure's.
DRAFT = "compare"
#: Settings that make more clips, or fewer, or that say whether they begin from images.
COUNTED = ("include_base", "strengths", "prompts", "seeds", "base_model")
_NUMBER = re.compile(r"-\d{4,}$")  # of a run's id; the comparison's id gets its own


def form_of(family: ModelFamily, workspace: Workspace) -> Form[SampleConfig]:
    """The form of a family's comparisons in this workspace. The takes are chosen beside it, across runs, and images
    below its prompts."""
    drawn = {path for path, _ in fields(family.sample_config)}
    offered = {"base_model": workspace.base_models(family), "motion_adapter": workspace.motion_adapters()}
    return Form(
        family.sample_config,
        fixed={"family": family.name, "checkpoints": [], "images": [], "cache_dir": str(workspace.cache)},
        lead=["prompts", "seeds", "base_model"],
        picks={
            field: [(_short(workspace, path), path) for path in paths]
            for field, paths in offered.items()
            if field in drawn
        },
    )


def _short(workspace: Workspace, path: str) -> str:
    here = Path(path)
    return str(here.relative_to(workspace.models)) if here.is_relative_to(workspace.models) else path


def take_choices(workspace: Workspace, family: str) -> list[Choice]:
    """Every take of a family's runs, newest run first."""
    of_family = {info.id for info in workspace.runs("train") if info.family == family}
    return [(take.label, str(take.path)) for take in workspace.takes() if take.run_id in of_family]


def takes_to_begin_with(takes: Sequence[TakeInfo], run: str | None) -> list[str]:
    """Paths of a run's takes, first step first: all of a few; of many the best, the starred and the last."""
    own = sorted((take for take in takes if take.run_id == run), key=lambda take: take.step)
    if len(own) > TAKES_AT_FIRST:
        own = [take for take in own if take.best or take.starred or take is own[-1]]
    return [str(take.path) for take in own]


def settings_of(run: TrainConfig, sample_config: type[SampleConfig]) -> dict[str, Any]:
    """A comparison's settings that a training run already answers: its model, its prompts, its size."""
    validation, dataset = run.validation, run.dataset
    given: dict[str, Any] = {
        "prompts": validation.prompts,
        "negative_prompt": validation.negative_prompt,
        "seeds": validation.seeds,
        "num_frames": validation.num_frames or dataset.num_frames,
        "height": validation.height or dataset.height,
        "width": validation.width or dataset.width,
        "num_inference_steps": validation.num_inference_steps,
        "guidance_scale": validation.guidance_scale,
        "fps": validation.fps,
        "mixed_precision": run.mixed_precision,
    }
    memory = run.memory.model_dump()
    given |= {name: value for name, value in memory.items() if name in sample_config.model_fields}
    top = set(type(run).model_fields)
    for path, info in fields(sample_config):  # models; the rest is "as the checkpoint was trained" when left empty
        if path in top and path != "family" and hints(info).get("basic"):
            given[path] = getattr(run, path)
    return given


def images_to_begin_with(workspace: Workspace, left: Mapping[str, Any], run: TrainConfig | None) -> list[str]:
    """The images that a browser kept, else the run's. A browser can name anything: what is neither the run's nor kept
    in the workspace is left out."""
    own = list(run.validation.images) if run else []
    kept = left.get("images")
    if not isinstance(kept, list):
        return own
    return [file for file in kept if isinstance(file, str) and (file in own or workspace.has_image(file))]


def begins_from_image(form: Form[SampleConfig], values: Sequence[Any]) -> bool:
    """Whether the base model that the form names begins from an image, or may: that need not be known yet."""
    base = form.data(values)[0].get("base_model")
    try:
        # The rest of the form may still have to be mended.
        least = {"family": form.fixed["family"], "base_model": base, "prompts": ["any"]}
        config = validate(form.config_class, least)
    except ConfigError:
        return False
    family = get_family(config.family)
    takes = family.takes_image(config)
    if takes is None:
        return not any(found.level == "error" and found.where == "base_model" for found in family.findings(config))
    return takes


def kept_form(draft: Any) -> dict[str, Any]:
    """The form as this browser left it: {"run": for which, "family", "takes", "images", "values": by family and field};
    or {}."""
    kept = draft.get(DRAFT) if isinstance(draft, dict) else None
    return kept if isinstance(kept, dict) else {}


def left_off(draft: Any, run: str | None) -> dict[str, Any]:
    """The kept form, if it was for that run and its family is known; else {}."""
    kept = kept_form(draft)
    return kept if kept.get("run") == run and kept.get("family") in FAMILIES else {}


def first_values(form: Form[SampleConfig], run: TrainConfig | None, left: Mapping[str, Any]) -> list[Any]:
    """What a form shows first: a run's settings if it is of the form's family, else the first base that there is; with
    what the browser kept of it."""
    family = form.fixed["family"]
    given = settings_of(run, form.config_class) if run and run.family == family else {}
    bases = form.picks.get("base_model")
    if not given and bases:
        given = {"base_model": bases[0][1]}
    values = dict(zip(form.paths, form.starting_values(given), strict=True))
    kept = left.get("values")
    kept = kept.get(family) if isinstance(kept, dict) else None
    if isinstance(kept, dict):
        values |= {path: value for path, value in kept.items() if path in values}
    return list(values.values())


def run_to_begin_with(entries: Sequence[Entry], chosen: str | None) -> Entry | None:
    """The chosen training run; when none is chosen, the newest one with a checkpoint, else the newest."""
    training = [entry for entry in entries if entry.info.kind == "train"]
    asked = find(training, chosen)
    if asked is not None:
        return asked
    newest = sorted(training, key=lambda entry: (entry.info.created, entry.id), reverse=True)
    return next((entry for entry in newest if entry.info.folder.checkpoints()), newest[0] if newest else None)


def count_line(
    form: Form[SampleConfig], takes: Sequence[str], values: Sequence[Any], amiss: str = ""
) -> tuple[str, str, bool]:
    """(the button, the sum beside it, whether it can be pressed) for what the form says now. amiss: what is wrong with
    the images."""
    data, _ = form.data(values)
    columns = bool(data.get("include_base")) + len(takes) * len(data.get("strengths") or [])
    prompts, seeds = len(data.get("prompts") or []), len(data.get("seeds") or [])
    if not columns:
        return "Compare: choose a take", "Choose takes, or include the base.", False
    if not prompts or not seeds:
        return f"Compare: write a {'seed' if prompts else 'prompt'}", "Each prompt is sampled with each seed.", False
    if amiss:
        return "Compare: see the images", "", False
    clips = columns * prompts * seeds
    words = f"{many(columns, 'take')} x {many(prompts, 'prompt')} x {many(seeds, 'seed')} = {many(clips, 'clip')}"
    return f"Compare {many(columns, 'take')}", f"{words}. Clips that were sampled before cost nothing.", True


def many(count: int, word: str) -> str:
    """1 take, 2 takes."""
    return f"{count} {word}{'' if count == 1 else 's'}"


def checked_config(
    form: Form[SampleConfig], takes: Sequence[str], values: Sequence[Any], images: Sequence[str] = ()
) -> tuple[SampleConfig | None, list[tuple[str, str]]]:
    """(the comparison's config, []), or (None, every problem with its field). Files that it names are looked for.

    images: are left out where the base begins from none, for then they are not in sight."""
    data, found = form.data(values)
    unread = {path for path, _ in found}
    shown = list(images) if images and begins_from_image(form, values) else []
    try:
        config = validate(form.config_class, {**data, "checkpoints": list(takes), "images": shown})
    except ConfigError as error:
        return None, found + [(path, text) for path, text in error.problems if path not in unread]
    if found:
        return None, found
    missing = [take for take in config.checkpoints if not Path(take).expanduser().exists()]
    found += [("checkpoints", f"{take} does not exist; choose another take") for take in missing]
    named = [finding for finding in file_findings(config, PROJECT) if finding.level == "error"]
    found += [(f.where, f.text.removeprefix(f"{f.where} ")) for f in named]
    return (None, found) if found else (config, [])


def amiss_with_images(problems: Sequence[tuple[str, str]], images: Sequence[str]) -> str:
    """What is wrong with the images, in a sentence; empty where nothing is."""
    text = next((text for where, text in problems if where == "images"), "")
    if text and not images:
        return "This base model begins from an image: add one for each prompt, or a single one for all."
    return f"Images {text}" if text else ""


def queue_comparison(workspace: Workspace, queue: JobQueue, config: SampleConfig) -> str:
    """Put a comparison in the queue; gives its run's id."""
    runs = {Path(take).parent.parent.name for take in config.checkpoints if Path(take).parent.name == "checkpoints"}
    one = _NUMBER.sub("", runs.pop()) if len(runs) == 1 else ""
    title = f"{one} takes" if config.checkpoints else "base"
    folder = workspace.new_run(config, title)
    queue.submit(folder.id, "sample")
    return folder.id


def read_run(entry: Entry | None) -> TrainConfig | None:
    """The config of a training run; None where there is none to read."""
    if entry is None:
        return None
    try:
        return load_config(entry.info.folder.config)
    except ConfigError:
        return None
