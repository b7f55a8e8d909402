"""The run folder: whole checkpoints only, retention that keeps what matters, wishes and stars."""

from __future__ import annotations

import json

import pytest

from trainers.runs import Checkpoint, RunFolder


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path / "orbit-lora-0007")


def save(folder, step, validation_loss=None, text="weights"):
    with folder.new_checkpoint(step) as path:
        (path / "weights.bin").write_text(text)
        meta = {"step": step} | ({} if validation_loss is None else {"validation_loss": validation_loss})
        (path / "meta.json").write_text(json.dumps(meta))


def steps(folder):
    return [checkpoint.step for checkpoint in folder.checkpoints()]


def everything(path):
    return sorted(p.relative_to(path).as_posix() for p in path.rglob("*"))


def test_names_in_a_run(folder):
    assert folder.id == "orbit-lora-0007"
    assert folder.sample_dir(20).relative_to(folder.path).as_posix() == "samples/step-000020"
    assert not folder.exists
    folder.path.mkdir()
    assert not folder.exists
    folder.events.write_text("")
    assert folder.exists


def test_a_checkpoint_stands_under_its_step_when_it_is_whole(folder):
    with folder.new_checkpoint(10) as writing:
        (writing / "sub").mkdir()
        (writing / "sub" / "weights.bin").write_bytes(b"w")
        assert folder.checkpoints() == []
        assert not (folder.path / "checkpoints" / "step-000010").exists()
    (checkpoint,) = folder.checkpoints()
    assert checkpoint.path == folder.path / "checkpoints" / "step-000010"
    assert (checkpoint.path / "sub" / "weights.bin").read_bytes() == b"w"
    assert everything(folder.path) == [
        "checkpoints",
        "checkpoints/step-000010",
        "checkpoints/step-000010/sub",
        "checkpoints/step-000010/sub/weights.bin",
    ]


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_while_writing_leaves_nothing_behind(folder, failure):
    save(folder, 10)
    before = everything(folder.path)
    with pytest.raises(type(failure)), folder.new_checkpoint(20) as writing:
        (writing / "half.bin").write_bytes(b"h")
        raise failure
    assert everything(folder.path) == before
    assert steps(folder) == [10]


def test_a_failure_leaves_the_same_step_of_before_as_it_was(folder):
    save(folder, 10, text="first")
    with pytest.raises(OSError, match="full"), folder.new_checkpoint(10) as writing:
        (writing / "weights.bin").write_text("second")
        raise OSError("full")
    assert (folder.checkpoints()[0].path / "weights.bin").read_text() == "first"


def test_the_same_step_again_takes_the_place_of_the_old_one(folder):
    save(folder, 10, text="first")
    save(folder, 10, text="second")
    assert steps(folder) == [10]
    assert (folder.checkpoints()[0].path / "weights.bin").read_text() == "second"
    assert [path.name for path in folder.path.iterdir()] == ["checkpoints"]


def test_what_a_killed_writer_left_is_neither_counted_nor_kept(folder):
    left = folder.path / ".writing" / "step-000010"
    left.mkdir(parents=True)
    (left / "half.bin").write_bytes(b"h")
    assert folder.checkpoints() == []
    save(folder, 10)
    assert not (folder.path / ".writing").exists()
    assert not (folder.checkpoints()[0].path / "half.bin").exists()


def test_checkpoints_come_in_the_order_of_their_steps(folder):
    for step in (1_000_000, 20, 999_999, 3):
        save(folder, step)
    (folder.path / "checkpoints" / "notes").mkdir()
    (folder.path / "checkpoints" / "step-5").mkdir()
    (folder.path / "checkpoints" / "step-000007").write_text("a file")
    assert steps(folder) == [3, 20, 999_999, 1_000_000]
    assert folder.checkpoints()[-1].path.name == "step-1000000"


def test_a_checkpoint_elsewhere_has_the_step_of_its_meta(tmp_path):
    (tmp_path / "meta.json").write_text('{"step": 12}')
    assert Checkpoint(tmp_path).step == 12
    assert Checkpoint(tmp_path / "none").meta() == {}


def test_the_best_has_the_lowest_validation_loss_and_is_the_earlier_of_two(folder):
    assert folder.best() is None
    save(folder, 10)
    assert folder.best() is None
    save(folder, 20, 0.5)
    save(folder, 30, 0.3)
    save(folder, 40, 0.3)
    save(folder, 50, 0.9)
    assert folder.best().step == 30


def test_prune_keeps_the_newest_the_best_and_the_starred(folder):
    for step, loss in ((10, 0.9), (20, 0.1), (30, 0.8), (40, 0.7), (50, 0.6), (60, 0.5)):
        save(folder, step, loss)
    folder.wish("star", step=30)
    gone = folder.prune(2)
    assert [checkpoint.step for checkpoint in gone] == [10, 40]
    assert steps(folder) == [20, 30, 50, 60]
    assert folder.prune(2) == []
    folder.wish("unstar", step=30)
    assert [checkpoint.step for checkpoint in folder.prune(2)] == [30]


def test_prune_moves_a_checkpoint_out_before_it_deletes(folder, monkeypatch):
    import shutil

    for step in (1, 2):
        save(folder, step)

    def killed(path, **options) -> None:
        if not options:
            raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        folder.prune(1)
    assert [c.step for c in folder.checkpoints()] == [2]
    monkeypatch.undo()
    save(folder, 3)
    assert [c.step for c in folder.prune(1)] == [2]


def test_checkpoints_without_events_are_a_run(folder):
    assert not folder.exists
    save(folder, 1)
    assert folder.exists


def test_a_damaged_meta_counts_as_none(folder):
    save(folder, 1)
    (folder.checkpoints()[0].path / "meta.json").write_text('{"validation_loss": 0.')
    assert folder.checkpoints()[0].meta() == {} and folder.best() is None


def test_prune_without_a_number_keeps_all(folder):
    for step in (10, 20, 30):
        save(folder, step)
    assert folder.prune(None) == []
    assert steps(folder) == [10, 20, 30]
    folder.prune(5)
    assert steps(folder) == [10, 20, 30]
    folder.prune(1)
    assert steps(folder) == [30]


def test_wishes_are_read_by_offset_and_half_a_line_waits(folder):
    folder.path.mkdir()
    assert folder.wishes() == ([], 0)
    folder.wish("star", step=20)
    found, offset = folder.wishes()
    assert [(wish["act"], wish["step"]) for wish in found] == [("star", 20)]
    with folder.control.open("ab") as file:
        file.write(b'{"act": "unstar", ')
    assert folder.wishes(offset) == ([], offset)
    with folder.control.open("ab") as file:
        file.write(b'"step": 20}\nnonsense\n[1]\n')
    found, end = folder.wishes(offset)
    assert [wish["act"] for wish in found] == ["unstar"]
    assert end == folder.control.stat().st_size
    assert folder.starred() == set()


def test_stars_follow_the_last_wish(folder):
    folder.path.mkdir()
    assert folder.starred() == set()
    for act, step in (("star", 20), ("star", 40), ("unstar", 20), ("save", 50), ("star", 60)):
        folder.wish(act, step=step)
    assert folder.starred() == {40, 60}
