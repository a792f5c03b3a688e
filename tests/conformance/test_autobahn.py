"""Autobahn's quick cases; all of them: `python -m tests.conformance.autobahn`."""

from __future__ import annotations

import asyncio

import pytest

from tests.conformance.autobahn import QUICK, NotInstalled, find_python, install, judge
from tests.support.server import serve

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


async def test_no_quick_case_fails():
    try:
        python = await asyncio.to_thread(find_python)
        suite = await asyncio.to_thread(install, python)
    except NotInstalled as reason:
        pytest.skip(str(reason))
    async with serve(workers=2) as server:
        url = f"ws://127.0.0.1:{server.port}/"
        verdict = await asyncio.to_thread(judge, python, suite, url, QUICK)
    assert verdict.failures == []
    assert verdict.count == 259
