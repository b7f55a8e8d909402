"""A config class as controls, and the controls' values as a config. Knows no family.

One control for each setting, drawn from the schema: basic ones first, the rest under Advanced by section. The order of
`Form.paths`, of `Drawn.components` and of every list of values is the same. A page draws only the form that is in
sight, anew for each visitor: several families' controls at once make every answer of the page slow.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar, get_args, get_origin

import gradio as gr
from pydantic.fields import FieldInfo

from trainers.settings import (
    ConfigError,
    Section,
    choices,
    fields,
    has_effect,
    hints,
    section_class,
    unwrap_optional,
    validate,
    value_at,
)

S = TypeVar("S", bound=Section)
Kind = Literal["choice", "switch", "whole", "number", "text", "texts", "numbers"]
Choice = tuple[str, Any]  # (what is shown, what is stored)
Problem = tuple[str, str]  # (dotted field, sentence)

#: A browser keeps whole numbers exactly up to here; a larger one is typed as text.
LARGEST_EXACT = 2**53
EMPTY = ""


@dataclass(frozen=True)
class Control:
    """One setting as the form sees it."""

    path: str
    info: FieldInfo
    kind: Kind
    item: type  # of a list, else of the value
    optional: bool
    label: str
    basic: bool

    @property
    def description(self) -> str:
        return self.info.description or ""

    def show(self, value: Any) -> Any:
        """A config's value as the control's."""
        match self.kind:
            case "switch":
                return bool(value)
            case "whole":
                return value if not self.typed else EMPTY if value is None else str(value)
            case "number":
                return EMPTY if value is None else _number_text(value)
            case "texts":
                return "\n".join(" ".join(str(line).split("\n")) for line in value or [])
            case "numbers":
                return ", ".join(_number_text(item) for item in value or [])
            case _:
                return EMPTY if value is None else value

    def read(self, shown: Any) -> Any:
        """The control's value as a config's; ValueError with a sentence. The schema checks the rest."""
        match self.kind:
            case "switch":
                return bool(shown)
            case "texts":
                return [line.strip() for line in str(shown or "").splitlines() if line.strip()]
            case "numbers":
                parts = str(shown or "").replace("\n", ",").split(",")
                return [_parse(part, self.item) for part in parts if part.strip()]
        text = shown.strip() if isinstance(shown, str) else shown
        if text is None or text == EMPTY:
            if self.optional:
                return None
            if self.kind in ("whole", "number"):
                raise ValueError(f"is empty; give a {'whole number' if self.kind == 'whole' else 'number'}")
            return EMPTY
        if self.kind in ("whole", "number"):
            return _parse(text, self.item)
        return text

    @property
    def is_radio(self) -> bool:
        """Whether its choices stand side by side: few, and of interest to everybody."""
        return self.basic and self.kind == "choice" and len(choices(self.info)) <= 4 and not self.optional

    @property
    def typed(self) -> bool:
        """Whether a whole number is typed as text: a number box rounds a large one, and makes 0 of an empty one."""
        bound = max((getattr(rule, "le", 0) or 0 for rule in self.info.metadata), default=0)
        return self.kind == "whole" and (self.optional or bound > LARGEST_EXACT)


@dataclass(frozen=True)
class Marks:
    """What the form shows of a state besides its values: problems at fields, fields without effect."""

    problems: Mapping[str, str]
    hidden: frozenset[str]


class Form(Generic[S]):
    """Controls for `config_class`: what they are, what they say, and how they look.

    fixed: settings that are not drawn, by dotted path. lead: fields to put first. picks: fields to choose from a list
    that is known only while the page runs (datasets, base models); another value can still be typed.
    """

    def __init__(
        self,
        config_class: type[S],
        *,
        fixed: Mapping[str, Any] | None = None,
        lead: Sequence[str] = (),
        picks: Mapping[str, Sequence[Choice]] | None = None,
    ) -> None:
        self.config_class = config_class
        self.fixed = dict(fixed or {})
        self.picks = dict(picks or {})
        drawn = {path: info for path, info in fields(config_class) if path not in self.fixed}
        leaves = [path.rpartition(".")[2] for path, info in drawn.items() if hints(info).get("basic")]
        controls = [_control(path, info, leaves.count(path.rpartition(".")[2]) > 1) for path, info in drawn.items()]
        rank = {path: place for place, path in enumerate(lead)}
        basic = sorted((c for c in controls if c.basic), key=lambda c: rank.get(c.path, len(rank)))
        self.controls: list[Control] = basic + [c for c in controls if not c.basic]
        self.sections = list(dict.fromkeys(_section(c.path) for c in self.controls if not c.basic))

    @property
    def paths(self) -> list[str]:
        return [control.path for control in self.controls]

    # --- values ---------------------------------------------------------------------------------------------------

    def values(self, config: S) -> list[Any]:
        """A config as the values of the controls."""
        return [control.show(value_at(config, control.path)) for control in self.controls]

    def starting_values(self, given: Mapping[str, Any] | None = None) -> list[Any]:
        """Defaults, with `given` (by dotted path) put in: what the form shows before anybody has chosen."""
        given = given or {}
        return [
            control.show(given[control.path] if control.path in given else _default(control))
            for control in self.controls
        ]

    def merge(self, values: Sequence[Any], given: Mapping[str, Any]) -> list[Any]:
        """`values` with some settings (by dotted path) put in."""
        return [
            control.show(given[control.path]) if control.path in given else value
            for control, value in zip(self.controls, values, strict=True)
        ]

    def shown(self, data: Mapping[str, Any]) -> list[Any]:
        """Settings that need not be valid, as the form shows them: for a config that is still to be mended."""
        given = {}
        for control in self.controls:
            here: Any = data
            for part in control.path.split("."):
                here = here.get(part, _MISSING) if isinstance(here, Mapping) else _MISSING
            if here is not _MISSING and _fits(control, here):
                given[control.path] = here
        return self.starting_values(given)

    def data(self, values: Sequence[Any]) -> tuple[dict[str, Any], list[Problem]]:
        """(settings by section, what could not be read). Fields without effect are left at their default."""
        read, problems = self._read(values)
        flat = {path: value for path, value in read.items() if has_effect(self.config_class, path, read)}
        required = {c.path for c in self.controls if c.info.is_required()}
        nested: dict[str, Any] = {}
        for path, value in {**flat, **self.fixed}.items():
            if value == EMPTY and path in required:
                continue  # the schema says "must be set"
            *parents, last = path.split(".")
            here = nested
            for parent in parents:
                here = here.setdefault(parent, {})
            here[last] = value
        return nested, problems

    def check(self, values: Sequence[Any]) -> tuple[S | None, list[Problem]]:
        """(the config, []), or (None, every problem with its field)."""
        data, problems = self.data(values)
        unread = {path for path, _ in problems}
        try:
            config = validate(self.config_class, data)
        except ConfigError as error:
            found = [(path, self.sentence(path, text)) for path, text in error.problems if path not in unread]
            return None, problems + found
        return (None, problems) if problems else (config, [])

    def _read(self, values: Sequence[Any]) -> tuple[dict[str, Any], list[Problem]]:
        read: dict[str, Any] = {}
        problems: list[Problem] = []
        for control, shown in zip(self.controls, values, strict=True):
            try:
                read[control.path] = control.read(shown)
            except ValueError as error:
                problems.append((control.path, self.sentence(control.path, str(error))))
        hidden = {path for path, _ in problems if not has_effect(self.config_class, path, read)}
        return read, [problem for problem in problems if problem[0] not in hidden]

    # --- marks ----------------------------------------------------------------------------------------------------

    def marks(self, values: Sequence[Any], problems: Sequence[Problem] = ()) -> Marks:
        """What to show at the fields: the first problem of each, and which have no effect now."""
        read, _ = self._read(values)
        first: dict[str, str] = {}
        for path, text in problems:
            first.setdefault(path, text)
        hidden = frozenset(path for path in self.paths if not has_effect(self.config_class, path, read))
        return Marks(first, hidden)

    def updates(self, before: Marks, now: Marks) -> list[Any]:
        """Updates from one state of marks to the next, one for each of `Drawn.outputs`."""
        out = [
            gr.skip() if _look(control, before) == _look(control, now) else gr.update(**_look(control, now))
            for control in self.controls
        ]
        for section in self.sections:
            empty = self._empty(section, now)
            out.append(gr.skip() if empty == self._empty(section, before) else gr.update(visible=not empty))
        fresh = set(now.problems) - set(before.problems)
        wrong = any(not control.basic and control.path in fresh for control in self.controls)
        out.append(gr.update(open=True) if wrong else gr.skip())
        return out

    def _empty(self, section: str, marks: Marks) -> bool:
        members = [c.path for c in self.controls if not c.basic and _section(c.path) == section]
        return all(path in marks.hidden for path in members)

    def _pick(self, control: Control) -> list[Choice]:
        return [*([("(none)", EMPTY)] if control.optional else []), *self.picks[control.path]]

    def sentence(self, path: str, text: str) -> str:
        """What is wrong with a field, beginning with the words at its control."""
        label = next((control.label for control in self.controls if control.path == path), path)
        return f"{label} {self.in_words(text)}".strip()

    def in_words(self, text: str) -> str:
        """A trainer's sentence with settings called as at their controls: ``lower Frames to 5``."""
        for control in sorted(self.controls, key=lambda control: len(control.path), reverse=True):
            if not control.path.isalpha():  # "seed" is a word as well
                text = re.sub(rf"(?<![\w.]){re.escape(control.path)}(?!\w|\.\w)", control.label, text)
        return text

    # --- drawing --------------------------------------------------------------------------------------------------

    def build(
        self,
        values: Sequence[Any] | None = None,
        marks: Marks | None = None,
        *,
        prefix: str = "field",
        after: Mapping[str, Callable[[], None]] | None = None,
    ) -> Drawn:
        """Draw the controls in the surrounding Blocks. Element ids are `prefix`-dataset-num_frames and the like.

        after: draws something of the caller's own behind a field, which it belongs to."""
        values = list(values) if values is not None else self.starting_values()
        look = marks or self.marks(values)
        shown = dict(zip(self.paths, values, strict=True))
        components: dict[str, Any] = {}
        sections: list[Any] = []

        def draw(controls: Sequence[Control]) -> None:
            with gr.Row(elem_classes="fields"):
                for control in controls:
                    components[control.path] = self._component(control, shown[control.path], look, prefix)
                    if after and control.path in after:
                        after[control.path]()

        draw([c for c in self.controls if c.basic])
        rest = [c for c in self.controls if not c.basic]
        titles = ", ".join(name for name in self.sections if name)
        advanced: Any = gr.State() if not rest else None
        if rest:
            label = f"Advanced: {titles}" if titles else "Advanced"
            wrong = any(c.path in look.problems for c in rest)
            with gr.Accordion(label, open=wrong, elem_classes="advanced") as advanced:
                for name in self.sections:
                    with gr.Column(visible=not self._empty(name, look), elem_classes="section") as section:
                        if name:
                            gr.Markdown(f"#### {_words(name)}\n{_purpose(self.config_class, name)}")
                        elif titles:
                            gr.Markdown("#### The run")
                        draw([c for c in rest if _section(c.path) == name])
                    sections.append(section)
        parts = [components[path] for path in self.paths]
        picks = [components[path] for path in self.paths if path in self.picks]
        return Drawn(parts, [*parts, *sections, advanced], picks)

    def offers(self) -> list[Any]:
        """Updates of `Drawn.picks`: what there is to pick from; what is picked stays."""
        return [gr.update(choices=self._pick(control)) for control in self.controls if control.path in self.picks]

    def _component(self, control: Control, value: Any, marks: Marks, prefix: str) -> Any:
        common: dict[str, Any] = {
            "label": control.label,
            "value": value,
            "elem_id": f"{prefix}-{control.path.replace('.', '-')}",
            "interactive": True,
            "min_width": 200,
            **_look(control, marks),
        }
        if control.path in self.picks:
            return gr.Dropdown(choices=self._pick(control), allow_custom_value=True, **common)
        match control.kind:
            case "choice":
                options: list[Choice] = [(str(option), option) for option in choices(control.info)]
                if control.optional:
                    options.insert(0, ("(empty)", EMPTY))
                if control.is_radio:
                    return gr.Radio(choices=options, **common)
                return gr.Dropdown(choices=options, filterable=False, **common)
            case "switch":
                return gr.Checkbox(**common)
            case "whole" if not control.typed:
                return gr.Number(**common)
            case "whole" | "number":
                return gr.Textbox(max_lines=1, **common)
            case "texts":
                return gr.Textbox(lines=3, max_lines=12, **common)
            case "text" if hints(control.info).get("lines"):
                return gr.Textbox(lines=4, max_lines=24, **common)
            case _:
                return gr.Textbox(max_lines=1, **common)


