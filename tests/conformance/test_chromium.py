"""Headless Chromium over HTTP/2 and 3, with several workers."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import tempfile
from collections.abc import AsyncIterator

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.conformance.webdriver import Browser, browser
from tests.support.apps import pattern
from tests.support.certificates import certificates
from tests.support.server import Server, serve
from tests.support.tools import require

pytestmark = pytest.mark.slow


def key_hash() -> str:
    """How Chromium names a key to trust: base64 of the SHA-256 of the SPKI."""
    certificate = x509.load_pem_x509_certificate(certificates().certfile.read_bytes())
    info = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return base64.b64encode(hashlib.sha256(info).digest()).decode()


@contextlib.asynccontextmanager
async def chromium(server: Server, *more: str) -> AsyncIterator[Browser]:
    driver = require("CHROMEDRIVER", "chromedriver")
    (binary,) = require("CHROMIUM", "chromium", "chromium-browser", "google-chrome")
    with tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as profile:
        arguments = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-proxy-server",
            f"--user-data-dir={profile}",
            # Told to use QUIC, Chromium tries ::1 for localhost and no second address.
            "--host-resolver-rules=MAP localhost 127.0.0.1",
            f"--ignore-certificate-errors-spki-list={key_hash()}",
            *more,
        ]
        async with browser(driver, binary, arguments) as running:
            yield running


def over_quic(server: Server) -> str:
    return f"--origin-to-force-quic-on=localhost:{server.port}"


@pytest.fixture
async def demo() -> AsyncIterator[Server]:
    async with serve("asgiri.demo:app", workers=3, tls=True, http3=True) as server:
        yield server


@pytest.fixture
async def page(demo: Server) -> AsyncIterator[Browser]:
    """The demo's page, loaded over HTTP/3."""
    async with chromium(demo, over_quic(demo)) as running:
        await running.open(f"{demo.url}/")
        yield running


async def test_the_demo_page_is_loaded_over_http_3(page: Browser):
    protocol = "return performance.getEntriesByType('navigation')[0].nextHopProtocol"
    assert await page.evaluate(protocol) == "h3"
    assert "HTTP/3" in await page.evaluate("return document.body.innerText")


async def test_fetches_of_a_page_go_over_http_3(page: Browser):
    script = """
        const answers = await Promise.all(
            [...Array(20).keys()].map(n => fetch('/echo', {method: 'POST', body: 'x'.repeat(n)})));
        const texts = await Promise.all(answers.map(answer => answer.text()));
        const protocols = performance.getEntriesByType('resource')
            .filter(entry => entry.name.endsWith('/echo')).map(entry => entry.nextHopProtocol);
        return [texts.map(text => text.length), [...new Set(protocols)]];
    """
    lengths, protocols = await page.evaluate(script)
    assert lengths == list(range(20))
    assert protocols == ["h3"]


MUCH = """
    const asked = [...Array(100)].map(() => fetch('/hello').then(answer => answer.text()));
    const texts = await Promise.all(asked);
    const download = await (await fetch('/bytes?size=5242880&part=5242880')).arrayBuffer();
    const upload = await fetch('/hash', {method: 'POST', body: download});
    const protocols = performance.getEntriesByType('resource').map(entry => entry.nextHopProtocol);
    const digest = (await upload.json()).sha256;
    return [texts.length, [...new Set(texts)], digest, [...new Set(protocols)]];
"""


async def test_100_requests_at_once_and_5_mib_each_way(server: Server):
    async with chromium(server, over_quic(server)) as running:
        await running.open(f"{server.url}/hello")
        digest = hashlib.sha256(pattern(5 << 20)).hexdigest()
        assert await running.evaluate(MUCH) == [100, ["Hello, world!"], digest, ["h3"]]


WEBSOCKET = """
    const socket = new WebSocket(`wss://${location.host}/version`, ['chat']);
    const messages = [], sent = ['hello', '€'.repeat(50000)];
    return await new Promise((resolve, reject) => {
        socket.onerror = () => reject('the handshake failed');
        socket.onmessage = event => {
            messages.push(event.data);
            if (messages.length <= sent.length) socket.send(sent[messages.length - 1]);
            else socket.close(4000, 'bye');
        };
        socket.onclose = event => resolve({
            version: messages[0],
            echoed: messages.slice(1).join() === sent.join(),
            protocol: socket.protocol,
            compressed: socket.extensions.startsWith('permessage-deflate'),
            code: event.code, clean: event.wasClean,
        });
    });
"""


@pytest.mark.parametrize("version", ["2", "3"])
async def test_a_websocket_goes_over_the_connection_of_its_page(version: str):
    async with serve(workers=3, tls=True, http3=version == "3") as server:
        # Chromium knows RFC 9220, and does not use it unasked.
        http3 = (over_quic(server), "--enable-features=EnableWebsocketsOverHttp3")
        async with chromium(server, *(http3 if version == "3" else ())) as running:
            await running.open(f"{server.url}/hello")
            assert await running.evaluate(WEBSOCKET) == {
                "version": version,
                "echoed": True,
                "protocol": "chat",
                "compressed": True,
                "code": 4000,
                "clean": True,
            }
