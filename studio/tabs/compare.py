"""Compare: which take is best? A wall of clips at the top; how to ask for another one folds out above it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from studio import progress
from studio.comparisons import comparison_value, comparisons, moved_value
from studio.forms import Form, Marks
from studio.jobs import JobQueue
from studio.page import COMPARE, QUICK, TELLING, Page, awaited, come_in
from studio.parts.lists import head, head_value
from studio.parts.looks import Seen, changed, told
from studio.parts.measures import measure_list, measures_value
from studio.parts.pictures import PictureRoom, offered_clips, picture_room, pictures_value
from studio.parts.runs import Entry, Runs, find
from studio.parts.wall import empty_wall, wall
from studio.workspace import PROJECT, TakeInfo, Workspace, WorkspaceError
from trainers.config import SampleConfig, TrainConfig
from trainers.data.clips import DatasetError
from trainers.data.video import VideoError
from trainers.families import FAMILIES, file_findings, get_family, load_config
from trainers.settings import ConfigError, fields, hints, validate

SECONDS_BETWEEN_LOOKS = 1.5
NO_WALL = "Choose takes and prompts above; base and takes then stand here side by side, in step."
NO_TAKES = "Train a run: its checkpoints are the takes. Until then the base can be sampled alone."
WHAT_MOVEMENT_IS = "Movement is how far a pixel moves from frame to frame, in percent of the picture's diagonal."
#: More checkpoints of a run than these are not chosen by themselves.
TAKES_AT_FIRST = 4
#: Where the browser's draft keeps this form; the other keys are Configure's.
DRAFT = "compare"
#: Settings that make more clips, or fewer, or that say whether they begin from images.
COUNTED = ("include_base", "strengths", "prompts", "seeds", "base_model")
_NUMBER = re.compile(r"-\d{4,}$")  # of a run's id; the comparison's id gets its own
Choice = tuple[str, str]  # (what is shown, a path)


# --- the form ---------------------------------------------------------------------------------------------------------


def make_forms(workspace: Workspace) -> dict[str, Form[SampleConfig]]:
    """A form for the comparisons of each family. The takes are chosen beside it, across runs, and images below its
    prompts."""
    forms = {}
    for name, family in FAMILIES.items():
        drawn = {path for path, _ in fields(family.sample_config)}
        forms[name] = Form(
            family.sample_config,
            fixed={"family": name, "checkpoints": [], "images": [], "cache_dir": str(workspace.cache)},
            lead=["prompts", "seeds", "base_model"],
            picks={path: [] for path in ("base_model", "motion_adapter") if path in drawn},
        )
    return forms


def model_choices(workspace: Workspace, family: str) -> dict[str, list[Choice]]:
    """What can be chosen for the fields of a family's form that name a model, by field."""
    found = {"base_model": workspace.base_models(FAMILIES[family]), "motion_adapter": workspace.motion_adapters()}
    return {field: [(_short(workspace, path), path) for path in paths] for field, paths in found.items()}


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
    """The form as this browser left it: {"run": for which, "family", "takes", "images", "values": by field}; or {}."""
    kept = draft.get(DRAFT) if isinstance(draft, dict) else None
    return kept if isinstance(kept, dict) else {}


def left_off(draft: Any, run: str | None) -> dict[str, Any]:
    """The kept form, if it was for that run and its family is known; else {}."""
    kept = kept_form(draft)
    return kept if kept.get("run") == run and kept.get("family") in FAMILIES else {}


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
    words = f"{_of(columns, 'take')} x {_of(prompts, 'prompt')} x {_of(seeds, 'seed')} = {_of(clips, 'clip')}"
    return f"Compare {_of(columns, 'take')}", f"{words}. Clips that were sampled before cost nothing.", True


def _of(count: int, word: str) -> str:
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
        nothing = head_value("No comparison yet", f"{_of(takes, 'checkpoint')} to choose from." if takes else NO_TAKES)
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


