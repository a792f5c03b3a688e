"""Who gets the next connection, asked of real worker pages; and a model of all that can happen."""

import random
from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from asgiri.ipc.scoreboard import PAGE_SIZE, Cell, Scoreboard
from asgiri.master.dispatcher import (
    BEAT_INTERVAL,
    FULL_SCAN_LIMIT,
    LAG_LIMIT,
    LAG_SLACK,
    LATE_AFTER,
    OBSERVE_INTERVAL,
    PREFETCH,
    REQUEST_WEIGHT,
    SAMPLE_INTERVAL,
    STALE_AFTER,
    UNADOPTED_LIMIT,
    BalancePolicy,
    Dispatcher,
)

NOW = 1000.0
HASH_KEY = b"known to nobody"


class Host:
    """A dispatcher and the pages of its workers, whose part the test plays."""

    def __init__(self, workers=0, policy=BalancePolicy.LEAST_LOADED, **options):
        self.now = NOW
        choose = random.Random(1).random
        self.dispatcher = Dispatcher(policy, random=choose, hash_key=HASH_KEY, **options)
        self.pages = {}
        self.ready = []
        for slot in range(workers):
            self.add(slot + 1, slot)
        self.set_ready(list(self.pages))

    def add(self, worker_id, slot, **options):
        self.pages[worker_id] = Scoreboard(memoryview(bytearray(PAGE_SIZE)))
        self.dispatcher.add_worker(worker_id, slot, self.pages[worker_id], **options)
        self.beat(worker_id)

    def set_ready(self, worker_ids):
        self.ready = worker_ids
        self.dispatcher.set_ready(worker_ids)

    def remove(self, worker_id):
        del self.pages[worker_id]
        self.ready = [other for other in self.ready if other != worker_id]
        self.dispatcher.remove_worker(worker_id)

    def beat(self, *worker_ids, ago=0.0):
        for worker_id in worker_ids or self.pages:
            self.pages[worker_id].set(Cell.BEAT_NS, round((self.now - ago) * 1e9))
            self.pages[worker_id].add(Cell.BEAT_COUNT)

    def wait(self, seconds, *, beating=None):
        """Let time pass as the master does: it looks at each beat, and the living ones beat."""
        end = self.now + seconds
        while self.now < end:
            self.now = min(self.now + OBSERVE_INTERVAL, end)
            self.beat(*(self.pages if beating is None else beating)) if beating != [] else None
            self.dispatcher.observe(self.now)

    def look_again(self):
        self.now += SAMPLE_INTERVAL * 1.5

    def connect(self, client_ip=""):
        worker_id = self.dispatcher.choose_tcp(self.now, client_ip)
        if worker_id is not None:
            self.dispatcher.assigned_tcp(worker_id)
        return worker_id

    def adopt_all(self, count):
        for page in self.pages.values():
            page.set(Cell.TCP_ADOPTED, count)


def test_nobody_is_chosen_when_nobody_is_ready():
    host = Host()
    host.add(1, 0)
    assert host.dispatcher.choose_tcp(NOW) is None
    assert host.dispatcher.choose_quic(NOW) is None
    assert host.dispatcher.rendezvous(b"key") is None
    assert host.dispatcher.statistics().nobody_eligible == 2


def test_burst_within_one_heartbeat_spreads_evenly():
    host = Host(workers=4)
    assert Counter(host.connect() for _ in range(40)) == dict.fromkeys([1, 2, 3, 4], 10)


def test_equal_workers_take_turns_although_each_connection_ends_at_once():
    host = Host(workers=3)
    for worker_id, lag_us in [(1, 400), (2, 900), (3, 1300)]:  # idle, as measured
        host.pages[worker_id].set(Cell.LAG_EWMA_US, lag_us)
    chosen = Counter()
    for _ in range(30):
        worker_id = host.connect()
        chosen[worker_id] += 1
        host.pages[worker_id].add(Cell.TCP_ADOPTED)
        host.pages[worker_id].add(Cell.TCP_CLOSED)
        host.look_again()
        host.beat()
    assert chosen == {1: 10, 2: 10, 3: 10}


@pytest.mark.parametrize("cell", [Cell.TCP_CLOSED, Cell.TCP_HANDED_BACK])
def test_connection_that_ended_at_its_worker_no_longer_counts(cell):
    host = Host(workers=2)
    assert sorted(host.connect() for _ in range(10)) == [1] * 5 + [2] * 5
    host.pages[2].add(cell, 5)
    host.look_again()
    assert [host.connect() for _ in range(5)] == [2] * 5


