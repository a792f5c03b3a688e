"""Settings for the tests of workers."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import Callable, Mapping

import pytest

from tests.support.worker import DirectLoop


@pytest.hookimpl
def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Run modules with ON_BOTH_EVENT_LOOPS twice: transports of uvloop and asyncio differ. Those
    with WITHOUT_TRANSPORTS_TOO run once more, with connections that begin without one.
    """
    factories: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
        "asyncio": asyncio.new_event_loop
    }
    module = getattr(item, "module", None)
    if getattr(module, "ON_BOTH_EVENT_LOOPS", False) and importlib.util.find_spec("uvloop"):
        import uvloop

        factories["uvloop"] = uvloop.new_event_loop
    if getattr(module, "WITHOUT_TRANSPORTS_TOO", False):
        factories["direct"] = DirectLoop
    return factories