def build(page: Page) -> None:
    """Draw the tab and wire it."""
    workspace, queue = page.workspace, page.queue
    runs = Runs(workspace, queue)
    forms = make_forms(workspace)
    families = list(forms)
    shown, seen, filled_for, pictures = gr.State(None), gr.State({}), gr.State(None), gr.State([])
    marks = gr.State({name: form.marks(form.starting_values()) for name, form in forms.items()})
    parts: dict[str, Any] = {}
    groups: dict[str, Any] = {}
    rooms: dict[str, PictureRoom] = {}

    def room_of(name: str) -> Callable[[], None]:
        def draw() -> None:
            rooms[name] = picture_room(f"compare-{name}")

        return draw

    with awaited() as room:
        with gr.Row(elem_classes=["card", "actions"]):
            parts["head"] = head("comparison-head")
            parts["again"] = gr.Button("Sample what is missing", visible=False, size="md")
            parts["stop"] = gr.Button("Stop", variant="stop", visible=False, size="md")
            parts["earlier"] = gr.Dropdown(
                show_label=False,
                container=False,
                filterable=False,
                visible=False,
                elem_id="earlier",
                elem_classes="grow",
            )
        with gr.Accordion("New comparison", open=False, elem_id="new-comparison", elem_classes="card") as folded:
            family = gr.Radio(
                [(FAMILIES[name].title, name) for name in families],
                value=families[0],
                label="Family",
                visible=len(families) > 1,
            )
            takes = gr.Dropdown(
                choices=[],
                value=[],
                multiselect=True,
                allow_custom_value=True,
                label="Takes",
                info="Checkpoints of any run. The path of an adapter file can be typed as well.",
                elem_id="compare-takes",
            )
            for name, form in forms.items():
                with gr.Column(visible=name == families[0]) as groups[name]:
                    images = {"prompts": room_of(name)} if FAMILIES[name].has_image_models else {}
                    form.build(prefix=f"compare-{name}", after=images)
            problem = head("compare-problem")
            with gr.Row(elem_classes="actions"):
                go = gr.Button("Compare", variant="primary", interactive=False, size="md", elem_id="compare-go")
                total = gr.Markdown("", elem_id="compare-total", elem_classes=["quiet", "grow"])
        parts["wall"] = wall(elem_id="wall")
        with gr.Row(elem_classes="actions"):
            for suffix in ("mp4", "gif"):
                label = f"Download all clips as one {suffix.upper()}"
                parts[suffix] = gr.DownloadButton(label, visible=False, size="md", elem_id=f"download-{suffix}")
        with gr.Column(visible=False, elem_classes="card") as parts["moved"]:
            gr.Markdown("### What has moved")
            parts["measures"] = measure_list(elem_id="moved")
            gr.Markdown(f"{progress.HOW_TO_READ} {WHAT_MOVEMENT_IS}", elem_classes="quiet")

    controls = [component for form in forms.values() for component in form.components]
    drawn = [component for form in forms.values() for component in form.outputs]
    outputs = [shown, seen, *(parts[name] for name in SHOWN)]
    offers = [room.clips for room in rooms.values()]
    filled = [filled_for, folded, family, *groups.values(), takes, pictures, *offers, *controls]

    def values_of(name: str, flat: Sequence[Any]) -> list[Any]:
        """A family's own values among those of all forms."""
        start = sum(len(forms[before].components) for before in families[: families.index(name)])
        return list(flat[start : start + len(forms[name].components)])

    def fill(
        chosen: str | None, before: Any, opening: bool, taken: list[str] | None, dataset: str | None, draft: Any
    ) -> list[Any]:
        """Updates of `filled`: the form for a run. What was written for the same run stays; new takes join it."""
        clips = [offered_clips(workspace, dataset) for _ in offers]
        entries = runs.entries()
        entry = run_to_begin_with(entries, chosen)
        config = read_run(entry)
        run = entry.id if entry else None
        own = takes_to_begin_with(workspace.takes(), run)
        mark, left = [run, own], left_off(draft, run)
        name = left.get("family") or (config.family if config else families[0])
        models = {known_as: model_choices(workspace, known_as) for known_as in forms}
        choices = take_choices(workspace, name)
        if before is not None and before[0] == run:
            untouched = before[1] == (taken or [])
            offered = gr.update(choices=choices, value=own) if untouched else gr.update(choices=choices)
            unfold = gr.update(open=opening) if before != mark else gr.skip()
            kept = [update for key, form in forms.items() for update in form.refill(None, models[key])]
            return [mark, unfold, gr.skip(), *[gr.skip()] * len(groups), offered, gr.skip(), *clips, *kept]
        updates: list[Any] = []
        for known_as, form in forms.items():
            given = settings_of(config, form.config_class) if config and config.family == known_as else {}
            if not given and models[known_as]["base_model"]:
                given = {"base_model": models[known_as]["base_model"][0][1]}
            values = dict(zip(form.paths, form.starting_values(given), strict=True))
            if known_as == name:
                values |= {path: value for path, value in left.get("values", {}).items() if path in values}
            updates += form.refill(list(values.values()), models[known_as])
        offered = gr.update(choices=choices, value=own if left.get("takes") is None else left["takes"])
        images = images_to_begin_with(workspace, left, config)
        in_sight = [gr.update(visible=known == name) for known in groups]
        return [mark, gr.update(open=opening), name, *in_sight, offered, images, *clips, *updates]

    def come(
        chosen: str | None, run: str | None, before: Seen, form_for: Any, taken: list[str] | None, *kept: Any
    ) -> Any:
        """Arriving at the tab: a chosen comparison is shown, a chosen run's takes are offered."""
        entry = find(runs.entries(), chosen)
        if entry is not None and entry.info.kind == "sample":
            return [*refresh(runs, entry.id, before), *[gr.skip()] * len(filled)]
        return [*refresh(runs, run, before), *fill(chosen, form_for, entry is not None, taken, *kept)]

    def begin(wish: Mapping[str, Any], form_for: Any, taken: list[str] | None, *kept: Any) -> Any:
        """Another tab asks to compare the takes of a run: the form stands open for it."""
        entry = find(runs.entries(), wish["run"])
        if entry is None or entry.info.kind == "sample":
            return [gr.skip()] * len(filled)
        updates = fill(wish["run"], form_for, True, taken, *kept)
        return [updates[0], gr.update(open=True), *updates[2:]]

    def open_page(chosen: str | None, dataset: str | None, draft: Any) -> Any:
        chosen = chosen or kept_form(draft).get("run")
        return [*refresh(runs, None, {}), *fill(chosen, None, not comparisons(runs.entries()), None, dataset, draft)]

    def keep(draft: Any, form_for: Any, name: str, paths: list[str] | None, images: list[str], *flat: Any) -> Any:
        """The form as it stands, kept by the browser over a reload."""
        written = dict(zip(forms[name].paths, values_of(name, flat), strict=True))
        run, offered = form_for or (None, [])
        chosen = None if paths == offered else paths  # None: those of the run, however many there will be
        now = {"run": run, "family": name, "takes": chosen, "images": images, "values": written}
        return {**(draft if isinstance(draft, dict) else {}), DRAFT: now}

    def look(run: str | None, before: Seen) -> Any:
        return refresh(runs, run, before)

    def follow(chosen: str | None, run: str | None, before: Seen) -> Any:
        """A comparison that was chosen elsewhere, or before a reload, is shown."""
        return refresh(runs, chosen if find(comparisons(runs.entries()), chosen) else run, before)

    def show(run: str | None, before: Seen) -> Any:
        return [run, run, *refresh(runs, run, before)[1:]]

    def choose_family(name: str) -> Any:
        return [
            gr.update(choices=take_choices(workspace, name), value=[]),
            *(gr.update(visible=known == name) for known in families),
        ]

    def count(name: str, paths: list[str] | None, images: list[str], *flat: Any) -> Any:
        form, values = forms[name], values_of(name, flat)
        begins = name in rooms and begins_from_image(form, values)
        amiss = amiss_with_images(checked_config(form, paths or [], values, images)[1], images) if begins else ""
        label, line, possible = count_line(form, paths or [], values, amiss)
        row = pictures_value(images, form.data(values)[0].get("prompts") or [], amiss) if begins else gr.skip()
        shown_rooms = [part for known in rooms for part in (gr.update(visible=known == name and begins), row)]
        return [gr.update(value=label, interactive=possible), line, *shown_rooms]

    def add_files(request: gr.Request, files: list[str] | None, images: list[str]) -> list[str]:
        page.access.require_owner(request)
        added = []
        for file in map(Path, files or []):
            try:
                added.append(str(workspace.add_image(file)))
            except VideoError as error:
                gr.Warning(str(error), title="Not added")
            file.unlink(missing_ok=True)
        return [*images, *added]

    def add_clip(request: gr.Request, clip: str | None, dataset: str | None, images: list[str]) -> list[Any]:
        page.access.require_owner(request)
        if not clip or not dataset:
            return [images, None]
        try:
            found = workspace.dataset(dataset)
            return [[*images, str(workspace.add_image(found.file(found.clip(clip))))], None]
        except (WorkspaceError, DatasetError, VideoError) as error:
            raise gr.Error(str(error), title="Not added") from error

    def remove_image(images: list[str], event: gr.EventData) -> list[str]:
        return [file for place, file in enumerate(images) if place != event.place]

    def move_image(images: list[str], event: gr.EventData) -> list[str]:
        place = event.place
        if not 0 < place < len(images):
            return images
        return [*images[: place - 1], images[place], images[place - 1], *images[place + 1 :]]

    def offer(dataset: str | None) -> Any:
        return {clips: offered_clips(workspace, dataset) for clips in offers}

    def submit(
        request: gr.Request,
        before: Seen,
        was: dict[str, Marks],
        name: str,
        paths: list[str] | None,
        images: list[str],
        *flat: Any,
    ) -> Any:
        page.access.require_owner(request)
        form, values = forms[name], values_of(name, flat)
        config, found = checked_config(form, paths or [], values, images)
        now = {**was, name: form.marks(values, found)}
        looks = [update for known, other in forms.items() for update in other.updates(was[known], now[known])]
        elsewhere = "\n".join(f"{where}: {text}" if where else text for where, text in found if where not in form.paths)
        told_so = head_value("", elsewhere, state="failed")
        if config is None:
            return [gr.skip()] * (1 + len(outputs)) + [gr.skip(), now, told_so, *looks]
        with told():
            run = queue_comparison(workspace, queue, config)
        return [run, run, *refresh(runs, run, before)[1:], gr.update(open=False), now, told_so, *looks]

    def stop(run: str | None, before: Seen, request: gr.Request) -> Any:
        page.access.require_owner(request)
        with told():
            job = queue.last_of(run) if run else None
            if job is not None:
                queue.cancel(job.id)
        return refresh(runs, run, before)

    def again(run: str | None, before: Seen, request: gr.Request) -> Any:
        page.access.require_owner(request)
        with told():
            if run is not None:
                start_again(queue, run)
        return refresh(runs, run, before)

    kept = [page.chosen_dataset, page.draft]
    written = [page.draft, filled_for, family, takes, pictures, *controls]
    come_in(page.demo, room, open_page, [page.chosen_run, *kept], [*outputs, *filled], **TELLING)
    page.tab_items[COMPARE].select(
        come, [page.chosen_run, shown, seen, filled_for, takes, *kept], [*outputs, *filled], **TELLING
    )
    page.begin_comparison.change(begin, [page.begin_comparison, filled_for, takes, *kept], filled, **TELLING)
    gr.on(
        [takes.input, *(control.input for control in controls)],
        keep,
        written,
        page.draft,
        trigger_mode="always_last",
        **QUICK,
    )
    for place in rooms.values():
        changes = (
            place.upload.upload(add_files, [place.upload, pictures], pictures, **TELLING),
            place.clips.select(
                add_clip, [place.clips, page.chosen_dataset, pictures], [pictures, place.clips], **TELLING
            ),
            place.row.remove(remove_image, pictures, pictures, **TELLING),
            place.row.earlier(move_image, pictures, pictures, **TELLING),
        )
        for change in changes:
            change.success(keep, written, page.draft, **QUICK)
    page.chosen_dataset.change(offer, page.chosen_dataset, offers, **QUICK)
    page.chosen_run.change(follow, [page.chosen_run, shown, seen], outputs, **TELLING)
    gr.Timer(SECONDS_BETWEEN_LOOKS).tick(look, [shown, seen], outputs, **TELLING)
    parts["earlier"].input(show, [parts["earlier"], seen], [page.chosen_run, *outputs], **TELLING)
    parts["stop"].click(stop, [shown, seen], outputs, **TELLING)
    parts["again"].click(again, [shown, seen], outputs, **TELLING)
    family.input(choose_family, family, [takes, *groups.values()], **TELLING).then(keep, written, page.draft, **QUICK)
    counted = [c for form in forms.values() for p, c in zip(form.paths, form.components, strict=True) if p in COUNTED]
    gr.on(
        [family.change, takes.change, pictures.change, *(c.change for c in counted)],
        count,
        [family, takes, pictures, *controls],
        [go, total, *(part for place in rooms.values() for part in (place.room, place.row))],
        trigger_mode="always_last",
        **TELLING,
    )
    go.click(
        submit,
        [seen, marks, family, takes, pictures, *controls],
        [page.chosen_run, *outputs, folded, marks, problem, *drawn],
        **TELLING,
    )


def read_run(entry: Entry | None) -> TrainConfig | None:
    """The config of a training run; None where there is none to read."""
    if entry is None:
        return None
    try:
        return load_config(entry.info.folder.config)
    except ConfigError:
        return None
