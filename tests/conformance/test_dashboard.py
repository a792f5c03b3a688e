"""The dashboard in headless Chromium: live while every worker is blocked, and through a reload."""

from __future__ import annotations

import asyncio
import signal

import pytest

from tests.conformance.test_chromium import chromium
from tests.support.admin import Admin
from tests.support.fetch import fetch
from tests.support.server import serve

pytestmark = pytest.mark.slow

WAIT = """
    const wanted = (%s);
    for (let looks = 0; looks < 400; looks++) {
        if (wanted()) return true;
        await new Promise(done => setTimeout(done, 50));
    }
    return document.body.innerText;
"""
STATES = "[...document.querySelectorAll('.state')].map(state => state.textContent)"


def until(condition: str) -> str:
    return WAIT % f"() => {condition}"


async def test_the_dashboard_is_live_when_nobody_else_is_and_through_a_reload():
    async with serve(workers=2, admin="127.0.0.1:0") as server, chromium(server) as page:
        admin = Admin(server)
        await admin.wait_ready()
        await page.open(f"http://{admin.host}:{admin.port}/")
        assert await page.evaluate(until(f"{STATES}.join() === 'ready,ready'")) is True
        blocked = [asyncio.create_task(fetch(server, "/block?milliseconds=5000"))]
        await admin.wait_status(lambda status: status["counts"]["blocked"] == 1)
        blocked.append(asyncio.create_task(fetch(server, "/block?milliseconds=4000")))
        both = f"{STATES}.filter(state => state.startsWith('blocked for')).length === 2"
        assert await page.evaluate(until(both)) is True
        for each in blocked:
            await each
        server.send_signal(signal.SIGHUP)
        second = "document.getElementById('about').textContent.startsWith('generation 2 ')"
        assert await page.evaluate(until(f"{second} && {STATES}.join() === 'ready,ready'")) is True
        width = "return document.documentElement.scrollWidth <= innerWidth"
        assert await page.evaluate(width) is True
        outside = "return performance.getEntriesByType('resource').map(entry => entry.name)"
        names = await page.evaluate(outside)
        assert names
        assert all(name == f"http://{admin.host}:{admin.port}/status" for name in names)
