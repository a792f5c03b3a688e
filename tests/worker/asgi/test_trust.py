"""Who is believed: addresses, networks, everybody, and peers without an address."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgiri.worker.asgi.trust import TrustedPeers


@pytest.mark.parametrize(
    ("networks", "host", "trusted"),
    [
        (["127.0.0.1", "::1"], "127.0.0.1", True),
        (["127.0.0.1", "::1"], "127.0.0.2", False),
        (["127.0.0.1", "::1"], "::1", True),
        (["10.0.0.0/8"], "10.255.0.1", True),
        (["10.0.0.0/8"], "11.0.0.1", False),
        (["10.1.2.3/8"], "10.255.0.1", True),
        (["10.0.0.0/8"], "::ffff:10.0.0.1", True),
        (["2001:db8::/32"], "2001:db8::5", True),
        (["2001:db8::/32"], "10.0.0.1", False),
        (["fe80::/10"], "fe80::1%eth0", True),
        ([], "127.0.0.1", False),
        (["*"], "203.0.113.9", True),
        (["192.0.2.1", "*"], None, True),
    ],
)
def test_a_peer_is_trusted_by_its_address(networks, host, trusted):
    assert (host in TrustedPeers(networks)) is trusted


@pytest.mark.parametrize(("networks", "trusted"), [(["127.0.0.1"], True), (["10.0.0.1"], False)])
def test_a_peer_on_a_unix_socket_is_on_this_machine(networks, trusted):
    assert (None in TrustedPeers(networks)) is trusted


@given(st.ip_addresses())
def test_everybody_is_in_the_largest_networks(address):
    assert str(address) in TrustedPeers(["0.0.0.0/0", "::/0"])
    assert str(address) not in TrustedPeers([])
