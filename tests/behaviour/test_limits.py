"""Limits that every version has: what is too much is refused, and the server serves on."""

from __future__ import annotations

import pytest

from tests.behaviour.conftest import Connect
from tests.behaviour.versions import Version
from tests.support.client import ClientConnection, ExchangeFailed, read_response, request
from tests.support.remote_app import RemoteApps


async def assert_refused(connection: ClientConnection, fields: list[tuple[str, str]]) -> None:
    """431, or an error of the stream or connection where the version has no better way."""
    try:
        exchange = await connection.start("GET", "/hello", fields)
        response = await read_response(exchange)
    except ExchangeFailed:
        return
    assert response.status == 431


async def test_a_head_of_reasonable_size_is_served(connection: ClientConnection):
    fields = [(f"x-{number}", "v" * 200) for number in range(90)]
    assert (await request(connection, "GET", "/hello", fields)).status == 200


@pytest.mark.slow
async def test_too_large_a_field_is_refused(connect: Connect):
    await assert_refused(await connect(), [("x-large", "v" * 60_000), ("x-more", "v" * 10_000)])
    assert (await request(await connect(), "GET", "/hello")).status == 200


@pytest.mark.slow
async def test_too_many_fields_are_refused(connect: Connect):
    await assert_refused(await connect(), [(f"x-{number}", "v" * 10) for number in range(5_000)])
    assert (await request(await connect(), "GET", "/hello")).status == 200


@pytest.mark.slow
async def test_too_long_a_path_is_refused(connect: Connect):
    connection = await connect()
    try:
        exchange = await connection.start("GET", "/" + "p" * 60_000, [("x-more", "v" * 10_000)])
        response = await read_response(exchange)
    except ExchangeFailed:
        pass
    else:
        assert response.status in (414, 431)
    assert (await request(await connect(), "GET", "/hello")).status == 200


async def test_more_streams_than_allowed_wait_or_are_refused_one_by_one(
    connect: Connect, apps: RemoteApps, version: Version
):
    if not version.multiplexed:
        pytest.skip("one exchange at a time")
    connection = await connect()
    exchanges = [await connection.start("GET", "/hello") for _ in range(64)]
    for exchange in exchanges:
        assert (await read_response(exchange)).status == 200