@dataclass(frozen=True)
class Drawn:
    """A form that stands on a page: its controls, all that `Form.updates` speaks to, and what `Form.offers` does."""

    components: list[Any]
    outputs: list[Any]
    picks: list[Any]


# --- small words ------------------------------------------------------------------------------------------------------

_MISSING: Any = object()
_SHORT = {"lr": "LR", "fps": "FPS"}


def _control(path: str, info: FieldInfo, ambiguous: bool) -> Control:
    inner, optional = unwrap_optional(info.annotation)
    item, kind = inner, _kind(inner)
    if get_origin(inner) is list:
        item = get_args(inner)[0]
        if item not in (str, int, float):
            raise TypeError(f"{path}: the form has no control for a list of {item}")
    basic = bool(hints(info).get("basic"))
    section, _, leaf = path.rpartition(".")
    label = _words(leaf.removeprefix("num_"))
    if section and leaf in ("path", "name"):
        label = _words(section)
    elif section and (ambiguous or leaf == "prompts") and basic:
        label = f"{_words(section)} {label.lower()}"
    return Control(path, info, kind, item, optional, label, basic)


def _kind(inner: Any) -> Kind:
    if get_origin(inner) is Literal:
        return "choice"
    if get_origin(inner) is list:
        return "texts" if get_args(inner)[0] is str else "numbers"
    kinds: dict[Any, Kind] = {bool: "switch", int: "whole", float: "number", str: "text"}
    if inner not in kinds:
        raise TypeError(f"the form has no control for {inner}")
    return kinds[inner]


