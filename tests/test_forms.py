"""The form: every field reaches the config, every config survives the form, and problems stand at their field."""

from __future__ import annotations

from typing import Any, Literal

import gradio as gr
import pytest

from studio.forms import Form, Marks
from trainers.families import FAMILIES
from trainers.settings import FieldError, Section, choices, setting, to_yaml, validate, value_at

CLASSES = [cls for family in FAMILIES.values() for cls in (family.train_config, family.sample_config)]
NAMES = {cls: family.name for family in FAMILIES.values() for cls in (family.train_config, family.sample_config)}


class Inner(Section):
    """What stands inside."""

    ratio: float = setting(1e-8, "A ratio.", gt=0)
    names: list[str] = setting(["a"], "Names.", basic=True)
    limit: int | None = setting(None, "A limit.", ge=1, show_if={"mode": ["slow"]})


class Outer(Section):
    """A config with one field of each kind."""

    mode: Literal["fast", "slow"] = setting("fast", "A mode.", basic=True)
    other: Literal["x", "y"] | None = setting(None, "Another.")
    title: str = setting(..., "A title.", basic=True, min_length=1)
    story: str = setting("", "A story.", lines=True)
    note: str | None = setting(None, "A note.")
    on: bool = setting(False, "A switch.")
    big: int = setting(3, "A large number.", ge=0, le=2**63 - 1)
    shares: list[float] = setting([1.0], "Shares.")
    counts: list[int] = setting([1], "Counts.")
    inner: Inner = Inner()


def form_for(cls: type[Section], fixed: dict[str, Any] | None = None) -> Form[Any]:
    """The form as a tab draws it: the family is chosen elsewhere."""
    fixed = {"family": NAMES[cls], **(fixed or {})} if cls in NAMES else fixed
    return Form(cls, fixed=fixed)


def working_values(form: Form[Any]) -> list[Any]:
    """Values that make a config, in the first method that does."""
    given: dict[str, Any] = {"base_model": "some/model", "dataset.path": "clips", "prompts": ["a"], "title": "t"}
    listed = {"dataset.videos": ["a.mp4", "b.mp4"], "dataset.prompts": ["a"]}
    given |= {path: value for path, value in listed.items() if path in form.paths}
    methods = choices(form.controls[form.paths.index("method")].info) if "method" in form.paths else [None]
    for method in methods:
        values = form.merge(form.starting_values(), {"method": method, **given} if method else given)
        if form.check(values)[0] is not None:
            return values
    raise AssertionError(form.check(values)[1])


def other_values(form: Form[Any], path: str, shown: Any) -> list[Any]:
    """Other values for a control that a person could enter; bounds allow at least one of them."""
    control = form.controls[form.paths.index(path)]
    match control.kind:
        case "choice":
            return [option for option in choices(control.info) if option != shown]
        case "switch":
            return [not shown]
        case "whole":
            steps = (8, 16, 64) if path.endswith(("height", "width")) else (1, 4, 6)
            return [str(int(shown or 0) + step) if control.typed else (shown or 0) + step for step in steps]
        case "number":
            return [text for text in ("0.5", "0.25", "2") if text != shown]
        case "texts":
            return [f"{shown}\nanother".strip()]
        case "numbers":
            return [f"{shown}, 7".strip(", "), ", ".join(["7"] * 64)]  # 64: one for each of a family's denoising steps
        case _:
            return [f"{shown}/other"]


@pytest.mark.parametrize("cls", [*CLASSES, Outer], ids=lambda cls: cls.__name__)
def test_every_visible_field_changes_the_effective_config(cls: type[Section]) -> None:
    form = form_for(cls)
    start = working_values(form)
    tried = set()
    modes = choices(form.controls[form.paths.index("method")].info) if "method" in form.paths else [None]
    for mode in modes:
        values = form.merge(start, {"method": mode}) if mode else list(start)
        if form.check(values)[0] is None:  # a method that needs one more file
            values = form.merge(values, {path: "some/file" for path in form.paths if path.endswith("adapter")})
        config, problems = form.check(values)
        assert config is not None, problems
        hidden = form.marks(values).hidden
        for place, path in enumerate(form.paths):
            for base, before in _bring_in_sight(form, values, path) if path in hidden else [(values, config)]:
                changes = [
                    [*base[:place], other, *base[place + 1 :]] for other in other_values(form, path, base[place])
                ]
                after = next((made for change in changes if (made := form.check(change)[0]) is not None), None)
                if path == "method" and after is None:  # the other method needs more settings: they are tried by it
                    continue
                assert after is not None, path
                assert value_at(after, path) != value_at(before, path), path
                assert to_yaml(after) != to_yaml(before), path
                tried.add(path)
    assert tried == set(form.paths)


def _bring_in_sight(form: Form[Any], values: list[Any], path: str) -> list[tuple[list[Any], Any]]:
    """Values in which a hidden field has an effect, if one change of another field makes it so."""
    for other, control in zip(form.paths, form.controls, strict=True):
        for option in choices(control.info) if control.kind == "choice" and other != "method" else []:
            changed = form.merge(values, {other: option})
            config, _ = form.check(changed)
            if config is not None and path not in form.marks(changed).hidden:
                return [(changed, config)]
    return []


@pytest.mark.parametrize("cls", [*CLASSES, Outer], ids=lambda cls: cls.__name__)
def test_a_config_comes_back_identical(cls: type[Section]) -> None:
    form = form_for(cls)
    config, problems = form.check(working_values(form))
    assert config is not None, problems
    assert form.check(form.values(config))[0] == config


