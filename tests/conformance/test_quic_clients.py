"""HTTP/3 clients that are not aioquic."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest

from tests.support.apps import pattern
from tests.support.server import Server
from tests.support.tools import require, run

pytestmark = pytest.mark.slow


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
