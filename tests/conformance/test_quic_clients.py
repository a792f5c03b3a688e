"""HTTP/3 clients that are not aioquic: a page, 5 MiB each way, 100 requests at once.

curl's downloads and uploads are in `test_curl`, Chromium and its WebSockets in `test_chromium`.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.support.apps import pattern
from tests.support.certificates import certificates
from tests.support.server import Server
from tests.support.tools import require, run

pytestmark = pytest.mark.slow

CONTENT = pattern(5 << 20)
DIGEST = hashlib.sha256(CONTENT).hexdigest()
AT_ONCE = 100


def client_of(module: str) -> Any:
    return pytest.importorskip(module, reason=f"{module} is missing")


async def test_curl_asks_100_times_at_once(server: Server):
    curl = [*require("CURL_HTTP3", "curl", shows="HTTP3"), "--silent", "--show-error"]
    at_once = ("--parallel", "--parallel-immediate", f"--parallel-max={AT_ONCE}")
    written = ("--write-out", "%{http_version} %{http_code}\n", "--output", "/dev/null")
    urls = [part for _ in range(AT_ONCE) for part in (*written[2:], f"{server.url}/hello")]
    output = await run([*curl, "--insecure", "--http3-only", *at_once, *written[:2], *urls])
    assert output.decode().split("\n")[:-1] == ["3 200"] * AT_ONCE


async def test_curl_cffi(server: Server):
    """ngtcp2 and BoringSSL."""
    requests = client_of("curl_cffi.requests")
    authority = str(certificates().authority)
    async with requests.AsyncSession(http_version="v3only", verify=authority) as client:
        response = await client.post(f"{server.url}/hash", data=CONTENT)
        assert (response.json()["sha256"], response.http_version) == (DIGEST, 30)
        response = await client.get(f"{server.url}/bytes?size={5 << 20}&part={5 << 20}")
        assert response.content == CONTENT
        answers = await asyncio.gather(*(client.get(f"{server.url}/hello") for _ in range(AT_ONCE)))
        assert {(each.text, each.http_version) for each in answers} == {("Hello, world!", 30)}


async def test_impit(server: Server):
    """quinn and h3, told of HTTP/3 by alt-svc."""
    impit = client_of("impit")
    client = impit.AsyncClient(http3=True, verify=False, timeout=60)
    response = await client.get(f"{server.url}/hello")
    while response.http_version != "HTTP/3":
        response = await client.get(f"{server.url}/hello")
    response = await client.post(f"{server.url}/hash", content=CONTENT)
    assert (response.json()["sha256"], response.http_version) == (DIGEST, "HTTP/3")
    response = await client.get(f"{server.url}/bytes?size={5 << 20}&part={5 << 20}")
    assert response.content == CONTENT
    answers = await asyncio.gather(*(client.get(f"{server.url}/hello") for _ in range(AT_ONCE)))
    assert {each.text for each in answers} == {"Hello, world!"}


async def test_niquests(server: Server):
    """qh3, of which quiche's rules of flow control are."""
    niquests = client_of("niquests")
    known = {("localhost", server.port): ("localhost", server.port)}
    only = {"disable_http1": True, "disable_http2": True, "quic_cache_layer": known}
    async with niquests.AsyncSession(**only) as session:
        session.verify = str(certificates().authority)
        session.trust_env = False
        response = await session.post(f"{server.url}/hash", data=CONTENT)
        assert (response.json()["sha256"], response.http_version) == (DIGEST, 30)
        response = await session.get(f"{server.url}/bytes?size={5 << 20}&part={5 << 20}")
        assert response.content == CONTENT
        answers = await asyncio.gather(
            *(session.get(f"{server.url}/hello") for _ in range(AT_ONCE))
        )
        assert {(each.text, each.http_version) for each in answers} == {("Hello, world!", 30)}


