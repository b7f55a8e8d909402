"""Errors of the system reach a person in words: which file, what happened, what to do."""

from __future__ import annotations

import errno
import os
import shutil

import pytest
from safetensors import SafetensorError

import trainers.train
from trainers.data.clips import Dataset, DatasetError
from trainers.errors import named, why


def test_an_error_of_the_system_is_told_without_its_number(tmp_path):
    for number in (*errno.errorcode, 9999):
        told = named(OSError(number, os.strerror(number), "a.mp4"))
        assert told.startswith("a.mp4 cannot be used: ")
        assert "Errno" not in told and "\n" not in told
    with pytest.raises(NotADirectoryError) as caught:
        (tmp_path / "file").touch()
        (tmp_path / "file" / "below").mkdir()
    assert named(caught.value).endswith(
        "below cannot be used: a file stands where a folder is needed; choose another place"
    )


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (PermissionError(errno.EACCES, "Permission denied"), "permission is denied; give yourself the right to it, or"),
        (
            SafetensorError("I/O error: No space left on device (os error 28)"),
            "no space is left on the disk; make room",
        ),
        (RuntimeError("writing failed: [Errno 30] Read-only file system: 'x'"), "the disk can only be read; choose"),
        (shutil.Error([("a", "b", "[Errno 28] No space left on device: 'b'")]), "no space is left on the disk"),
        (OSError("the ports are all taken"), "the ports are all taken"),
        (ValueError("first line\nsecond line"), "first line"),
        (KeyError(), "KeyError"),
    ],
)
def test_libraries_are_told_in_the_same_words(error, told):
    assert why(error).startswith(told)
    assert "Errno" not in why(error) and "os error" not in why(error)


def test_the_doors_tell_it_so(tiny_base, tiny_dataset, tmp_path, capsys):
    (tmp_path / "file").touch()
    config = tmp_path / "run.yaml"
    config.write_text(
        f"family: animatediff\nmethod: motion_module\nbase_model: {tiny_base}\n"
        f"dataset: {{path: {tiny_dataset}, num_frames: 4, height: 64, width: 64}}\n",
        encoding="utf-8",
    )
    assert trainers.train.main(["--config", str(config), "--run-dir", str(tmp_path / "file" / "run")]) == 1
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert told.endswith("cannot be used: a file stands where a folder is needed; choose another place"), told
    shutil.copytree(tiny_dataset, tmp_path / "clips")
    (tmp_path / "clips" / "metadata.jsonl").unlink()
    (tmp_path / "clips" / "metadata.jsonl").mkdir()
    with pytest.raises(DatasetError, match=r"metadata\.jsonl cannot be read: it is a folder, where a file is needed"):
        Dataset.open(tmp_path / "clips").clips  # noqa: B018