def test_pages_are_read_at_most_once_in_a_sample_interval():
    host = Host(workers=2)
    host.connect()
    host.pages[1].set(Cell.REQUESTS_ACTIVE, 9)
    assert {host.connect() for _ in range(4)} == {1, 2}
    host.look_again()
    assert {host.connect() for _ in range(4)} == {2}


def test_request_in_flight_counts_as_several_connections():
    host = Host(workers=2)
    host.pages[1].set(Cell.REQUESTS_ACTIVE, 1)
    chosen = Counter(host.connect() for _ in range(20))
    assert chosen[2] - chosen[1] == REQUEST_WEIGHT


@pytest.mark.parametrize(
    ("lag", "expected"),
    [(LAG_SLACK, 0), (LAG_SLACK + 0.002, 4), (LAG_SLACK + 0.010, 20), (3600.0, LAG_LIMIT)],
)
def test_late_loop_counts_as_connections_up_to_a_limit(lag, expected):
    host = Host(workers=2)
    host.pages[1].set(Cell.LAG_EWMA_US, round(lag * 1e6))
    chosen = Counter()
    for _ in range(200):
        chosen[host.connect()] += 1
        host.adopt_all(200)
    assert chosen[2] - chosen[1] == expected


def test_beat_that_is_overdue_counts_as_lag_before_it_counts_as_stale():
    host = Host(workers=2)
    host.beat(1, ago=BEAT_INTERVAL + LAG_SLACK + 0.010)
    chosen = Counter(host.connect() for _ in range(60))
    assert chosen[2] - chosen[1] in (18, 20)  # 60 connections: the difference is even


def test_worker_that_stands_still_gets_nothing():
    host = Host(workers=3)
    host.beat(2, ago=STALE_AFTER + 0.001)
    assert Counter(host.connect() for _ in range(20)) == {1: 10, 3: 10}
    host.look_again()
    host.beat()
    assert host.connect() == 2


def test_worker_whose_beat_is_just_in_time_is_not_skipped():
    host = Host(workers=1)
    host.add(9, 1)
    host.set_ready([1, 9])
    host.beat(1, ago=STALE_AFTER - 0.001)
    host.pages[9].set(Cell.REQUESTS_ACTIVE, 1000)
    assert host.connect() == 1


@pytest.mark.parametrize("policy", list(BalancePolicy))
def test_when_all_stand_still_all_are_as_good(policy):
    host = Host(workers=3, policy=policy)
    host.wait(1.0, beating=[])
    assert Counter(host.connect() for _ in range(30)) == {1: 10, 2: 10, 3: 10}


def test_worker_that_never_beat_is_skipped():
    host = Host(workers=2)
    host.pages[1].set(Cell.BEAT_NS, 0)
    assert {host.connect() for _ in range(10)} == {2}


# Back-pressure


@pytest.mark.parametrize("policy", list(BalancePolicy))
def test_worker_that_leaves_too_much_unread_gets_no_more(policy):
    host = Host(workers=2, policy=policy)
    chosen = Counter(host.connect("192.0.2.1") for _ in range(2 * UNADOPTED_LIMIT + 10))
    assert chosen == {1: UNADOPTED_LIMIT + 1, 2: UNADOPTED_LIMIT + 1, None: 8}
    assert host.dispatcher.statistics().nobody_eligible == 8


def test_room_that_was_made_is_seen_at_once():
    host = Host(workers=1)
    while host.connect() is not None:
        pass
    host.adopt_all(1)
    assert [host.connect(), host.connect()] == [1, None]


# Many workers


def test_two_choices_keep_many_workers_nearly_even():
    host = Host(workers=40)
    chosen = Counter()
    for _ in range(4000):
        chosen[host.connect()] += 1
        host.adopt_all(4000)
    assert len(chosen) == 40
    # Not 0 either: that would be the full scan, whose cost grows with the workers.
    assert 1 < max(chosen.values()) - min(chosen.values()) <= 8


def test_two_choices_that_are_both_full_are_not_the_end():
    host = Host(workers=FULL_SCAN_LIMIT + 4)
    rooms = (FULL_SCAN_LIMIT + 4) * (UNADOPTED_LIMIT + 1)
    chosen = Counter(host.connect() for _ in range(rooms + 1))
    assert chosen.pop(None) == 1
    assert set(chosen.values()) == {UNADOPTED_LIMIT + 1}


def test_two_choices_never_meet_a_blocked_worker():
    host = Host(workers=FULL_SCAN_LIMIT + 4)
    host.beat(7, ago=1.0)
    assert 7 not in {host.connect() for _ in range(500)}


