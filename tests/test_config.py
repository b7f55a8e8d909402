"""The schema: what it accepts, what it refuses and in which words, and what it says about itself."""

from __future__ import annotations

import copy
from itertools import pairwise
from string import ascii_lowercase as LETTERS

import pytest
import yaml

from trainers.config import SampleConfig, TrainConfig
from trainers.families import FAMILIES, get_family, load_config, load_sample_config, parse_config, parse_sample_config
from trainers.settings import (
    ConfigError,
    FieldError,
    apply_overrides,
    choices,
    describe,
    fields,
    has_effect,
    hints,
    parse_yaml,
    to_yaml,
    unwrap_optional,
    value_at,
)

TRAIN = {
    "family": "animatediff",
    "method": "motion_module",
    "base_model": "base",
    "dataset": {"path": "clips", "num_frames": 8, "height": 64, "width": 64},
}
HARD_TEXTS = ["${alert(1)}", "<img onerror=x>", "smile \U0001f600 \\ \"quoted\" 'single'", "yes", "1e-4", "12", "a: b"]
SAMPLE = {"family": "animatediff", "base_model": "base", "prompts": ["a red ball"], "height": 64, "width": 64}

CLASSES = [cls for family in FAMILIES.values() for cls in (family.train_config, family.sample_config)]


def train(**changes):
    """TRAIN with dotted settings changed: train(**{"dataset.width": 60})."""
    data = copy.deepcopy(TRAIN)
    for path, value in changes.items():
        *parents, last = path.split(".")
        here = data
        for parent in parents:
            here = here.setdefault(parent, {})
        here[last] = value
    return data


def problems(data, parse=parse_config):
    with pytest.raises(ConfigError) as caught:
        parse(data)
    return dict(caught.value.problems)


def write(tmp_path, text):
    path = tmp_path / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return path


# --- reading ---------------------------------------------------------------------------------------------------------


def test_load_config_gives_the_familys_own_class(tmp_path):
    path = write(tmp_path, yaml.safe_dump(TRAIN))
    config = load_config(path)
    assert type(config) is get_family("animatediff").train_config
    assert config.norm_semantics == "original"
    assert config.dataset.num_frames == 8
    path = write(tmp_path, yaml.safe_dump(SAMPLE))
    assert type(load_sample_config(path)) is get_family("animatediff").sample_config


@pytest.mark.parametrize(
    ("written", "number"), [("1e-4", 1e-4), ("1E-3", 1e-3), ("2.5e-05", 2.5e-5), ("1e2", 100.0), ("0.001", 1e-3)]
)
def test_a_learning_rate_as_people_write_it_is_a_number(written, number):
    assert parse_yaml(f"optimizer: {{learning_rate: {written}}}")["optimizer"]["learning_rate"] == number


def test_a_text_that_only_looks_like_a_number_stays_a_text():
    assert parse_yaml("base_model: 1e-4-mix")["base_model"] == "1e-4-mix"
    assert parse_yaml("base_model: '1e-4'")["base_model"] == "1e-4"