def test_unusual_values_come_back_identical() -> None:
    form = form_for(Outer)
    config = Outer(
        mode="slow", other="y", title="t ${alert(1)} <img onerror> \\ \"'", story="one\ntwo", note="n", on=True,
        big=2**63 - 1, shares=[0.1, 1e-12, 3], counts=[0, -5], inner=Inner(ratio=1e-8, names=["x y", "z"], limit=4),
    )  # fmt: skip
    shown = form.values(config)
    assert form.check(shown)[0] == config
    cells = dict(zip(form.paths, shown, strict=True))
    assert cells["big"] == str(2**63 - 1), "a browser would round it"
    assert cells["inner.ratio"] == "1e-08"
    assert cells["inner.names"] == "x y\nz"


def test_hidden_fields_stay_at_their_default() -> None:
    form = form_for(Outer)
    values = form.merge(working_values(form), {"mode": "slow", "inner.limit": 9})
    seen, _ = form.check(values)
    assert seen.inner.limit == 9
    hidden, _ = form.check(form.merge(values, {"mode": "fast"}))
    assert hidden.inner.limit is None
    assert "inner.limit" in form.marks(form.merge(values, {"mode": "fast"})).hidden


def test_a_hidden_field_cannot_stand_in_the_way() -> None:
    form = form_for(Outer)
    values = form.merge(working_values(form), {"mode": "fast"})
    values[form.paths.index("inner.limit")] = "not a number"
    assert form.check(values)[0] is not None


@pytest.mark.parametrize(
    ("path", "typed", "part"),
    [
        ("inner.ratio", "abc", "Ratio is 'abc', but must be a number"),
        ("inner.ratio", "-1", "greater than 0"),
        ("inner.ratio", "", "is empty"),
        ("big", "1.5", "whole number"),
        ("big", "", "is empty"),
        ("counts", "1, two", "'two'"),
        ("title", "  ", "Title must be set"),
        ("shares", "1; 2", "'1; 2'"),
    ],
)
def test_problems_name_their_field(path: str, typed: str, part: str) -> None:
    form = form_for(Outer)
    values = working_values(form)
    values[form.paths.index(path)] = typed
    config, problems = form.check(values)
    assert config is None
    assert [where for where, _ in problems] == [path]
    assert part in problems[0][1]


def test_a_whole_number_with_a_fraction_is_not_rounded() -> None:
    form = form_for(FAMILIES["animatediff"].train_config)
    values = working_values(form)
    values[form.paths.index("dataset.num_frames")] = 16.5
    config, problems = form.check(values)
    assert config is None
    assert problems[0][0] == "dataset.num_frames"


def test_several_problems_are_told_at_once() -> None:
    form = form_for(Outer)
    values = form.merge(working_values(form), {"title": ""})
    values[form.paths.index("inner.ratio")] = "x"
    assert {where for where, _ in form.check(values)[1]} == {"title", "inner.ratio"}


def test_fixed_settings_are_not_drawn_and_are_set() -> None:
    form = form_for(Outer, fixed={"inner.ratio": 0.25, "note": "fixed"})
    assert "inner.ratio" not in form.paths
    config, _ = form.check(working_values(form))
    assert (config.inner.ratio, config.note) == (0.25, "fixed")


def test_marks_become_updates_only_where_something_changed() -> None:
    form = form_for(Outer)
    values = working_values(form)
    calm = form.marks(values)
    assert not any(_changes(update) for update in form.updates(calm, calm))
    wrong = form.marks(values, [("big", "Big is wrong")])
    updates = dict(zip([*form.paths, *form.sections, "advanced"], form.updates(calm, wrong), strict=True))
    changed = {path for path, update in updates.items() if _changes(update)}
    assert changed == {"big", "advanced"}, "the problem opens Advanced, where the field is"
    assert updates["big"]["info"] == "Big is wrong"
    assert "problem" in updates["big"]["elem_classes"]


def _changes(update: dict[str, Any]) -> bool:
    return bool(set(update) - {"__type__"})


def test_settings_that_do_not_fit_are_left_out_of_the_form() -> None:
    form = form_for(Outer)
    shown = dict(
        zip(
            form.paths,
            form.shown({"mode": "never", "big": [1], "title": "kept", "inner": {"names": ["q"]}}),
            strict=True,
        )
    )
    assert shown["mode"] == "fast"
    assert shown["big"] == "3"
    assert shown["title"] == "kept"
    assert shown["inner.names"] == "q"


def test_a_sentence_of_a_rule_between_fields_stands_at_the_field_to_mend() -> None:
    form = form_for(FAMILIES["animatediff"].train_config)
    values = form.merge(working_values(form), {"dataset.height": 250})
    _, problems = form.check(values)
    assert problems == [("dataset.height", "Height is 250, but must be a multiple of 8: set 248 or 256")]
    assert FieldError("a", "b").where == "a"


def test_controls_are_numbered_as_the_schema_says() -> None:
    for cls in CLASSES:
        form = form_for(cls)
        with gr.Blocks():
            drawn = form.build()
        assert len(drawn.components) == len(form.paths) == len(set(form.paths))
        assert len(drawn.outputs) == len(form.updates(form.marks(form.starting_values()), Marks({}, frozenset())))
        basic = [control.basic for control in form.controls]
        assert basic == sorted(basic, reverse=True), "basic fields come first"
        assert all(control.description for control in form.controls)


def test_every_family_is_drawn_from_its_schema_alone() -> None:
    config = validate(Outer, {"title": "x"})
    assert form_for(Outer).values(config)
