"""What handlers of several tabs do alike: send only what looks different, and tell what can be mended."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import gradio as gr

from studio.jobs import JobError
from studio.workspace import WorkspaceError
from trainers.settings import ConfigError

#: Name of a part -> how it looked when it was last sent to a browser.
Seen = dict[str, str]
#: Name of a part -> (what tells whether it looks different, the update that shows it).
Fresh = Mapping[str, tuple[Any, Any]]


def changed(names: Sequence[str], fresh: Fresh, seen: Mapping[str, str], key: str) -> list[Any]:
    """[what is seen now, an update for each of `names`]: skips for all that is not in `fresh` or looks as before.

    key: what the caller compares, as ``seen["key"]``, before it looks closer.
    """
    now: Seen = {**seen, "key": key}
    updates = []
    for name in names:
        mark = json.dumps(fresh[name][0], sort_keys=True, default=str) if name in fresh else None
        if mark is None or seen.get(name) == mark:
            updates.append(gr.skip())
        else:
            updates.append(fresh[name][1])
            now[name] = mark
    return [now if now != dict(seen) else gr.skip(), *updates]


@contextmanager
def told() -> Iterator[None]:
    """What the user can mend becomes a message in the page."""
    try:
        yield
    except (JobError, WorkspaceError, ConfigError) as error:
        raise gr.Error(str(error), title="Not done") from error
