"""Budgets for Initials: when an address has to be proven, and how many proven ones are let in."""

from dataclasses import dataclass

import pytest

from asgiri.master.admission import (
    HANDSHAKE_RATE,
    INITIALS_BELOW_RING_FILL,
    NETWORK_HANDSHAKE_RATE,
    NETWORKS_COUNTED,
    RETRY_ABOVE_HALF_OPEN,
    RETRY_HOLD,
    UNVALIDATED_RATE,
    Admission,
    RetryMode,
    is_crowded,
)

NOW = 1000.0


@dataclass
class Load:
    half_open: int = 0
    ring_fill: float = 0.0


IDLE = Load()
UNDER_PRESSURE = [
    Load(half_open=RETRY_ABOVE_HALF_OPEN + 1),
    Load(ring_fill=INITIALS_BELOW_RING_FILL + 0.01),
]
AT_THE_LIMIT = Load(half_open=RETRY_ABOVE_HALF_OPEN, ring_fill=INITIALS_BELOW_RING_FILL)


def test_ring_is_crowded_above_half():
    assert not is_crowded(AT_THE_LIMIT)
    assert is_crowded(UNDER_PRESSURE[1])


@pytest.mark.parametrize("load", [IDLE, AT_THE_LIMIT])
def test_auto_lets_in_whoever_comes_while_there_is_room(load):
    assert not Admission(RetryMode.AUTO).must_prove_address(load, NOW)


@pytest.mark.parametrize("load", UNDER_PRESSURE)
def test_auto_asks_for_proof_under_pressure_and_for_a_while_after(load):
    admission = Admission(RetryMode.AUTO)
    assert admission.must_prove_address(load, NOW)
    assert admission.must_prove_address(IDLE, NOW + RETRY_HOLD / 2)
    assert not admission.must_prove_address(IDLE, NOW + RETRY_HOLD)


def test_auto_asks_for_proof_above_the_rate():
    admission = Admission(RetryMode.AUTO)
    burst = int(UNVALIDATED_RATE)
    asked = [admission.must_prove_address(IDLE, NOW) for _ in range(burst + 3)]
    assert asked == [False] * burst + [True] * 3


def test_auto_goes_on_asking_as_long_as_the_flood_goes_on():
    admission = Admission(RetryMode.AUTO)
    asked = [
        admission.must_prove_address(IDLE, NOW + number / (2 * UNVALIDATED_RATE))
        for number in range(int(20 * UNVALIDATED_RATE))
    ]
    first = asked.index(True)
    assert first == pytest.approx(2 * UNVALIDATED_RATE, abs=2)
    assert all(asked[first:])


@pytest.mark.parametrize("workers", [1, 4])
def test_rate_grows_with_the_workers_that_share_it(workers):
    admission = Admission(RetryMode.AUTO)
    admission.set_workers(workers)
    let_in = [admission.must_prove_address(IDLE, NOW) for _ in range(500)].count(False)
    assert let_in == workers * UNVALIDATED_RATE
    admission.set_workers(0)  # a budget of nothing would last beyond the next worker's start
    assert not admission.must_prove_address(IDLE, NOW + 10)


@pytest.mark.parametrize("load", [IDLE, *UNDER_PRESSURE])
def test_always_and_never_do_not_look(load):
    always, never = Admission(RetryMode.ALWAYS), Admission(RetryMode.NEVER)
    assert all(always.must_prove_address(load, NOW) for _ in range(300))
    assert not any(never.must_prove_address(load, NOW) for _ in range(300))


# Proven addresses


def exhausted():
    admission = Admission(RetryMode.ALWAYS)
    burst = [admission.may_handshake(("203.0.113.1", 1), NOW) for _ in range(int(HANDSHAKE_RATE))]
    assert all(burst)
    return admission


def let_in(admission, hosts, now=NOW):
    return sum(admission.may_handshake((host, 4433), now) for host in hosts)


def test_beyond_the_workers_budget_each_network_has_its_share():
    admission = exhausted()
    flood = [f"192.0.2.{number % 250}" for number in range(1000)]
    assert let_in(admission, flood) == NETWORK_HANDSHAKE_RATE
    assert let_in(admission, ["198.51.100.7"]) == 1
    # A second later there is a new share, after what everybody may have.
    later = let_in(admission, flood, NOW + 1)
    assert later == HANDSHAKE_RATE + NETWORK_HANDSHAKE_RATE


@pytest.mark.parametrize(
    ("hosts", "networks"),
    [
        (["2001:db8:0:1::1", "2001:db8:0:ff::2"], 1),
        (["2001:db8:0:1::1", "2001:db8:0:100::1"], 2),
        (["192.0.2.1", "192.0.2.255"], 1),
        (["192.0.2.1", "192.0.3.1"], 2),
    ],
)
def test_network_is_a_24_or_a_56(hosts, networks):
    let = let_in(exhausted(), [hosts[number % 2] for number in range(1000)])
    assert let == networks * NETWORK_HANDSHAKE_RATE


def test_more_networks_than_can_be_counted_are_not_let_in():
    admission = exhausted()
    hosts = [f"10.{number >> 8}.{number & 255}.1" for number in range(NETWORKS_COUNTED + 100)]
    assert let_in(admission, hosts) == NETWORKS_COUNTED


@pytest.mark.parametrize("workers", [1, 2])
def test_handshake_budget_grows_with_the_workers(workers):
    admission = Admission(RetryMode.ALWAYS)
    admission.set_workers(workers)
    same = ["192.0.2.1"] * 2000
    assert let_in(admission, same) == workers * HANDSHAKE_RATE + NETWORK_HANDSHAKE_RATE
