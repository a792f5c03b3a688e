"""One timer sweeps everybody's deadlines."""

import asyncio

from asgiri.worker.transport.deadlines import NEVER, Deadlines


class Member:
    def __init__(self, deadline, then=lambda: None):
        self.deadline = deadline
        self.reached = []
        self.event = asyncio.Event()
        self._then = then

    def deadline_reached(self, now):
        self.reached.append(now)
        self.deadline = NEVER
        self.event.set()
        self._then()


def sweep(clock, *members):
    """Deadlines on the running loop, with a clock of the test's own."""
    deadlines = Deadlines(asyncio.get_running_loop(), lambda: clock[0], period=0.001)
    for member in members:
        deadlines.add(member)
    return deadlines


async def test_member_is_told_when_its_deadline_has_passed_and_not_before():
    clock = [10.0]
    early, late, never = Member(10.0), Member(11.0), Member(NEVER)
    deadlines = sweep(clock, early, late, never)
    await early.event.wait()
    assert early.reached == [10.0]
    assert not late.reached
    clock[0] = 11.5
    await late.event.wait()
    assert late.reached == [11.5]
    assert not never.reached
    deadlines.close()


async def test_member_may_set_another_deadline():
    clock = [10.0]
    member = Member(10.0)
    deadlines = sweep(clock, member)
    await member.event.wait()
    member.event.clear()
    member.deadline = clock[0] = 12.0
    await member.event.wait()
    assert member.reached == [10.0, 12.0]
    deadlines.close()


async def test_member_may_leave_and_take_others_along_while_it_is_told():
    clock = [10.0]
    members = [Member(10.0), Member(10.0)]
    deadlines = sweep(clock, *members)

    def leave():
        for member in members:
            deadlines.discard(member)

    for member in members:
        member._then = leave
    await asyncio.gather(*(member.event.wait() for member in members))
    assert not deadlines._members
    deadlines.close()


async def test_closed_deadlines_tell_nobody():
    clock = [10.0]
    member, other = Member(10.0), Member(10.0)
    sweep(clock, member).close()
    running = sweep(clock, other)
    await other.event.wait()
    assert not member.reached
    running.close()
