"""The event log: what is written is read, by offset, and half a line harms nothing."""

from __future__ import annotations

import json

import pytest

from trainers import events
from trainers.events import EVENTS, EventLog, read


def step(log, number):
    log.write("step", step=number, loss=0.5, learning_rate=1e-4, seconds_per_step=0.1)


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "run" / "events.jsonl"
    log = EventLog(path)
    step(log, 1)
    log.write("message", level="info", text='a "quoted" line\nand a \U0001f600', extra=3)
    log.close()
    found, offset = read(path)
    assert [event["type"] for event in found] == ["step", "message"]
    assert found[0]["step"] == 1
    assert found[0]["time"] > 1e9
    assert found[1]["text"] == 'a "quoted" line\nand a \U0001f600'
    assert found[1]["extra"] == 3
    assert offset == path.stat().st_size
    assert len(path.read_bytes().splitlines()) == 2


def test_reading_goes_on_where_it_stopped(tmp_path):
    path = tmp_path / "events.jsonl"
    log = EventLog(path)
    step(log, 1)
    first, offset = read(path)
    assert read(path, offset) == ([], offset)
    step(log, 2)
    second, _ = read(path, offset)
    assert [event["step"] for event in first + second] == [1, 2]
    log.close()


def test_an_event_can_be_read_as_soon_as_it_is_written(tmp_path):
    path = tmp_path / "events.jsonl"
    log = EventLog(path)
    step(log, 7)
    assert read(path)[0][0]["step"] == 7
    log.close()


def test_an_unfinished_line_waits_for_its_end(tmp_path):
    path = tmp_path / "events.jsonl"
    line = json.dumps({"type": "step", "time": 1, "step": 1}).encode() + b"\n"
    path.write_bytes(line + line[:10])
    found, offset = read(path)
    assert (len(found), offset) == (1, len(line))
    path.write_bytes(line + line)
    found, offset = read(path, offset)
    assert (len(found), offset) == (1, 2 * len(line))


def test_a_log_goes_on_after_a_killed_writer(tmp_path):
    path = tmp_path / "events.jsonl"
    log = EventLog(path)
    step(log, 1)
    log.close()
    with path.open("ab") as file:
        file.write(b'{"type": "step", "st')
    log = EventLog(path)
    step(log, 2)
    log.close()
    assert [event["step"] for event in read(path)[0]] == [1, 2]


def test_what_is_no_event_is_passed_over(tmp_path):
    path = tmp_path / "events.jsonl"
    message = b'{"type": "message", "level": "info", "text": "x"}\n'
    path.write_bytes(b'\n[1]\n"text"\n{"type": "unheard"}\n\xff\xfe\n' + message)
    found, offset = read(path)
    assert [event["type"] for event in found] == ["message"]
    assert offset == path.stat().st_size


def test_a_log_that_is_not_there_is_empty(tmp_path):
    assert read(tmp_path / "none.jsonl", 5) == ([], 5)


def test_numbers_that_json_has_not_become_null(tmp_path):
    path = tmp_path / "events.jsonl"
    log = EventLog(path)
    log.write("validation", step=1, validation_loss=float("nan"))
    log.close()
    assert read(path)[0][0]["validation_loss"] is None
    json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


@pytest.mark.parametrize("type", EVENTS)
def test_an_event_that_lacks_a_field_is_an_error(tmp_path, type):
    log = EventLog(tmp_path / "events.jsonl")
    whole = dict.fromkeys(EVENTS[type], 1)
    log.write(type, **whole)
    whole.popitem()
    with pytest.raises(ValueError, match=f"event {type} lacks"):
        log.write(type, **whole)
    log.close()
    assert len(read(tmp_path / "events.jsonl")[0]) == 1


def test_a_log_without_a_file_writes_nothing_and_still_checks(tmp_path):
    log = EventLog(None)
    step(log, 1)
    with pytest.raises(ValueError, match="lacks"):
        log.write("step", step=1)
    log.close()
    assert list(tmp_path.iterdir()) == []


def test_the_statuses_are_the_three_that_a_run_can_end_with():
    assert events.STATUSES == ("finished", "failed", "cancelled")
