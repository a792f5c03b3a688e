"""Headless Firefox over HTTP/3, with several workers: neqo, which nobody else uses."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Iterator

import pytest

from tests.conformance.bidi import Browser, firefox
from tests.support.apps import pattern
from tests.support.server import Server, ServerOptions
from tests.support.tools import require

pytestmark = pytest.mark.slow

NAVIGATED_BY = "return performance.getEntriesByType('navigation')[0].nextHopProtocol"
FETCHES = """
    const asked = [...Array(100)].map(() => fetch('/hello').then(answer => answer.text()));
    const texts = await Promise.all(asked);
    const download = await (await fetch('/bytes?size=5242880&part=5242880')).arrayBuffer();
    const upload = await fetch('/hash', {method: 'POST', body: download});
    const digest = (await upload.json()).sha256;
    const protocols = performance.getEntriesByType('resource').map(entry => entry.nextHopProtocol);
    return [texts.length, [...new Set(texts)], digest, [...new Set(protocols)]];
"""
WEBSOCKET = """
    const socket = new WebSocket(`wss://${location.host}/`), sent = '€'.repeat(50000);
    return await new Promise((resolve, reject) => {
        socket.onerror = () => reject('the handshake failed');
        socket.onopen = () => socket.send(sent);
        socket.onmessage = event => { socket.close(4000, 'bye'); this.same = event.data === sent; };
        socket.onclose = event => resolve([this.same, event.code, event.wasClean]);
    });
"""


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    # A browser that is gone may owe acknowledgements, which its worker would wait for.
    options = {"http3": True, "graceful_timeout": 3}
    server = Server.start(ServerOptions(workers=3, tls=True, options=options))
    yield server
    server.stop()


@pytest.fixture
async def browser(server: Server) -> AsyncIterator[Browser]:
    (program,) = require("FIREFOX", "firefox", "firefox-esr")
    settings = {
        "network.http.http3.enable": True,
        "network.http.http3.alt-svc-mapping-for-testing": f"localhost;h3=:{server.port}",
        "network.http.http3.disable_when_third_party_roots_found": False,
        "network.dns.disableIPv6": True,
        "network.proxy.type": 0,
    }
    async with firefox(program, settings) as browser:
        # The first page may come by TCP, while QUIC is being tried.
        protocol = ""
        while protocol != "h3":
            await browser.open(f"{server.url}/hello")
            protocol = await browser.evaluate(NAVIGATED_BY)
        yield browser


async def test_100_requests_at_once_5_mib_each_way_and_a_websocket(browser: Browser):
    digest = hashlib.sha256(pattern(5 << 20)).hexdigest()
    assert await browser.evaluate(FETCHES) == [100, ["Hello, world!"], digest, ["h3"]]
    # Beside the page's connection: Firefox does not know RFC 9220.
    assert await browser.evaluate(WEBSOCKET) == [True, 4000, True]