# Policies


def test_round_robin_goes_round_whatever_the_load():
    host = Host(workers=3, policy=BalancePolicy.ROUND_ROBIN)
    host.pages[2].set(Cell.REQUESTS_ACTIVE, 50)
    assert [host.connect() for _ in range(7)] == [1, 2, 3, 1, 2, 3, 1]


def test_round_robin_leaves_out_who_stands_still():
    host = Host(workers=3, policy=BalancePolicy.ROUND_ROBIN)
    host.beat(2, ago=1.0)
    assert Counter(host.connect() for _ in range(8)) == {1: 4, 3: 4}


CLIENTS = [f"198.51.{number // 250}.{number % 250}" for number in range(1000)]


def slots_of_clients(host):
    """Where each client would go. `choose` alone: a thousand unread ones would fill the workers."""
    choose = host.dispatcher.choose_tcp
    return {client: choose(host.now, client) % 10 for client in CLIENTS}


def client_ip_host(workers):
    host = Host(policy=BalancePolicy.CLIENT_IP)
    for slot in range(workers):
        host.add(10 + slot, slot)
    host.set_ready(list(host.pages))
    return host


def test_client_ip_spreads_clients_and_keeps_each_where_it_is():
    host = client_ip_host(4)
    first = slots_of_clients(host)
    assert slots_of_clients(host) == first
    assert all(200 <= count <= 300 for count in Counter(first.values()).values())


def test_client_ip_moves_only_the_clients_of_a_worker_that_died_and_brings_them_back():
    host = client_ip_host(4)
    before = slots_of_clients(host)
    host.remove(12)
    meanwhile = slots_of_clients(host)
    moved = {client for client in CLIENTS if meanwhile[client] != before[client]}
    assert moved == {client for client in CLIENTS if before[client] == 2}
    host.add(22, 2)
    host.set_ready([10, 11, 22, 13])
    assert slots_of_clients(host) == before


def test_client_ip_keeps_a_client_with_its_slot_across_a_reload():
    host = client_ip_host(4)
    before = slots_of_clients(host)
    for slot in range(4):
        host.add(30 + slot, slot)
    host.set_ready([30, 31, 32, 33])
    assert slots_of_clients(host) == before


def test_client_ip_waits_for_its_worker_although_that_stands_still():
    host = client_ip_host(3)
    before = slots_of_clients(host)
    host.beat(11, ago=1.0)
    host.look_again()
    assert slots_of_clients(host) == before


def test_client_ip_waits_for_its_worker_although_that_is_late():
    host = client_ip_host(3)
    own = host.connect("192.0.2.1")
    host.dispatcher.assigned_tcp(own, PREFETCH)
    host.wait(0.02, beating=[])
    assert {host.connect("192.0.2.1") for _ in range(UNADOPTED_LIMIT - PREFETCH)} == {own}
    host.look_again()
    assert host.connect("192.0.2.1") not in (own, None)


def test_client_without_an_address_goes_to_the_least_loaded():
    host = Host(workers=2, policy=BalancePolicy.CLIENT_IP)
    assert Counter(host.connect("") for _ in range(10)) == {1: 5, 2: 5}


def test_rendezvous_is_the_same_in_every_release():
    host = Host(workers=5)
    found = [host.dispatcher.rendezvous(b"client %d" % number) for number in range(12)]
    assert found == [4, 1, 3, 3, 4, 1, 4, 5, 2, 1, 4, 4]


def test_rendezvous_depends_on_the_key_and_on_what_clients_cannot_know():
    host = Host(workers=4)
    other = Dispatcher(BalancePolicy.LEAST_LOADED, random=random.random, hash_key=b"other")
    for worker_id, page in host.pages.items():
        other.add_worker(worker_id, worker_id - 1, page)
    other.set_ready(list(host.pages))
    keys = [number.to_bytes(8, "big") for number in range(1000)]
    ours = [host.dispatcher.rendezvous(key) for key in keys]
    theirs = [other.rendezvous(key) for key in keys]
    assert ours == [host.dispatcher.rendezvous(key) for key in keys]
    assert all(200 <= count <= 300 for count in Counter(ours).values())
    assert 150 <= sum(map(int.__eq__, ours, theirs)) <= 350


# QUIC