async def test_gtlsclient_sends_and_reads_5_mib(server: Server, tmp_path: Path):
    client = require("GTLSCLIENT", "gtlsclient")
    content = tmp_path / "content"
    content.write_bytes(CONTENT)
    downloads = tmp_path / "downloads"
    downloads.mkdir()
    options = [f"--data={content}", f"--download={downloads}", "--quiet"]
    address = ("localhost", str(server.port), f"{server.url}/echo")
    await run([*client, "--exit-on-all-streams-close", *options, *address])
    assert (downloads / "echo").read_bytes() == CONTENT


async def test_gtlsclient_asks_100_times_at_once(server: Server):
    client = require("GTLSCLIENT", "gtlsclient")
    address = ("localhost", str(server.port), f"{server.url}/hello")
    options = ("--exit-on-all-streams-close", "--quiet", "-n", str(AT_ONCE))
    await run([*client, *options, *address])


async def test_gtlsclient_reads_a_page(server: Server):
    client = require("GTLSCLIENT", "gtlsclient")
    address = ("localhost", str(server.port), f"{server.url}/hello")
    await run([*client, "--exit-on-all-streams-close", "--quiet", *address])


async def test_gtlsclient_reads_ten_streams_through_loss(server: Server):
    client = require("GTLSCLIENT", "gtlsclient")
    loss = ("--tx-loss=0.05", "--rx-loss=0.05")
    address = ("localhost", str(server.port), f"{server.url}/bytes?size=200000")
    await run([*client, "--exit-on-all-streams-close", "--quiet", "-n", "10", *loss, *address])


async def test_gtlsclient_migrates_in_the_middle_of_a_download(server: Server, tmp_path: Path):
    client = require("GTLSCLIENT", "gtlsclient")
    options = ["--change-local-addr=20ms", f"--download={tmp_path}", "--timeout=5s"]
    address = ("localhost", str(server.port), f"{server.url}/bytes?size=3000000")
    await run([*client, "--exit-on-all-streams-close", "--quiet", *options, *address])
    (file,) = tmp_path.iterdir()
    assert file.stat().st_size == 3_000_000


async def test_gtlsclient_is_rebound_in_the_middle_of_an_upload(server: Server, tmp_path: Path):
    """Not of a download: its rebound client hears nothing and says nothing, so nobody can know."""
    client = require("GTLSCLIENT", "gtlsclient")
    content = tmp_path / "content"
    content.write_bytes(pattern(3_000_000))
    downloads = tmp_path / "downloads"
    downloads.mkdir()
    options = ["--change-local-addr=20ms", "--nat-rebinding", "--timeout=5s"]
    options += [f"--data={content}", f"--download={downloads}"]
    address = ("localhost", str(server.port), f"{server.url}/hash")
    await run([*client, "--exit-on-all-streams-close", "--quiet", *options, *address])
    told = json.loads((downloads / "hash").read_bytes())
    assert told["sha256"] == hashlib.sha256(pattern(3_000_000)).hexdigest()


async def test_gtlsclient_speaks_quic_version_2(server: Server):
    client = require("GTLSCLIENT", "gtlsclient")
    address = ("localhost", str(server.port), f"{server.url}/hello")
    await run([*client, "--exit-on-all-streams-close", "--quiet", "--version=v2draft", *address])


async def test_h2load_sees_no_failure_over_http_3(server: Server):
    """20,000 requests, 16 connections, 8 streams each."""
    h2load = require("H2LOAD_HTTP3", "h2load-h3")
    counts = ("-n20000", "-c16", "-m8", "-t1")
    url = f"https://127.0.0.1:{server.port}/hello"
    output = (await run([*h2load, "--h3", *counts, url])).decode()
    assert re.search(r"20000 succeeded, 0 failed, 0 errored, 0 timeout", output), output


async def test_h2load_sees_no_failure_over_http_2(server: Server):
    """50,000 requests, 32 connections, 32 streams each."""
    h2load = require("H2LOAD", "h2load")
    counts = ("-n50000", "-c32", "-m32", "-t1")
    url = f"https://127.0.0.1:{server.port}/hello"
    output = (await run([*h2load, *counts, url])).decode()
    assert re.search(r"50000 succeeded, 0 failed, 0 errored, 0 timeout", output), output
