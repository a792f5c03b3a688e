"""Redirects to HTTPS, and the field that tells browsers to stay there."""

import pytest

from asgiri.config import HttpConfig
from asgiri.ipc.messages import ListenerInfo
from asgiri.worker.asgi.https import HttpsPolicy, with_https_policy


async def application(scope, receive, send):
    if scope["type"] != "lifespan":
        await send({"type": "http.response.start", "status": 200, "headers": [(b"x", b"y")]})
        await send({"type": "http.response.body", "body": b"served"})


async def answer_to(scope, **options):
    options = {"redirect_port": None, "max_age": 0.0} | options
    sent = []

    async def send(message):
        sent.append(message)

    await HttpsPolicy(application, **options)(scope, None, send)
    return sent


def http(scheme="http", *, host=b"example.org", path=b"/a%20b", query=b"", kind="http"):
    headers = [] if host is None else [(b"host", host)]
    return {
        "type": kind,
        "scheme": scheme,
        "headers": headers,
        "raw_path": path,
        "query_string": query,
    }


@pytest.mark.parametrize(
    ("scope", "port", "location"),
    [
        (http(), 443, b"https://example.org/a%20b"),
        (http(query=b"c=d"), 443, b"https://example.org/a%20b?c=d"),
        (http(host=b"example.org:8000"), 8443, b"https://example.org:8443/a%20b"),
        (http(host=b"[2001:db8::1]"), 8443, b"https://[2001:db8::1]:8443/a%20b"),
        (http(host=b"[2001:db8::1]:80"), 443, b"https://[2001:db8::1]/a%20b"),
        (http("ws", kind="websocket"), 443, b"wss://example.org/a%20b"),
    ],
)
async def test_who_comes_by_http_is_sent_to_https(scope, port, location):
    start, body = await answer_to(scope, redirect_port=port)
    assert start["type"].endswith("http.response.start")
    assert start["status"] == 308
    assert (b"location", location) in start["headers"]
    assert body["body"] == b""


@pytest.mark.parametrize("scope", [http(host=None), http(host=b"a b"), http(path=b"*")])
async def test_without_a_place_to_go_to_it_is_a_bad_request(scope):
    start, _ = await answer_to(scope, redirect_port=443)
    assert start["status"] == 400


@pytest.mark.parametrize("options", [{"redirect_port": 443}, {"max_age": 60.0}])
async def test_lifespans_are_nobodys_business(options):
    assert await answer_to({"type": "lifespan"}, **options) == []


async def test_over_https_browsers_are_told_to_stay():
    start, _ = await answer_to(http("https"), redirect_port=443, max_age=3600.0)
    assert start["status"] == 200
    assert start["headers"] == [(b"x", b"y"), (b"strict-transport-security", b"max-age=3600")]


async def test_over_http_they_are_not_told():
    start, _ = await answer_to(http("http"), max_age=3600.0)
    assert start["headers"] == [(b"x", b"y")]


async def test_an_applications_own_field_stays():
    async def own(scope, receive, send):
        field = (b"Strict-Transport-Security", b"max-age=1")
        await send({"type": "http.response.start", "status": 200, "headers": [field]})

    sent = []

    async def send(message):
        sent.append(message)

    await HttpsPolicy(own, redirect_port=None, max_age=60.0)(http("https"), None, send)
    assert len(sent[0]["headers"]) == 1


def test_who_asks_for_neither_pays_for_neither():
    assert with_https_policy(application, HttpConfig(), []) is application


def test_the_port_is_that_of_the_first_listener_with_tls():
    def listener(port, **options):
        return ListenerInfo(0, "tcp", "::", port, "", **{"tls": True, "insecure": False} | options)

    listeners = [listener(80, insecure=True), listener(443), listener(8443)]
    policy = with_https_policy(application, HttpConfig(redirect_https=True), listeners)
    assert isinstance(policy, HttpsPolicy)
    assert policy._port == 443