def test_quic_connections_count_before_their_worker_has_seen_them():
    host = Host(workers=2)
    for _ in range(10):
        host.dispatcher.assigned_quic(host.dispatcher.choose_quic(host.now))
    chosen = [host.dispatcher.choose_quic(host.now, "192.0.2.1") for _ in range(10)]
    assert set(chosen) == {1, 2}
    host.dispatcher.assigned_quic(1)
    assert host.dispatcher.choose_quic(host.now) == 2
    assert host.connect() == 2
    assert host.dispatcher.statistics().quic_assigned == 11


def test_quic_connection_weighs_as_much_as_any_other():
    host = Host(workers=2)
    host.dispatcher.observe(host.now)
    host.dispatcher.assigned_quic(1)
    host.dispatcher.assigned_tcp(2)
    assert {host.dispatcher.choose_tcp(host.now) for _ in range(4)} == {1, 2}


def test_quic_connections_count_once_while_some_of_them_are_open():
    host = Host(workers=2)
    for _ in range(6):
        host.dispatcher.assigned_quic(1)
    host.pages[1].set(Cell.QUIC_OPENED, 3)
    assert score_difference(host) == 6


def score_difference(host):
    """How many connections more worker 1 has, in the eyes of the dispatcher: 2 gets them first."""
    host.look_again()
    given = 0
    # Twice, because equals take turns.
    while {host.dispatcher.choose_tcp(host.now), host.dispatcher.choose_tcp(host.now)} == {2}:
        given += 1
        host.dispatcher.assigned_tcp(2)
    host.dispatcher.withdrawn_tcp(2, given)
    return given


def test_quic_connection_that_its_worker_opened_counts_until_it_is_closed():
    host = Host(workers=2)
    for _ in range(6):
        host.dispatcher.assigned_quic(1)
    host.pages[1].set(Cell.QUIC_OPENED, 6)
    host.wait(1.0)
    assert score_difference(host) == 6
    host.pages[1].set(Cell.QUIC_CLOSED, 6)
    assert score_difference(host) == 0


def test_quic_connection_that_its_worker_never_opened_is_forgotten_after_two_beats():
    host = Host(workers=2)
    host.dispatcher.observe(host.now)
    for _ in range(6):
        host.dispatcher.assigned_quic(1)
    assert score_difference(host) == 6
    host.beat()
    assert score_difference(host) == 6
    host.beat()
    assert score_difference(host) == 0
    host.dispatcher.assigned_quic(1)
    assert score_difference(host) == 1


def test_quic_connection_of_a_worker_without_a_beat_is_not_forgotten():
    host = Host(workers=2)
    for _ in range(6):
        host.dispatcher.assigned_quic(1)
    for _ in range(20):
        host.look_again()
        host.beat(2)
        host.dispatcher.observe(host.now)
    assert score_difference(host) == 6


def test_quic_connection_that_nobody_assigned_counts_as_well():
    host = Host(workers=2)
    host.pages[1].set(Cell.QUIC_OPENED, 3)
    assert score_difference(host) == 3
    host.pages[1].set(Cell.QUIC_CLOSED, 3)
    host.look_again()
    host.dispatcher.assigned_quic(1)
    assert score_difference(host) == 1


# Workers come and go


def test_earlier_assignments_come_with_a_worker_that_was_taken_over():
    host = Host()
    host.add(1, 0, tcp_assigned=30)
    host.add(2, 1)
    host.pages[1].set(Cell.TCP_ADOPTED, 30)
    host.pages[1].set(Cell.TCP_CLOSED, 26)
    host.set_ready([1, 2])
    assert [host.connect() for _ in range(4)] == [2] * 4
    assert host.dispatcher.assigned_tcp(1, 2) == 32


def test_switch_takes_effect_with_the_next_connection():
    host = Host(workers=2)
    host.connect()
    host.add(11, 0)
    host.add(12, 1)
    host.set_ready([11, 12])
    assert {host.connect() for _ in range(8)} == {11, 12}


def test_worker_that_died_gets_nothing_even_before_the_next_switch():
    host = Host(workers=2)
    host.connect()
    host.remove(1)
    assert {host.connect() for _ in range(8)} == {2}
    host.add(3, 0)
    host.remove(3)
    assert host.connect() == 2


def test_withdrawn_connections_no_longer_count():
    host = Host(workers=2)
    assert host.dispatcher.assigned_tcp(1, 8) == 8
    assert host.connect() == 2
    assert host.dispatcher.withdrawn_tcp(1, 8) == 0
    assert host.connect() == 1
    statistics = host.dispatcher.statistics()
    assert (statistics.tcp_assigned, statistics.tcp_withdrawn) == (10, 8)


# D23: taking back