def test_a_key_that_stands_twice_is_refused_with_its_line():
    with pytest.raises(ConfigError, match=r"seed: stands twice \(line 3\)"):
        parse_yaml("seed: 1\nmethod: lora\nseed: 2\n")
    with pytest.raises(ConfigError, match=r"path: stands twice \(line 3\)"):
        parse_yaml("dataset:\n  path: a\n  path: b\n")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("dataset: [1, 2", "is not valid YAML (line 1)"),
        ("- a\n- b\n", "does not hold settings"),
        ("", "does not hold settings"),
        ("a: !!python/object/apply:os.system ['true']", "is not valid YAML"),
        ("dataset: 2020-13-45", "is not valid YAML"),
        ('base_model: "C:\\Users\\x"', "(line 1): expected escape sequence of 8 hexadecimal numbers, but found 's'; "),
        ('base_model: "D:\\models"', "put a Windows path in single quotes, or write it with forward slashes"),
        ("dataset: &a\n  path: *a\n", "is nested without end"),
        ("[" * 3000, "is nested without end"),
        ("a: \x01", "special characters are not allowed"),
        ("a: &a {x: 1}\n" + "".join(f"{b}: &{b} {{p: *{a}, q: *{a}, r: *{a}}}\n" for a, b in pairwise(LETTERS)),
         "holds more than 1,000,000 values"),
    ],
)  # fmt: skip
def test_what_is_no_config_is_refused_by_name(tmp_path, text, says):
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert says in str(caught.value)
    assert "run.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_or_binary_file_is_refused_by_name(tmp_path):
    with pytest.raises(ConfigError, match=r"gone\.yaml does not exist"):
        load_config(tmp_path / "gone.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(ConfigError, match=r"binary\.yaml cannot be read: it is no text in UTF-8$"):
        load_config(tmp_path / "binary.yaml")
    with pytest.raises(ConfigError, match=r"cannot be read: it is a folder$"):
        load_config(tmp_path)


# --- overrides -------------------------------------------------------------------------------------------------------


def test_overrides_are_read_as_yaml_and_go_deep(tmp_path):
    path = write(tmp_path, yaml.safe_dump(TRAIN))
    config = load_config(
        path,
        [
            "optimizer.learning_rate=1e-3",
            "validation.prompts=[a ball, 'two = three']",
            "checkpoint.keep_last=null",
            "dataset.flip=true",
            "base_model=other=base",
        ],
    )
    assert config.optimizer.learning_rate == 1e-3
    assert config.validation.prompts == ["a ball", "two = three"]
    assert config.checkpoint.keep_last is None
    assert config.dataset.flip is True
    assert config.base_model == "other=base"


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("seed", "'seed' should look like key.path=value"),
        ("=3", "should look like key.path=value"),
        ("seed.deep=3", "seed is a value, not a section"),
        ("seed=[1", "is not valid YAML"),
        ("seed=2020-13-45", "is not valid YAML"),
        ("seed=0x_", "is not valid YAML"),
    ],
)
def test_an_override_that_cannot_be_used_says_so(override, says):
    with pytest.raises(ConfigError) as caught:
        apply_overrides({"seed": 1}, [override])
    assert says in str(caught.value)


def test_an_emoji_in_jsons_escapes_is_one_character():
    data = parse_yaml(r'a: ["\ud83d\ude00", "half \ud83d", "😀 ${alert(1)} \\"]')
    assert data["a"] == ["😀", "half \ufffd", "😀 ${alert(1)} \\"]


def test_a_misspelt_override_is_an_unknown_setting():
    found = problems(apply_overrides(train(), ["optimizer.learning_rat=1"]))
    assert found["optimizer.learning_rat"] == "is not a setting; did you mean optimizer.learning_rate?"


# --- what is refused, where, and in which words ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "suggestion"),
    [
        ("optimizer.learning_rte", "optimizer.learning_rate"),
        ("max_train_step", "max_train_steps"),
        ("optimiser", "optimizer"),
        ("learning_rate", "optimizer.learning_rate"),
        ("dataset.frame_strid", "dataset.frame_stride"),
    ],
)
def test_an_unknown_key_suggests_a_known_one(path, suggestion):
    assert problems(train(**{path: 1}))[path] == f"is not a setting; did you mean {suggestion}?"


def test_an_unknown_key_like_no_other_points_to_the_list():
    assert problems(train(zzzz=1))["zzzz"] == "is not a setting; see --help for all of them"


def test_unknown_and_missing_families_list_the_known_ones():
    assert "known: animatediff" in problems(train(family="animatedif"))["family"]
    assert "known: animatediff" in problems({"method": "lora"})["family"]
    assert "known: animatediff" in problems(train(family=["animatediff"]))["family"]


