"""How much of request bodies may wait for the application."""

from hypothesis import given
from hypothesis import strategies as st

from asgiri.config import FlowConfig
from asgiri.worker.transport.flow import ReceiveBacklog

CONFIG = FlowConfig(high_water=2048, low_water=512)


def test_backlog_is_full_from_the_high_mark_down_to_the_low_one():
    backlog = ReceiveBacklog(CONFIG)
    backlog.add(2047)
    assert not backlog.is_full
    backlog.add(1)
    assert backlog.is_full
    backlog.take(1535)
    assert backlog.is_full
    backlog.take(1)
    assert not backlog.is_full
    backlog.add(1000)
    assert not backlog.is_full


@given(st.lists(st.integers(-3000, 3000)))
def test_reader_goes_on_once_everything_was_taken(changes):
    backlog = ReceiveBacklog(CONFIG)
    for change in changes:
        if change > 0:
            backlog.add(change)
        else:
            backlog.take(min(-change, backlog.size))
    backlog.take(backlog.size)
    assert backlog.size == 0
    assert not backlog.is_full
