"""The life of one worker incarnation: every pair of the table, written out a second time."""

import itertools

import pytest

from asgiri.errors import LocalProtocolError
from asgiri.master.slots import ALIVE, TRANSITIONS, SlotInput, SlotState, advance

# Rows: the state before. Columns: what happens. "-": a bug of ours.
GRID = """
          spawned ready    failed   drained  drain    quit    abort    die    exited
empty     booting -        -        -        -        -       -        -      -
booting   -       ready    leaving  leaving  -        leaving aborting killed empty
ready     -       ready    leaving  leaving  draining leaving aborting killed empty
draining  -       draining leaving  leaving  -        leaving aborting killed empty
leaving   -       leaving  leaving  leaving  -        leaving -        killed empty
aborting  -       aborting aborting aborting -        -       -        killed empty
killed    -       killed   killed   killed   -        -       -        -      empty
"""
EXPECTED = {
    (SlotState(row[0]), event): None if cell == "-" else SlotState(cell)
    for row in map(str.split, GRID.strip().splitlines()[1:])
    for event, cell in zip(SlotInput, row[1:], strict=True)
}
PAIRS = list(itertools.product(SlotState, SlotInput))


@pytest.mark.parametrize(("state", "event"), PAIRS, ids=lambda value: value.name)
def test_each_pair_leads_where_the_grid_says(state, event):
    following = EXPECTED[state, event]
    if following is None:
        assert (state, event) not in TRANSITIONS
        with pytest.raises(LocalProtocolError, match=f"{event.value} while {state.value}"):
            advance(state, event)
    else:
        assert advance(state, event) is following


def test_the_grid_names_every_pair():
    assert set(EXPECTED) == set(PAIRS)


@pytest.mark.parametrize("state", sorted(ALIVE, key=lambda state: state.name))
def test_an_exit_and_any_report_of_a_living_worker_are_legal(state):
    reports = [SlotInput.REPORTED_READY, SlotInput.REPORTED_FAILED, SlotInput.REPORTED_DRAINED]
    for event in [SlotInput.EXITED, *reports]:
        advance(state, event)


GONE = [SlotState.DRAINING, SlotState.LEAVING, SlotState.ABORTING, SlotState.KILLED]


@pytest.mark.parametrize("state", GONE)
def test_no_way_leads_back_to_ready_once_a_worker_is_to_go(state):
    following = {after for (before, _), after in TRANSITIONS.items() if before is state}
    assert following <= {*GONE, SlotState.EMPTY}