def test_every_problem_is_reported_at_once():
    data = train(**{"dataset.num_frames": 0, "seed": -1, "mixed_precision": "fp8", "optimizer.learning_rate": "fast"})
    del data["base_model"]
    found = problems(data)
    assert set(found) == {
        "dataset.num_frames",
        "seed",
        "mixed_precision",
        "optimizer.learning_rate",
        "base_model",
    }
    assert found["base_model"] == "must be set"
    assert found["dataset.num_frames"].startswith("is 0, but")
    assert "'no', 'fp16' or 'bf16'" in found["mixed_precision"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_must_be_finite(value):
    assert "optimizer.learning_rate" in problems(train(**{"optimizer.learning_rate": value}))


def test_a_warmup_longer_than_the_run_is_refused_at_its_field():
    data = train(max_train_steps=10, **{"optimizer.lr_warmup_steps": 11})
    assert "is 11, but the run has only 10 steps" in problems(data)["optimizer.lr_warmup_steps"]
    data["optimizer"]["lr_warmup_steps"] = 10
    assert parse_config(data).optimizer.lr_warmup_steps == 10


@pytest.mark.parametrize("side", ["height", "width"])
def test_a_size_that_is_not_a_multiple_names_the_nearest_ones(side):
    assert problems(train(**{f"dataset.{side}": 100}))[f"dataset.{side}"] == (
        "is 100, but must be a multiple of 8: set 96 or 104"
    )
    assert problems(SAMPLE | {side: 9}, parse_sample_config)[side] == "is 9, but must be a multiple of 8: set 8 or 16"


def test_lora_without_a_motion_adapter_is_refused_at_its_field():
    assert "must be set for method lora" in problems(train(method="lora"))["motion_adapter"]
    assert parse_config(train(method="lora", motion_adapter="adapter")).method == "lora"


def test_more_frames_than_positions_are_refused_for_a_new_motion_module_only():
    data = train(motion_max_seq_length=16, **{"dataset.num_frames": 17})
    assert "has 16 positions" in problems(data)["dataset.num_frames"]
    assert parse_config(data | {"motion_adapter": "adapter"}).dataset.num_frames == 17
    data["dataset"]["num_frames"] = 16
    assert parse_config(data).dataset.num_frames == 16


def test_seeds_out_of_range_are_refused():
    assert "seed -1 is not between" in problems(SAMPLE | {"seeds": [1, -1]}, parse_sample_config)["seeds"]
    assert parse_sample_config(SAMPLE | {"seeds": [2**63 - 1]}).seeds == [2**63 - 1]


def test_a_field_error_carries_its_place():
    error = FieldError("optimizer.name", "is wrong")
    assert (error.where, str(error)) == ("optimizer.name", "is wrong")


# --- there and back --------------------------------------------------------------------------------------------------


def test_yaml_out_is_yaml_in(tmp_path):
    config = parse_config(
        train(
            motion_adapter="a: b #c",
            seed=2**63 - 1,
            **{
                "optimizer.learning_rate": 1e-5,
                "optimizer.epsilon": 1e-8,
                "optimizer.max_grad_norm": None,
                "validation.prompts": HARD_TEXTS,
                "dataset.path": "no",
                "adapter.target_modules": ["to_q"],
            },
        )
    )
    again = load_config(write(tmp_path, to_yaml(config)))
    assert again == config
    assert to_yaml(again) == to_yaml(config)
    sample = parse_sample_config(SAMPLE | {"checkpoints": ["runs/a: b"], "strengths": [0, 0.5]})
    assert load_sample_config(write(tmp_path, to_yaml(sample))) == sample


def test_yaml_out_is_whole_and_in_the_order_of_the_schema():
    config = parse_config(train())
    data = yaml.safe_load(to_yaml(config))
    assert list(data) == list(type(config).model_fields)
    assert list(data["dataset"]) == list(type(config.dataset).model_fields)


# --- what the schema says about itself -------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [TrainConfig, SampleConfig, *CLASSES])
def test_every_setting_has_a_meaning_and_stands_in_the_help(cls):
    help_text = describe(cls)
    for path, info in fields(cls):
        assert info.description and info.description[-1] in ".:)", path
        assert f"\n  {path}  (" in "\n" + help_text, path
    assert len(help_text.splitlines()) >= 2 * len(list(fields(cls)))


@pytest.mark.parametrize("cls", CLASSES)
def test_conditions_name_existing_settings_and_possible_values(cls):
    known = dict(fields(cls))
    for path, info in known.items():
        for other, wanted in hints(info).get("show_if", {}).items():
            assert other in known, path
            possible = [*choices(known[other]), *([None] if unwrap_optional(known[other].annotation)[1] else [])]
            assert set(wanted) <= set(possible), path


def test_a_condition_decides_whether_a_setting_has_an_effect():
    cls = get_family("animatediff").train_config
    assert has_effect(cls, "adapter.rank", {"method": "lora"})
    assert not has_effect(cls, "adapter.rank", {"method": "full"})
    assert has_effect(cls, "seed", {})


def test_value_at_reads_a_dotted_setting():
    config = parse_config(train())
    assert value_at(config, "dataset.width") == 64
    assert value_at(config, "family") == "animatediff"


@pytest.mark.parametrize("family", FAMILIES.values(), ids=lambda family: family.name)
def test_presets_are_made_of_known_settings(family):
    known = dict(fields(family.train_config))
    for name, values in family.presets.items():
        assert set(values) <= set(known), name
