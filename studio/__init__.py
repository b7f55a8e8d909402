"""The studio: what a person sees and steers. Never imports torch.

`launch` opens the page, from ``app.py`` or from a notebook; `build_app` gives it unlaunched.
"""

from __future__ import annotations

import inspect
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import gradio as gr

    from studio.access import Access
    from studio.worker import Worker

__all__ = ["Handle", "build_app", "launch"]

#: Where the page looks for a free port when none is asked for, and how many it tries.
FIRST_PORT, PORTS = 7860, 100

_open: list[Handle] = []


@dataclass
class Handle:
    """An open page. share_url: None unless a share link was asked for and could be had."""

    url: str
    share_url: str | None
    demo: gr.Blocks = field(repr=False)
    worker: Worker = field(repr=False)

    def close(self) -> None:
        """Close the page. Training that runs goes on, and is picked up when the workspace is opened again."""
        self.worker.close()
        self.demo.close(verbose=False)
        if self in _open:
            _open.remove(self)

    def wait(self) -> None:
        """Stay until the page is interrupted from the terminal, then close it."""
        try:
            self.demo.block_thread()
        finally:
            self.close()


def build_app(
    workspace: str | Path = "workspace", *, access: Access | None = None, devices: Sequence[str] | None = None
) -> gr.Blocks:
    """The page on a workspace, unlaunched; what is queued there runs from now on. A new workspace gets the demo."""
    return _build(workspace, access, devices)[0]


def launch(
    workspace: str | Path = "workspace",
    share: bool = False,
    height: int = 900,
    auth: tuple[str, str] | None = None,
    port: int | None = None,
    host: str = "127.0.0.1",
    *,
    devices: Sequence[str] | None = None,
    inline: bool | None = None,
    browser: bool = False,
    max_file_size: str = "2gb",
) -> Handle:
    """Open the studio; in a notebook, in the cell. Only one is open in a process: opening again closes the earlier.

    share: a public link through Gradio's tunnel, never unless asked for, Colab included. auth: (name, password);
    beyond this computer a login is needed, and one is made and printed where none is given.
    """
    from studio.access import for_launch
    from studio.theme import CSS, Dailies

    for earlier in list(_open):
        earlier.close()
    root = Path(workspace).expanduser().resolve()
    _quiet_gradio(root)
    access, notice = for_launch(host, share, [auth] if auth else None)
    options: dict[str, Any] = {
        "theme": Dailies(),
        "css": CSS,
        "share": share,
        "auth": access.auth,
        "server_name": host,
        "inline": inline,
        "inbrowser": browser,
        "height": height,
        "max_file_size": max_file_size,
        "footer_links": [],
        "ssr_mode": False,
        "mcp_server": False,
        "pwa": False,
        "strict_cors": True,
        "show_error": True,
        "quiet": True,
        "prevent_thread_lock": True,
    }
    demo, worker = _build(root, access, devices)
    if "run_history" in inspect.signature(demo.launch).parameters:  # later than the oldest Gradio that is supported
        options["run_history"] = False
    try:
        _open_at(demo, host, port, options)
    except BaseException:
        worker.close()
        raise
    local = "127.0.0.1" if host in ("0.0.0.0", "::") else host
    handle = Handle(f"http://{local}:{demo.server_port}", demo.share_url, demo, worker)
    _open.append(handle)
    print(f"Dailies is open at {handle.url}\nWorkspace: {root}", flush=True)
    if notice:
        print(notice, flush=True)
    if share:
        print(
            f"Share link: {handle.share_url}" if handle.share_url
            else "A share link could not be had: Gradio's link service was not reached. The page itself works."
        )  # fmt: skip
    return handle


def _open_at(demo: gr.Blocks, host: str, port: int | None, options: dict[str, Any]) -> None:
    """Launch on the first free port: another program may take one between the look and the launch."""
    for attempt in range(5):
        free = free_port(host, port)
        try:
            demo.launch(server_port=free, **options)
            return
        except OSError:
            if attempt == 4 or free_port(host, free) == free:  # not because it was taken
                raise


def free_port(host: str, wanted: int | None) -> int:
    """The wanted port, or the next one that is free; OSError when a hundred are taken."""
    first = wanted or FIRST_PORT
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for port in range(first, first + PORTS):
        with socket.socket(family, socket.SOCK_STREAM) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                trial.bind((host.strip("[]"), port))
            except socket.gaierror:
                raise OSError(f"{host} is not a name or address of this computer") from None
            except (OSError, OverflowError):
                continue
            return port
    raise OSError(f"the ports from {first} to {first + PORTS - 1} are all taken or not allowed; give another")


def _build(workspace: str | Path, access: Access | None, devices: Sequence[str] | None) -> tuple[gr.Blocks, Worker]:
    _quiet_gradio(Path(workspace).expanduser().resolve())

    from studio import ui
    from studio.access import Access
    from studio.jobs import JobQueue
    from studio.worker import Worker, device_slots
    from studio.workspace import Workspace, WorkspaceError

    place = Workspace(Path(workspace))
    new = not place.db.exists()
    queue = JobQueue(place.db, place.root / "runs")
    if new:
        try:
            place.add_demo()
        except WorkspaceError as error:  # an installation without examples/ works as well
            print(error)
    worker = Worker(queue, place, list(devices or device_slots(os.environ.get("CUDA_VISIBLE_DEVICES"))))
    demo = ui.build(place, queue, worker, access or Access())
    worker.start()
    return demo, worker


def _quiet_gradio(root: Path) -> None:
    """Gradio sends nothing home, never rewrites code, and keeps uploads in the workspace, not in a small /tmp."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["GRADIO_TEMP_DIR"] = str(root / ".uploads")
    os.environ.pop("GRADIO_VIBE_MODE", None)
