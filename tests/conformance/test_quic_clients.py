"""HTTP/3 clients that are not aioquic."""

from __future__ import annotations

import re

import pytest

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


async def test_gtlsclient_changes_its_connection_id_and_address(server: Server):
    client = require("GTLSCLIENT", "gtlsclient")
    address = ("localhost", str(server.port), f"{server.url}/bytes?size=3000000")
    for change in ("--change-local-addr=50ms", "--nat-rebinding"):
        options = [change] if "=" in change else ["--change-local-addr=50ms", change]
        await run([*client, "--exit-on-all-streams-close", "--quiet", *options, *address])


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
