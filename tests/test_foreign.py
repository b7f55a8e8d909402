"""Reading what other trainers are started with: fences, keys; and the door to a family's own."""

from __future__ import annotations

import io

import pytest
import yaml

from trainers.families import FAMILIES, changed, read_settings
from trainers.foreign import (
    Foreign,
    Key,
    blocks,
    lines_of,
    main,
    read_keys,
    slashes,
    texts,
    the_only,
)
from trainers.settings import ConfigError, parse_yaml

# --- text ------------------------------------------------------------------------------------------------------------


def test_what_stands_between_fences_is_taken():
    assert blocks("a: 1\n") == ["a: 1\n"]
    assert blocks("words\n```yaml\na: 1\n```\nmore\n  ~~~\nb: 2\n  ~~~\n") == ["a: 1\n", "b: 2\n"]
    assert blocks("```\r\na: 1\r\n") == ["a: 1\n"], "an end that was not copied"
    assert blocks("\ufeffa: 1") == ["a: 1"]


def test_one_block_that_is_known_is_enough_and_two_are_too_many():
    def read(text):
        return Foreign("train", {}) if text.startswith("known") else None

    assert the_only("```\nknown\n```\n```\nother\n```\n", read) == Foreign("train", {})
    assert the_only("other", read) is None
    with pytest.raises(ConfigError, match="there are 2 configs or commands"):
        the_only("```\nknown\n```\n```\nknown\n```\n", read)


def test_paths_of_windows_become_paths_of_all():
    assert slashes("I:\\anime\\data\\0066.mp4 ") == "I:/anime/data/0066.mp4"


def test_lines_of_a_file_and_of_none(tmp_path):
    (tmp_path / "prompts.txt").write_text("\ufeffone\n\n  two \n", encoding="utf-8")
    assert lines_of(str(tmp_path / "prompts.txt")) == ["one", "two"]
    assert lines_of(str(tmp_path / "none.txt")) is None


# --- keys ------------------------------------------------------------------------------------------------------------

KEYS = {
    "path": Key(str, ...),
    "steps": Key(int, 100),
    "rate": Key(float, 3e-5),
    "mixed": Key(bool, True),
    "modules": Key(list, ["to_q"]),
    "data": Key(dict, {}),
    "seed": Key(int),
}


def test_keys_have_their_kinds_and_upstreams_defaults():
    assert read_keys({"path": "x"}, KEYS, "it") == {
        "path": "x", "steps": 100, "rate": 3e-5, "mixed": True, "modules": ["to_q"], "data": {}, "seed": None,
    }  # fmt: skip
    given = {
        "path": 7,
        "steps": "1e3",
        "rate": "1e-4",
        "mixed": "False",
        "modules": "ff",
        "data": {"a": 1},
        "seed": None,
    }
    assert read_keys(given, KEYS, "it") == {
        "path": "7", "steps": 1000, "rate": 1e-4, "mixed": False, "modules": ["ff"], "data": {"a": 1}, "seed": None,
    }  # fmt: skip


def test_every_wrong_key_is_named():
    given = {"step": 1, "rate": "fast", "mixed": "maybe", "steps": 1.5, "modules": {}, "data": [], "zzz": 0}
    with pytest.raises(ConfigError) as caught:
        read_keys(given, KEYS, "the tool", "here.")
    assert dict(caught.value.problems) == {
        "here.step": "is unknown to the tool; did you mean steps?",
        "here.zzz": "is unknown to the tool",
        "here.path": "must be set",
        "here.rate": "is 'fast', but must be a number",
        "here.mixed": "is 'maybe', but must be true or false",
        "here.steps": "is 1.5, but must be a whole number",
        "here.modules": "is {}, but must be a text or a list of texts",
        "here.data": "is [], but must be a section of keys and values",
    }
    with pytest.raises(ConfigError, match="is True, but must be a text"):
        read_keys({"path": True}, KEYS, "it")


def test_texts():
    assert texts(" a ") == ["a"]
    assert texts(["a", 2]) == ["a", "2"]
    with pytest.raises(ValueError, match="a text or a list of texts"):
        texts([["a"]])


# --- the doors -------------------------------------------------------------------------------------------------------

OURS = """
family: animatediff
method: motion_module
base_model: base
dataset: {path: clips}
"""


def test_a_config_of_ours_is_taken_as_it_stands():
    found = read_settings(OURS, "train")
    assert (found.settings["base_model"], found.notes, found.run_dir) == ("base", [], None)
    assert read_settings(f"This is it:\n\n```yaml{OURS}```\n", "train").settings == found.settings


def test_what_nobody_knows_says_what_can_be_read():
    reads = [family.reads for family in FAMILIES.values() if family.reads]
    assert reads
    for text in ("method: lora\n", "python other.py --a 1\n  b: [", "- a\n- b\n"):
        with pytest.raises(ConfigError) as caught:
            read_settings(text, "train", "their.txt")
        assert all(what in str(caught.value) for what in reads)
    with pytest.raises(ConfigError, match=r"stands twice \(line 2\)$"):
        read_settings("seed: 1\nseed: 2\n", "train")


def test_what_only_a_person_can_give_is_asked_for_until_it_is_given():
    def found():
        return Foreign("sample", {"prompts": []}, missing={"prompts": "must be given"})

    with pytest.raises(ConfigError, match="prompts: must be given"):
        changed(found(), [])
    assert changed(found(), ["prompts=[a]"]) == {"prompts": ["a"]}


def fake(text):
    if text.startswith("broken"):
        raise ConfigError([("their_key", "cannot be meant")])
    return Foreign("train", parse_yaml(OURS), ["First.", "Second\nline."], "out") if text.startswith("their") else None


def run_main(*words):
    return main("animatediff", fake, {"tool": lambda arguments: fake("their")}, words)


def test_the_door_of_a_family_prints_our_yaml_under_the_notes(tmp_path, capsys, monkeypatch):
    (tmp_path / "their.yaml").write_text("their", encoding="utf-8")
    monkeypatch.setattr("sys.stdin", io.StringIO("their"))
    for words in ([str(tmp_path / "their.yaml")], ["-"], ["tool", "--a", "1"]):
        if words == ["-"]:
            monkeypatch.setattr("sys.stdin", io.StringIO("their"))
        assert run_main(*words) == 0
        told = capsys.readouterr()
        assert told.out.startswith(
            "# to run: python -m trainers.train --config FILE --run-dir out\n# First.\n# Second line"
        )
        assert yaml.safe_load(told.out) == parse_yaml(OURS)
        assert told.err == ""


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["gone.yaml"], "config file gone.yaml does not exist"),
        (["broken.txt"], "their_key: cannot be meant"),
        (["other.txt"], "other.txt is none of what can be read here: "),
        (["nothing", "--a", "1"], "'nothing' is not a command line that can be read here; known: tool"),
    ],
)
def test_the_door_says_in_a_sentence_why_not(words, says, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.txt").write_text("broken", encoding="utf-8")
    (tmp_path / "other.txt").write_text("other", encoding="utf-8")
    assert run_main(*words) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith(says)
    assert told.err.count("\n") == 1


def test_the_door_explains_itself(capsys):
    assert run_main("--help") == 0
    told = capsys.readouterr().out
    assert "python -m trainers.families.animatediff.compat [FILE or -]" in told
    assert "compat tool --key value" in told
    assert FAMILIES["animatediff"].reads in told