def _fits(control: Control, value: Any) -> bool:
    """Whether a value of unknown origin can be shown in the control at all."""
    if control.kind in ("texts", "numbers"):
        return isinstance(value, list) and all(isinstance(item, (str, int, float)) for item in value)
    if control.kind == "choice":
        return value in choices(control.info) or (value is None and control.optional)
    if control.kind == "switch":
        return isinstance(value, bool)
    if value is None:
        return control.optional
    if control.kind == "whole" and not control.typed:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return isinstance(value, (str, int, float)) and not isinstance(value, bool)


def _default(control: Control) -> Any:
    if not control.info.is_required():
        return control.info.get_default(call_default_factory=True)
    if control.kind in ("texts", "numbers"):
        return []
    return False if control.kind == "switch" else None


def _look(control: Control, marks: Marks) -> dict[str, Any]:
    """How a control is drawn: a problem takes the description's place, in the colour of an error."""
    problem = marks.problems.get(control.path)
    kinds = [
        "field",
        *(["wide"] if control.kind == "texts" or control.is_radio else []),
        *(["problem"] if problem else []),
    ]
    return {
        "visible": control.path not in marks.hidden,
        "info": problem or control.description,
        "elem_classes": kinds,
    }


def _section(path: str) -> str:
    return path.rpartition(".")[0]


def _purpose(config_class: type[Section], section: str) -> str:
    inner: type[Section] | None = config_class
    for part in section.split("."):
        inner = section_class(inner.model_fields[part]) if inner else None
    return " ".join((inner.__doc__ or "").split()) if inner else ""


def _words(name: str) -> str:
    words = " ".join(_SHORT.get(word, word) for word in name.replace(".", " ").split("_"))
    return words[:1].upper() + words[1:]


def _number_text(value: Any) -> str:
    """A number as a person writes it, exactly: 1 for 1.0, 1e-08 for 0.00000001."""
    return repr(value).removesuffix(".0") if isinstance(value, float) else str(value)


def _parse(text: Any, kind: type) -> Any:
    if isinstance(text, (int, float)) and not isinstance(text, bool):
        return int(text) if kind is int and float(text).is_integer() else text
    try:
        return kind(str(text).strip())
    except ValueError:
        word = "a whole number" if kind is int else "a number, such as 0.5 or 1e-4"
        raise ValueError(f"is {str(text).strip()!r}, but must be {word}") from None
