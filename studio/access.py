"""Who may see and do what. The page on this computer is its owner's; beyond it, a login is needed.

A hidden control protects nothing: every handler that changes something calls `Access.require_owner` with its request.
"""

from __future__ import annotations

import ipaddress
import secrets
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import gradio as gr

Login = tuple[str, str]


class AccessError(Exception):
    """A login that cannot be used: one sentence."""


class Access:
    """Owners by name and password; None: no login, whoever reaches the page is its owner."""

    def __init__(self, users: Sequence[Login] | None = None) -> None:
        self.users = list(users) if users is not None else None

    @property
    def auth(self) -> list[Login] | None:
        """What Gradio's ``launch(auth=...)`` takes."""
        return self.users

    def may_write(self, username: str | None) -> bool:
        """Whether somebody signed in under that name (None: not signed in) is an owner."""
        return self.users is None or any(username == name for name, _ in self.users)

    def require_owner(self, request: gr.Request | None) -> None:
        """gr.Error unless the request is an owner's."""
        if self.may_write(getattr(request, "username", None)):
            return
        import gradio as gr  # only where there is a page

        raise gr.Error("Only the owner of this studio can do that; sign in and try again.", title="Not allowed")


def is_loopback(host: str | None) -> bool:
    """Whether a page on that host can be reached from this computer alone. None is Gradio's default, 127.0.0.1."""
    if host is None:
        return True
    name = host.strip().strip("[]").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:  # another name, which may lead anywhere
        return False


def check_exposure(host: str | None, share: bool, auth: Sequence[Login] | None) -> str | None:
    """Why this way to open the page needs a login, in a sentence; None when it is fine as it is."""
    if auth:
        return None
    if share:
        return "A share link lets everybody who has it start training on this computer, so it needs a login."
    if not is_loopback(host):
        return f"Other computers can reach the page on {host} and start training on this one, so it needs a login."
    return None


def parse_auth(text: str) -> Login:
    """(name, password) from ``name:password``; the password may hold further colons."""
    name, colon, password = text.partition(":")
    if not colon or not name.strip() or not password:
        raise AccessError("a login should look like name:password, with neither of them empty")
    return name.strip(), password


def make_password() -> str:
    """A password that nobody can guess: 96 random bits."""
    return secrets.token_urlsafe(12)


def for_launch(host: str | None, share: bool, auth: Sequence[Login] | None) -> tuple[Access, str | None]:
    """The access of a page, with a login made where one is needed and none was given.

    The second value is for the door to print, once: why there is a login, and the one that was made.
    """
    why = check_exposure(host, share, auth)
    if why is None:
        return Access(auth or None), None
    login = ("owner", make_password())
    return Access([login]), f"{why} None was given; this one was made: name {login[0]}, password {login[1]}"
