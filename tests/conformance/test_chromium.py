"""Headless Chromium over HTTP/3, with several workers."""

from __future__ import annotations

import base64
import hashlib
import tempfile
from collections.abc import AsyncIterator

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.conformance.webdriver import Browser, browser
from tests.support.certificates import certificates
from tests.support.server import Server, serve
from tests.support.tools import require

pytestmark = pytest.mark.slow


def key_hash() -> str:
    """How Chromium names a key to trust: base64 of the SHA-256 of the SPKI."""
    certificate = x509.load_pem_x509_certificate(certificates().certfile.read_bytes())
    info = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return base64.b64encode(hashlib.sha256(info).digest()).decode()


@pytest.fixture
async def demo() -> AsyncIterator[Server]:
    async with serve("asgiri.demo:app", workers=3, tls=True, http3=True) as server:
        yield server


@pytest.fixture
async def chromium(demo: Server) -> AsyncIterator[Browser]:
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
            f"--origin-to-force-quic-on=localhost:{demo.port}",
            f"--ignore-certificate-errors-spki-list={key_hash()}",
        ]
        async with browser(driver, binary, arguments) as running:
            yield running


async def test_the_demo_page_is_loaded_over_http_3(demo: Server, chromium: Browser):
    await chromium.open(f"{demo.url}/")
    protocol = "return performance.getEntriesByType('navigation')[0].nextHopProtocol"
    assert await chromium.evaluate(protocol) == "h3"
    assert "HTTP/3" in await chromium.evaluate("return document.body.innerText")


async def test_fetches_of_a_page_go_over_http_3(demo: Server, chromium: Browser):
    await chromium.open(f"{demo.url}/")
    script = """
        const answers = await Promise.all(
            [...Array(20).keys()].map(n => fetch('/echo', {method: 'POST', body: 'x'.repeat(n)})));
        const texts = await Promise.all(answers.map(answer => answer.text()));
        const protocols = performance.getEntriesByType('resource')
            .filter(entry => entry.name.endsWith('/echo')).map(entry => entry.nextHopProtocol);
        return [texts.map(text => text.length), [...new Set(protocols)]];
    """
    lengths, protocols = await chromium.evaluate(script)
    assert lengths == list(range(20))
    assert protocols == ["h3"]