def test_undelivered_connections_of_a_worker_that_stands_still_are_taken_back():
    host = Host(workers=3)
    for worker_id in (1, 2, 3):
        host.dispatcher.assigned_tcp(worker_id, 2)
    host.pages[2].set(Cell.TCP_ADOPTED, 2)
    host.dispatcher.observe(host.now)
    host.now += LATE_AFTER * 0.7
    host.beat(1)
    assert host.dispatcher.take_back(host.now) == []
    host.now += LATE_AFTER * 0.7
    # 2 has read all it got; 3 has not, and its beat is not even due.
    assert host.dispatcher.take_back(host.now) == [3]


def test_who_was_late_gets_nothing_until_it_gives_a_sign_of_life():
    host = Host(workers=2)
    host.dispatcher.observe(host.now)
    host.dispatcher.assigned_tcp(1, 2)
    host.now += 2 * LATE_AFTER
    assert host.dispatcher.take_back(host.now) == [1]
    host.dispatcher.withdrawn_tcp(1, 2)
    assert [host.connect() for _ in range(4)] == [2] * 4
    # Now that one is late too: nothing goes back and forth between them.
    host.now += 2 * LATE_AFTER
    assert host.dispatcher.take_back(host.now) == []
    host.beat(1)
    assert host.dispatcher.take_back(host.now) == [2]


@pytest.mark.parametrize("policy", [BalancePolicy.LEAST_LOADED, BalancePolicy.ROUND_ROBIN])
def test_when_all_are_late_each_has_few_unread_and_the_caller_keeps_the_others(policy):
    host = Host(workers=2, policy=policy)
    assert sorted([host.connect(), host.connect()]) == [1, 2]
    host.wait(0.01, beating=[])
    assert sorted(host.connect() for _ in range(2 * (PREFETCH - 1))) == [1, 2] * (PREFETCH - 1)
    assert host.connect() is None
    # Whichever goes on first is given them.
    host.pages[2].add(Cell.TCP_ADOPTED)
    assert [host.connect() for _ in range(5)] == [2] * 5


def test_a_new_worker_late_with_its_first_connection_is_given_few_more():
    """What Hypothesis found in the model: a new worker, late with the first it was given."""
    host = Host(workers=1)
    for worker_ids in ([2], [3, 4, 5], [6]):
        for slot, worker_id in enumerate(worker_ids):
            host.add(worker_id, slot)
        host.set_ready(worker_ids)
    assert host.connect() == 6
    host.wait(0.01, beating=[1, 2, 3, 4, 5])
    assert [host.connect() for _ in range(PREFETCH)] == [6] * (PREFETCH - 1) + [None]
    host.beat(6)
    assert host.connect() == 6


# Balancing requests: what nobody can serve now, the caller keeps


def test_while_requests_are_balanced_nobody_is_chosen_rather_than_who_stands_still():
    host = Host(workers=2)
    host.wait(1.0, beating=[])
    assert host.connect() is not None
    host.dispatcher.hold = True
    host.look_again()
    assert host.connect() is None
    # Who cannot wait in the master goes there all the same.
    assert host.dispatcher.choose_quic(host.now) is not None
    assert host.dispatcher.choose_anyway(host.now) is not None
    host.beat(2)
    host.look_again()
    assert host.connect() == 2


@pytest.mark.parametrize("policy", BalancePolicy)
@pytest.mark.parametrize("workers", [2, FULL_SCAN_LIMIT + 4])
def test_a_worker_at_its_limit_of_requests_gets_none(policy, workers):
    host = Host(workers=workers, policy=policy)
    host.dispatcher.request_limit = 3
    for worker_id in range(2, workers + 1):
        host.pages[worker_id].set(Cell.REQUESTS_ACTIVE, 3)
    host.pages[1].set(Cell.REQUESTS_ACTIVE, 1)
    # What it has not read counts as well.
    chosen = [host.connect(f"192.0.2.{n}") for n in range(100)]
    assert Counter(chosen)[1] <= 2
    assert set(chosen) <= {1, None}
    if policy is not BalancePolicy.LEAST_LOADED or workers <= FULL_SCAN_LIMIT:
        assert Counter(chosen)[1] == 2
    assert host.dispatcher.choose_quic(host.now) is not None
    assert host.dispatcher.has_unread


@pytest.mark.parametrize("policy", BalancePolicy)
def test_where_few_files_may_be_open_little_may_be_left_unread(policy):
    host = Host(workers=2, policy=policy, unread_limit=8)
    chosen = Counter(host.connect("192.0.2.1") for _ in range(20))
    assert chosen == {1: 9, 2: 9, None: 2}
    assert host.dispatcher.choose_anyway(host.now) is None


