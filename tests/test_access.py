from types import SimpleNamespace

import pytest

from studio import access
from studio.access import Access, AccessError


@pytest.mark.parametrize("host", [None, "127.0.0.1", "127.9.9.9", "localhost", "LOCALHOST", "::1", "[::1]"])
def test_loopback(host):
    assert access.is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.4", "studio.example", "localhost.example", ""])
def test_beyond_loopback(host):
    assert not access.is_loopback(host)


def test_only_beyond_this_computer_a_login_is_needed():
    assert access.check_exposure("127.0.0.1", share=False, auth=None) is None
    assert "share link" in access.check_exposure("127.0.0.1", share=True, auth=None)
    assert "0.0.0.0" in access.check_exposure("0.0.0.0", share=False, auth=None)
    assert access.check_exposure("0.0.0.0", share=True, auth=[("ann", "secret")]) is None


def test_a_login_is_made_where_one_is_missing_and_told_once():
    made, note = access.for_launch("0.0.0.0", share=False, auth=None)
    other, _ = access.for_launch("0.0.0.0", share=False, auth=None)
    ((name, password),) = made.auth
    assert name in note and password in note
    assert len(password) >= 16 and made.auth != other.auth


def test_a_given_login_is_used_and_not_repeated():
    given, note = access.for_launch("0.0.0.0", share=True, auth=[("ann", "secret")])
    assert given.auth == [("ann", "secret")] and note is None


def test_a_local_page_has_no_login():
    local, note = access.for_launch("127.0.0.1", share=False, auth=None)
    assert local.auth is None and note is None
    assert local.may_write(None)


def test_a_login_is_parsed():
    assert access.parse_auth("ann:se:cret") == ("ann", "se:cret")
    for text in ("ann", "ann:", ":secret", ""):
        with pytest.raises(AccessError, match="name:password"):
            access.parse_auth(text)


def test_only_owners_may_write():
    owners = Access([("ann", "secret")])
    assert owners.may_write("ann")
    assert not owners.may_write("bob")
    assert not owners.may_write(None)
    assert not Access([]).may_write(None)


def test_require_owner_refuses_by_the_request():
    import gradio as gr

    owners = Access([("ann", "secret")])
    owners.require_owner(gr.Request(username="ann"))
    for request in (gr.Request(username="bob"), SimpleNamespace(), None):
        with pytest.raises(gr.Error, match="Only the owner"):
            owners.require_owner(request)
    Access().require_owner(None)
