"""Entries of the setting `api_namespace_binds`."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.errors import SetupFailed
from fleet.namespaces import NamespaceBind, open_listening_socket, parse_namespace_bind


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ("lab=10.213.0.1:8100", NamespaceBind("lab", "10.213.0.1", 8100)),
        ("muster-1a2b=[fd00::1]:80", NamespaceBind("muster-1a2b", "fd00::1", 80)),
    ],
)
def test_an_entry_names_namespace_address_and_port(entry: str, expected: NamespaceBind) -> None:
    """What the entry says is what is bound."""
    assert expected == parse_namespace_bind(entry)


@pytest.mark.parametrize(
    "entry",
    [
        "",
        "lab",
        "lab=",
        "lab=10.213.0.1",
        "=10.213.0.1:80",
        "lab=10.213.0.1:0",
        "lab=10.213.0.1:65536",
        "lab=10.213.0.1:99999999999",
        "lab=10.213.0.1:²",
        "lab=gateway:80",
        "../lab=10.213.0.1:80",
        "a/b=10.213.0.1:80",
        "-n=10.213.0.1:80",
        "lab\n=10.213.0.1:80",
    ],
)
def test_anything_else_is_refused(entry: str) -> None:
    """An entry that does not fit is named, with the form that does."""
    with pytest.raises(SetupFailed) as failure:
        parse_namespace_bind(entry)
    assert repr(entry) in failure.value.detail


@given(st.text(max_size=40))
def test_no_text_breaks_the_parser(entry: str) -> None:
    """Any text is either a bind whose namespace is one path component, or refused."""
    try:
        bind = parse_namespace_bind(entry)
    except SetupFailed:
        return
    assert "/" not in bind.netns


def test_a_namespace_that_is_not_there_is_named() -> None:
    """Listening in a missing namespace fails with its name."""
    with pytest.raises(SetupFailed, match="no-such-namespace"):
        open_listening_socket("no-such-namespace", "127.0.0.1", 1)