def test_nobody_is_chosen_in_any_case_when_all_leave_too_much_unread():
    host = Host(workers=1)
    host.dispatcher.assigned_tcp(1, UNADOPTED_LIMIT + 1)
    assert host.dispatcher.choose_anyway(host.now) is None
    assert host.dispatcher.choose_quic(host.now) is None


def test_nothing_is_taken_back_when_everybody_stands_still_or_is_full():
    host = Host(workers=2)
    host.dispatcher.assigned_tcp(1, 2)
    host.wait(1.0, beating=[])
    assert host.dispatcher.take_back(host.now) == []
    host.beat(2)
    assert host.dispatcher.take_back(host.now) == [1]
    host.dispatcher.assigned_tcp(2, UNADOPTED_LIMIT + 1)
    assert host.dispatcher.take_back(host.now) == []


def test_connections_are_taken_back_from_a_worker_that_drains():
    host = Host(workers=2)
    host.dispatcher.assigned_tcp(1, 2)
    host.set_ready([2])
    host.wait(1.0, beating=[2])
    assert host.dispatcher.take_back(host.now) == [1]


def test_clients_that_belong_to_a_worker_wait_for_it():
    host = Host(workers=2, policy=BalancePolicy.CLIENT_IP)
    host.dispatcher.assigned_tcp(1, 2)
    host.wait(1.0, beating=[2])
    assert host.dispatcher.take_back(host.now) == []


# What balancing asks


def test_lag_is_that_of_the_page_or_of_the_beat_that_is_overdue():
    host = Host(workers=3)
    host.pages[1].set(Cell.LAG_EWMA_US, 7_000)
    host.beat(2, ago=BEAT_INTERVAL + 0.020)
    lags = host.dispatcher.lags(host.now)
    assert lags == pytest.approx({1: 0.007, 2: 0.020, 3: 0.0})
    host.set_ready([1, 3])
    host.pages[1].set(Cell.LAG_EWMA_US, 0)
    assert set(host.dispatcher.lags(host.now)) == {1, 3}
    host.pages[1].set(Cell.LAG_EWMA_US, 9_000)
    assert host.dispatcher.lags(host.now)[1] == 0.0  # read a moment ago
    host.look_again()
    assert host.dispatcher.lags(host.now)[1] == pytest.approx(0.009)


def test_loads_are_scores_and_open_connections_of_the_ready():
    host = Host(workers=3)
    host.set_ready([1, 2])
    host.dispatcher.observe(host.now)
    host.dispatcher.assigned_tcp(1, 5)
    host.pages[1].set(Cell.TCP_OPEN, 3)
    host.pages[1].set(Cell.QUIC_OPEN, 1)
    loads = host.dispatcher.loads()
    assert {w: (load.score, load.connections) for w, load in loads.items()} == {
        1: (5, 4),
        2: (0, 0),
    }


# Stale-beat bursts


def test_beats_that_stopped_while_the_master_was_away_are_given_one_period():
    host = Host(workers=4)
    host.wait(0.2)
    host.dispatcher.assigned_tcp(1, 2)
    host.now += 3.0  # the machine was suspended; worker 4 woke up before the master
    host.beat(4)
    assert {host.connect() for _ in range(8)} == {1, 2, 3, 4}
    assert host.dispatcher.take_back(host.now) == []
    host.wait(STALE_AFTER + 0.01, beating=[4])
    assert {host.connect() for _ in range(8)} == {4}
    assert host.dispatcher.take_back(host.now) == [1, 2, 3]
    assert host.dispatcher.statistics().stale_bursts == 1


def test_half_of_the_workers_are_no_burst():
    host = Host(workers=4)
    host.wait(0.2)
    host.now += 3.0
    host.beat(3, 4)
    assert {host.connect() for _ in range(8)} == {3, 4}
    assert host.dispatcher.statistics().stale_bursts == 0


def test_workers_that_begin_long_requests_together_are_no_burst():
    host = Host(workers=4)
    host.wait(0.2)
    host.wait(STALE_AFTER + OBSERVE_INTERVAL, beating=[4])
    assert {host.connect() for _ in range(8)} == {4}
    assert host.dispatcher.statistics().stale_bursts == 0


# Everything at once


