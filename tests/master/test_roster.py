"""The supervisor's table: who may spawn when, who is ready, and in which order that is said."""

import pytest

from asgiri.config import WorkerConfig
from asgiri.errors import LocalProtocolError
from asgiri.master.actions import Drain, Kill, KillSignal, Level, Quit, Report, Spawn, Switch
from asgiri.master.roster import (
    FIRST_BACK_OFF,
    HEALTHY_AFTER,
    LONGEST_BACK_OFF,
    BackOff,
    Role,
    Roster,
)
from asgiri.master.slots import SlotInput

NOW = 1000.0
POLICY = WorkerConfig(count=2, graceful_timeout=30.0, boot_timeout=60.0)


def roster(*slots, role=Role.SERVING, ready=True, started=True, first_worker_id=1):
    table = Roster(first_worker_id=first_worker_id, random=lambda: 0.0)
    for slot in slots:
        table.spawn(slot, 1, role, policy=POLICY, now=NOW)
    for worker in table.all():
        if ready:
            worker.reported(SlotInput.REPORTED_READY, NOW)
    table.serving_generation = 1 if started else 0
    table.publish()
    table.take_actions()
    return table


def test_spawn_numbers_workers_and_has_the_first_of_a_generation_test_itself():
    table = roster(first_worker_id=(1 << 32) - 2)
    for slot, generation in enumerate([1, 1, 2, 1, 2, 3]):
        table.spawn(slot, generation, Role.SERVING, policy=POLICY, now=NOW)
    orders = table.take_actions()
    assert [order.worker_id for order in orders] == [(1 << 32) - 2, (1 << 32) - 1, 0, 1, 2, 3]
    assert [order.selftest for order in orders] == [True, False, True, False, False, True]
    assert orders[3] == Spawn(1, 3, 1, selftest=False)
    assert len(table) == 6
    assert table.slots() == set(range(6))


def test_nobody_is_published_before_the_start():
    table = roster(0, 1, started=False)
    table.publish()
    assert table.take_actions() == []
    table.serving_generation = 4
    table.publish()
    assert table.take_actions() == [Switch(4, (1, 2))]
    table.publish()
    assert table.take_actions() == []


def test_published_workers_serve_are_ready_and_stand_by_slot():
    table = roster(2, 0, 1)
    table.spawn(3, 1, Role.SERVING, policy=POLICY, now=NOW)
    table.spawn(0, 2, Role.CANDIDATE, policy=POLICY, now=NOW)
    candidate = table.all()[-1]
    candidate.reported(SlotInput.REPORTED_READY, NOW)
    table.take_actions()
    table.publish()
    assert table.take_actions() == []
    candidate.role = Role.SERVING
    table.get(2).role = Role.LEAVING
    table.publish()
    assert table.take_actions() == [Switch(1, (5, 3, 1))]


def test_workers_leave_the_ready_ones_together_before_any_is_told():
    table = roster(0, 1, 2)
    table.release([table.get(1), table.get(3)], NOW)
    assert table.take_actions() == [Switch(1, (2,)), Drain(1, 30.0), Drain(3, 30.0)]
    assert [worker.role for worker in table.all()] == [Role.LEAVING, Role.SERVING, Role.LEAVING]
    table.release([table.get(1)], NOW)
    assert table.take_actions() == []


def test_end_of_all_asks_or_does_not():
    table = roster(0, 1)
    table.end_all(NOW, ask=True)
    assert table.take_actions() == [Switch(1, ()), Quit(1), Quit(2)]
    table.end_all(NOW, ask=False)
    kills = [Kill(1, KillSignal.KILL), Kill(2, KillSignal.KILL)]
    assert table.take_actions() == kills


def test_holders_of_a_slot_are_who_serves_and_who_will():
    table = roster(0, 1)
    for role in (Role.REPLACEMENT, Role.CANDIDATE, Role.LEAVING):
        table.spawn(1, 1, role, policy=POLICY, now=NOW)
    assert [worker.worker_id for worker in table.holders(1)] == [2, 3]
    assert [worker.worker_id for worker in table.with_role(Role.CANDIDATE)] == [4]


def test_removed_worker_is_gone():
    table = roster(0)
    worker = table.get(1)
    table.remove(worker)
    assert table.get(1) is None
    assert len(table) == 0
    with pytest.raises(LocalProtocolError):
        table.remove(worker)


def test_deadlines_are_those_that_come():
    table = roster(0, ready=False)
    table.spawn(1, 1, Role.SERVING, policy=POLICY, now=NOW + 5)
    assert table.deadlines() == [NOW + 60, NOW + 65]
    table.get(1).reported(SlotInput.REPORTED_READY, NOW)
    assert table.deadlines() == [NOW + 65]


def test_report_is_about_a_worker():
    table = roster(0)
    table.report(Level.INFO, "did something", table.get(1))
    table.act(Quit(9))
    assert table.take_actions() == [Report(Level.INFO, "did something", 1), Quit(9)]
    assert table.take_actions() == []


# Back-off


def test_back_off_doubles_up_to_its_limit():
    worker = roster(0).get(1)
    back_off = BackOff()
    delays = [back_off.failed(worker, NOW) for _ in range(10)]
    assert delays == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10, 10, 10])
    assert back_off.not_before == NOW + LONGEST_BACK_OFF
    assert all(back_off.failed(worker, NOW) == LONGEST_BACK_OFF for _ in range(2000))


def test_back_off_begins_anew_after_good_service():
    worker = roster(0).get(1)
    back_off = BackOff()
    for _ in range(5):
        back_off.failed(worker, NOW)
    assert back_off.failed(worker, NOW + HEALTHY_AFTER - 0.1) > FIRST_BACK_OFF
    assert back_off.failed(worker, NOW + HEALTHY_AFTER) == FIRST_BACK_OFF


def test_back_off_counts_boots_that_never_came_to_an_end_as_failures():
    worker = roster(0, ready=False).get(1)
    back_off = BackOff()
    delays = [back_off.failed(worker, NOW + 1000 * number) for number in range(3)]
    assert delays == pytest.approx([0.1, 0.2, 0.4])


def test_slot_may_be_filled_when_its_back_off_is_over():
    table = roster(0, 1)
    assert table.may_spawn(0, NOW)
    table.back_off(0).failed(table.get(1), NOW)
    assert not table.may_spawn(0, NOW + 0.09)
    assert table.may_spawn(0, NOW + FIRST_BACK_OFF)
    assert table.may_spawn(1, NOW)
    assert table.back_offs_after(NOW) == [NOW + FIRST_BACK_OFF]
    assert table.back_offs_after(NOW + FIRST_BACK_OFF) == []
    table.forget_back_offs()
    assert table.may_spawn(0, NOW)


def test_another_roster_knows_the_same_workers():
    before = roster(0, 1)
    before.release([before.get(1)], NOW)
    after = Roster(first_worker_id=77, random=lambda: 0.0)
    after.restore(before.to_state(), POLICY, NOW)
    told = [(w.worker_id, w.slot, w.generation, w.role, w.state) for w in before.all()]
    assert [(w.worker_id, w.slot, w.generation, w.role, w.state) for w in after.all()] == told
    assert after.deadlines() == before.deadlines()
    after.spawn(1, 2, Role.SERVING, policy=POLICY, now=NOW)
    assert after.all()[-1].worker_id == 3
