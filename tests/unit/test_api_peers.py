"""Who is calling, decided from the socket and the forwarding headers."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.errors import SetupFailed
from netboot.limits import parse_rate
from netboot.peers import client_address, parse_networks, source_of

TRUSTED = parse_networks(["10.0.0.1", "10.1.0.0/16", "fd00::/8"])


@pytest.mark.parametrize(
    ("peer", "forwarded", "expected"),
    [
        ("192.0.2.1", [], "192.0.2.1"),
        ("192.0.2.1", ["203.0.113.9"], "192.0.2.1"),
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", ["203.0.113.9"], "203.0.113.9"),
        ("10.0.0.1", ["203.0.113.9, 198.51.100.7"], "198.51.100.7"),
        ("10.0.0.1", ["203.0.113.9", "198.51.100.7"], "198.51.100.7"),
        ("10.0.0.1", ["203.0.113.9, 10.1.2.3"], "203.0.113.9"),
        ("10.0.0.1", ["203.0.113.9, unknown, 10.1.2.3"], "10.1.2.3"),
        ("10.0.0.1", ["{{ 7*7 }}"], "10.0.0.1"),
        ("10.0.0.1", [""], "10.0.0.1"),
        ("fd00::1", ["2001:db8::7"], "2001:db8::7"),
        ("::ffff:192.0.2.1", [], "192.0.2.1"),
        ("::ffff:10.0.0.1", ["203.0.113.9"], "203.0.113.9"),
        ("fe80::1%eth0", [], "fe80::1"),
        ("testclient", [], None),
        (None, ["203.0.113.9"], None),
    ],
)
def test_only_trusted_proxies_are_believed(
    peer: str | None, forwarded: list[str], expected: str | None
) -> None:
    """The address is the socket's, or the right-most hop that is no trusted proxy."""
    assert expected == client_address(peer, forwarded, TRUSTED)


@given(st.text(), st.lists(st.text()))
def test_an_address_is_always_an_address(peer: str, forwarded: list[str]) -> None:
    """Whatever the headers hold, the result is an IP address or none."""
    for who in (peer, "10.0.0.1"):
        address = client_address(who, forwarded, TRUSTED)
        assert address is None or ipaddress.ip_address(address)


@given(st.lists(st.text()))
def test_strangers_headers_never_matter(forwarded: list[str]) -> None:
    """A peer that is not trusted keeps the address of its socket."""
    assert "192.0.2.1" == client_address("192.0.2.1", forwarded, TRUSTED)


def test_a_source_is_an_address_or_a_network_of_64_bits() -> None:
    """One host cannot look like many by its IPv6 addresses."""
    assert "192.0.2.1" == source_of("192.0.2.1")
    assert source_of("2001:db8::1") == source_of("2001:db8::2") == "2001:db8::/64"
    assert source_of("2001:db8:0:1::1") != source_of("2001:db8::1")


def test_settings_that_do_not_fit_are_named() -> None:
    """A wrong network or rate says which setting holds it."""
    with pytest.raises(SetupFailed, match="MUSTER_TRUSTED_PROXIES"):
        parse_networks(["10.0.0.300"])
    with pytest.raises(SetupFailed, match="MUSTER_RATE_LIMIT"):
        parse_rate("often")