class DispatchModel(RuleBasedStateMachine):
    """Random loads, stalls, deaths and reloads, with workers that keep what they were given.

    The model plays acceptor and runtime by their contract: whatever cannot be given to a worker is
    kept in a central queue and offered again.

    The dispatcher looks at a worker now and then, and notices a sign of life when it does. So it
    may have found one late or not yet (`may_be_late`), and has for sure when it looked at it twice
    (`is_late`).
    """

    @initialize(policy=st.sampled_from(BalancePolicy))
    def begin(self, policy):
        self.host = Host(policy=policy)
        self.policy = policy
        self.next_id = 1
        self.generation = []
        self.unread = {}  # worker_id -> connections in its channel
        self.quiet_since = {}  # worker_id -> since when it has had some without a sign of life
        self.seen_quiet_at = {}  # worker_id -> when the dispatcher first saw that
        self.held = {}  # worker_id -> connections it has adopted
        self.stalled = set()
        self.central = []
        self.made = 0
        self.closed = 0

    def spawn(self, slot):
        worker_id, self.next_id = self.next_id, self.next_id + 1
        self.host.add(worker_id, slot)
        self.unread[worker_id], self.held[worker_id] = [], []
        return worker_id

    def sign_of_life(self, *worker_ids):
        for worker_id in worker_ids:
            self.quiet_since.pop(worker_id, None)
            self.seen_quiet_at.pop(worker_id, None)
            if self.unread[worker_id]:
                self.quiet_since[worker_id] = self.host.now

    def dispatch(self):
        """Give away what the central queue holds, as far as anybody takes it."""
        while self.central:
            client = f"192.0.2.{self.central[0] % 5}"
            worker_id = self.host.dispatcher.choose_tcp(self.host.now, client)
            if worker_id is None:
                self.check_that_nobody_could()
                return
            self.check_choice(worker_id, client)
            self.host.dispatcher.assigned_tcp(worker_id)
            self.unread[worker_id].append(self.central.pop(0))
            self.quiet_since.setdefault(worker_id, self.host.now)

    def beats(self, worker_id):
        page = self.host.pages[worker_id]
        return self.host.now - page.get(Cell.BEAT_NS) * 1e-9 <= STALE_AFTER

    def may_be_late(self, worker_id):
        # What it has was assigned up to SAMPLE_INTERVAL after the dispatcher saw that it had none.
        quiet = self.host.now - self.quiet_since.get(worker_id, self.host.now)
        return quiet > LATE_AFTER - SAMPLE_INTERVAL

    def is_late(self, worker_id):
        quiet = self.host.now - self.seen_quiet_at.get(worker_id, self.host.now)
        return quiet > LATE_AFTER + SAMPLE_INTERVAL

    def in_time(self):
        return {w for w in self.host.ready if self.beats(w) and not self.may_be_late(w)}

    def rooms(self):
        return [w for w in self.host.ready if len(self.unread[w]) <= UNADOPTED_LIMIT]

    def check_that_nobody_could(self):
        rooms, ready = set(self.rooms()), set(self.host.ready)
        if self.policy is BalancePolicy.CLIENT_IP:
            assert not rooms
            return
        beating, in_time = {w for w in ready if self.beats(w)}, self.in_time()
        full = {w for w in beating - rooms if not self.is_late(w)}
        if in_time or full:
            # One that is late gets nothing beside those, although they are full.
            assert not in_time & rooms
        else:
            candidates = beating or ready
            assert all(len(self.unread[w]) >= PREFETCH for w in candidates)
            assert all(self.may_be_late(w) for w in candidates & rooms)

    def check_choice(self, worker_id, client):
        assert worker_id in self.host.ready
        assert worker_id in self.rooms()
        if self.policy is BalancePolicy.CLIENT_IP:
            own = self.host.dispatcher.rendezvous(client.encode())
            assert worker_id == own or own not in self.rooms()
        elif self.is_late(worker_id):
            assert len(self.unread[worker_id]) < PREFETCH
            assert not self.in_time() & set(self.rooms())
        if self.policy is BalancePolicy.LEAST_LOADED and self.beats(worker_id):
            # Nobody else that is in time and works on nothing has clearly less; lag may weigh
            # LAG_LIMIT.
            load = len(self.unread[worker_id]) + len(self.held[worker_id])
            for other in self.in_time() & set(self.rooms()) - {worker_id}:
                if not self.host.pages[other].get(Cell.REQUESTS_ACTIVE):
                    other_load = len(self.unread[other]) + len(self.held[other])
                    assert load <= other_load + LAG_LIMIT

    # What happens

    @rule(slots=st.integers(1, 5))
    def reload(self, slots):
        old = self.generation
        self.generation = [self.spawn(slot) for slot in range(slots)]
        self.host.set_ready(self.generation)
        self.dispatch()
        assert not set(old) & set(self.host.ready)

    @rule(count=st.integers(1, 3) | st.integers(1, 90))
    def connect(self, count):
        self.central += range(self.made, self.made + count)
        self.made += count
        self.dispatch()

    @rule(data=st.data(), count=st.integers(1, 80))
    @precondition(lambda self: self.host.pages)
    def adopt(self, data, count):
        worker_id = data.draw(st.sampled_from(sorted(self.host.pages)))
        if worker_id in self.stalled:
            return
        unread = self.unread[worker_id]
        taken, self.unread[worker_id] = unread[:count], unread[count:]
        self.held[worker_id] += taken
        self.host.pages[worker_id].add(Cell.TCP_ADOPTED, len(taken))
        if taken:
            self.sign_of_life(worker_id)
        self.host.look_again()
        self.dispatch()

    @rule(data=st.data(), count=st.integers(1, 50))
    @precondition(lambda self: self.host.pages)
    def close(self, data, count):
        worker_id = data.draw(st.sampled_from(sorted(self.host.pages)))
        if worker_id in self.stalled:
            return
        closing, self.held[worker_id] = self.held[worker_id][:count], self.held[worker_id][count:]
        self.closed += len(closing)
        self.host.pages[worker_id].add(Cell.TCP_CLOSED, len(closing))
        if closing:
            self.sign_of_life(worker_id)
        self.host.look_again()

    @rule(data=st.data(), active=st.integers(0, 20), lag=st.integers(0, 10**6))
    @precondition(lambda self: self.host.pages)
    def work(self, data, active, lag):
        worker_id = data.draw(st.sampled_from(sorted(self.host.pages)))
        self.host.pages[worker_id].set(Cell.REQUESTS_ACTIVE, active)
        self.host.pages[worker_id].set(Cell.LAG_EWMA_US, lag)
        self.host.look_again()

    @rule(data=st.data())
    @precondition(lambda self: self.host.pages)
    def stall(self, data):
        self.stalled.add(data.draw(st.sampled_from(sorted(self.host.pages))))

    @rule()
    @precondition(lambda self: self.host.ready)
    def stall_all(self):
        """Handlers hog every worker: rare if only one at a time did."""
        self.stalled.update(self.host.ready)

    @rule()
    @precondition(lambda self: self.stalled)
    def resume(self):
        self.stalled.clear()

    @rule(seconds=st.sampled_from([0.0005, 0.01, 0.05, 0.2, 2.0]))
    def wait(self, seconds):
        beating = sorted(set(self.host.pages) - self.stalled)
        first_look = self.host.now + min(seconds, OBSERVE_INTERVAL)
        self.host.wait(seconds, beating=beating)
        self.sign_of_life(*beating)
        for worker_id in set(self.quiet_since) - set(beating):
            self.seen_quiet_at.setdefault(worker_id, first_look)
        self.dispatch()

    @rule()
    def take_back(self):
        for worker_id in self.host.dispatcher.take_back(self.host.now):
            # It stands still, or is late although its beat is not overdue yet.
            taken, self.unread[worker_id] = self.unread[worker_id], []
            assert taken
            self.host.dispatcher.withdrawn_tcp(worker_id, len(taken))
            self.central += taken
        self.dispatch()

    @rule(data=st.data())
    @precondition(lambda self: self.host.pages)
    def die(self, data):
        worker_id = data.draw(st.sampled_from(sorted(self.host.pages)))
        unread = self.unread.pop(worker_id)
        self.closed += len(self.held.pop(worker_id))
        self.host.dispatcher.withdrawn_tcp(worker_id, len(unread))
        self.host.remove(worker_id)
        self.stalled.discard(worker_id)
        self.quiet_since.pop(worker_id, None)
        self.seen_quiet_at.pop(worker_id, None)
        self.central += unread
        self.dispatch()

    # What must hold

    @invariant()
    def no_connection_is_lost(self):
        placed = [*self.unread.values(), *self.held.values(), self.central]
        connections = [connection for place in placed for connection in place]
        assert len(set(connections)) == len(connections) == self.made - self.closed

    @invariant()
    def nobody_waits_beside_a_worker_that_could_take_it(self):
        if self.central:
            self.host.look_again()
            self.dispatch()
            if self.central:
                self.check_that_nobody_could()

    @invariant()
    def no_worker_has_more_unread_than_it_may(self):
        assert all(len(unread) <= UNADOPTED_LIMIT + 1 for unread in self.unread.values())


TestDispatchModel = pytest.mark.slow(DispatchModel.TestCase)
TestDispatchModel.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
