"""Uploaded files on their way into a dataset: one after the other, in the background, each with its outcome.

A page that is closed or reloaded meanwhile loses nothing: the import goes on, and its list is here to be seen again.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trainers.data.clips import Dataset, DatasetError
from trainers.data.video import VideoError
from trainers.errors import why


@dataclass
class Import:
    """One uploaded file. outcome: None while it waits, "" once it is a clip, else why it was refused."""

    name: str
    outcome: str | None = None


class Imports:
    """The imports of a studio, by dataset name. One file at a time: encoding takes all cores anyway."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lists: dict[str, list[Import]] = {}
        self._waiting: queue.Queue[tuple[Dataset, Path, Import]] = queue.Queue()
        self._working = False

    def start(self, dataset: Dataset, files: Sequence[Path]) -> None:
        """Import files into a dataset; the files are deleted afterwards. An earlier list that is done gives way."""
        entries = [Import(file.name) for file in files]
        with self._lock:
            earlier = self._lists.get(dataset.name, [])
            waiting = any(entry.outcome is None for entry in earlier)
            self._lists[dataset.name] = [*earlier, *entries] if waiting else entries
            for entry, file in zip(entries, files, strict=True):
                self._waiting.put((dataset, file, entry))
            if not self._working:
                self._begin()

    def of(self, name: str) -> list[Import]:
        """The files of the last import into a dataset, with their outcomes so far."""
        with self._lock:
            return list(self._lists.get(name, []))

    def busy(self, name: str) -> bool:
        """Whether files are still waiting for a dataset."""
        return any(entry.outcome is None for entry in self.of(name))

    def forget(self, name: str) -> None:
        """Drop the list of a dataset, unless it is still at work."""
        with self._lock:
            if all(entry.outcome is not None for entry in self._lists.get(name, [])):
                self._lists.pop(name, None)

    def _begin(self) -> None:
        # A daemon: a studio that is closed does not wait for what is still to come.
        self._working = True
        threading.Thread(target=self._work, name="imports", daemon=True).start()

    def _work(self) -> None:
        while True:
            dataset, file, entry = self._waiting.get()
            outcome = None
            try:
                outcome = _bring(dataset, file)
            finally:
                file.unlink(missing_ok=True)
                if outcome is None:  # an error that nobody foresaw ends this thread, told in the terminal
                    outcome = "the studio met an error; see its terminal"
                    self._begin()
                entry.outcome = outcome


def _bring(dataset: Dataset, file: Path) -> str:
    """Import a file; why it was refused, or nothing."""
    try:
        dataset.add(file, source_name=file.name)
    except (VideoError, DatasetError) as error:
        return str(error)
    except OSError as error:
        return f"{file.name} cannot be stored: {why(error)}"
    return ""
