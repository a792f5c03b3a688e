"""Who is believed what about the client before a proxy."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgiri.ipc.scoreboard import Refusal
from asgiri.worker.asgi.forwarded import (
    MAX_HOPS,
    Forwarded,
    ForwardedReader,
    parse_forwarded,
    parse_node,
)
from asgiri.worker.asgi.scope import ScopeBuilder
from asgiri.worker.asgi.trust import TrustedPeers
from asgiri.worker.protocol.events import RequestReceived

PROXIES = ("10.0.0.0/8", "::1")


class Counted(list):
    def __call__(self, reason):
        self.append(reason)


def read(headers, *, trusted=PROXIES, family="x-forwarded"):
    refused = Counted()
    reader = ForwardedReader(TrustedPeers(trusted), family, refused)
    result = reader.read_untrusted([(name.encode(), value.encode()) for name, value in headers])
    assert set(refused) <= {Refusal.BAD_PROXY_HEADER}
    return result, len(refused)


FOR = "x-forwarded-for"


@pytest.mark.parametrize(
    ("value", "client", "malformed"),
    [
        ("192.0.2.1", ("192.0.2.1", 0), 0),
        ("192.0.2.1:4711", ("192.0.2.1", 4711), 0),
        ("2001:db8::1", ("2001:db8::1", 0), 0),
        ("[2001:DB8::1]:80", ("2001:db8::1", 80), 0),
        ("203.0.113.9, 192.0.2.1", ("192.0.2.1", 0), 0),
        ("203.0.113.9, 192.0.2.1, 10.1.2.3", ("192.0.2.1", 0), 0),
        ("192.0.2.1,,10.1.2.3 ,", ("192.0.2.1", 0), 0),
        ("10.0.0.1, 10.0.0.2", ("10.0.0.1", 0), 0),
        ("nonsense", None, 1),
        ("192.0.2.1, nonsense", None, 1),
        ("nonsense, 10.0.0.1", ("10.0.0.1", 0), 1),
        ("192.0.2.1:99999", None, 1),
        ("192.0.2.1\x01", None, 1),
        ("192.0.2.300", None, 1),
        ("", None, 0),
    ],
)
def test_the_client_is_the_last_hop_that_is_no_proxy(value, client, malformed):
    assert read([(FOR, value)]) == (Forwarded(client), malformed)


def test_several_fields_are_one_list():
    headers = [(FOR, "203.0.113.9"), (FOR, "192.0.2.1, 10.0.0.1")]
    assert read(headers)[0].client == ("192.0.2.1", 0)


def test_if_everybody_is_trusted_the_first_is_the_client():
    assert read([(FOR, "203.0.113.9, 192.0.2.1")], trusted=["*"])[0].client == ("203.0.113.9", 0)


def test_of_endless_lists_only_the_end_is_read():
    hops = ", ".join(["10.0.0.1"] * 2 * MAX_HOPS)
    assert read([(FOR, f"192.0.2.1, {hops}")])[0].client == ("10.0.0.1", 0)


@pytest.mark.parametrize(
    ("proto", "scheme", "malformed"),
    [
        ("https", "https", 0),
        ("HTTP", "http", 0),
        ("wss", "https", 0),
        ("http, https", "https", 0),
        ("javascript", "", 1),
    ],
)
def test_scheme(proto, scheme, malformed):
    assert read([("x-forwarded-proto", proto)]) == (Forwarded(scheme=scheme), malformed)


def test_values_of_proxies_that_append_belong_to_the_hop_in_the_same_place():
    headers = [
        (FOR, "203.0.113.9, 192.0.2.1, 10.0.0.1"),
        ("x-forwarded-proto", "http, https, http"),
        ("x-forwarded-host", "evil.example, good.example, inner.example"),
    ]
    result, _ = read(headers)
    assert (result.client, result.scheme, result.host) == (
        ("192.0.2.1", 0),
        "https",
        b"good.example",
    )


@pytest.mark.parametrize(
    ("headers", "host", "malformed"),
    [
        ({"host": "good.example"}, b"good.example", 0),
        ({"host": "good.example:81", "port": "82"}, b"good.example:81", 0),
        ({"host": "good.example", "port": "8443"}, b"good.example:8443", 0),
        ({"host": "good.example:", "port": "8443"}, b"good.example:8443", 0),  # by fuzzing
        ({"host": "good.example", "port": "443", "proto": "https"}, b"good.example", 0),
        ({"host": "good.example", "port": "0"}, b"good.example", 1),
        ({"host": "[2001:db8::1]", "port": "81"}, b"[2001:db8::1]:81", 0),
        ({"host": "bad host"}, b"", 1),
        ({"host": "a@b"}, b"", 1),
    ],
)
def test_host_and_port(headers, host, malformed):
    result, count = read([(f"x-forwarded-{name}", value) for name, value in headers.items()])
    assert (result.host, count) == (host, malformed)


@pytest.mark.parametrize(
    ("value", "prefix", "malformed"),
    [
        ("/api", "/api", 0),
        ("/api/v1/", "/api/v1", 0),
        ("/", "", 0),
        ("//evil.example", "", 1),
        ("api", "", 1),
        ("/a b", "", 1),
        ("/a?b", "", 1),
    ],
)
def test_prefix(value, prefix, malformed):
    assert read([("x-forwarded-prefix", value)]) == (Forwarded(prefix=prefix), malformed)


@pytest.mark.parametrize(
    ("value", "expected", "malformed"),
    [
        ("for=192.0.2.1", Forwarded(("192.0.2.1", 0)), 0),
        (
            'For="[2001:db8::1]:4711";Proto=https;Host=good.example',
            Forwarded(("2001:db8::1", 4711), "https", b"good.example"),
            0,
        ),
        (
            "for=203.0.113.9;proto=http, for=192.0.2.1;proto=https;by=10.0.0.9, for=10.0.0.1",
            Forwarded(("192.0.2.1", 0), "https"),
            0,
        ),
        (r'host="good\.example"', Forwarded(None, "", b"good.example"), 1),
        ("for=_hidden;proto=https", Forwarded(None, "https"), 1),
        ("for=192.0.2.1, for=unknown", Forwarded(None), 1),
        ("for=192.0.2.1;for=192.0.2.2", Forwarded(), 1),
        ('for="192.0.2.1', Forwarded(), 1),
        ("for=192.0.2.1,", Forwarded(), 1),
        ("for=192.0.2.1 proto=http", Forwarded(), 1),
    ],
)  # fmt: skip
def test_forwarded(value, expected, malformed):
    assert read([("forwarded", value)], family="forwarded") == (expected, malformed)


@pytest.mark.parametrize("family", ["forwarded", "x-forwarded"])
def test_the_other_family_is_not_read(family):
    headers = {"forwarded": "for=192.0.2.1;proto=https", FOR: "192.0.2.2"}
    del headers["forwarded" if family == "forwarded" else FOR]
    assert read(list(headers.items()), family=family) == (Forwarded(), 0)


@given(
    st.sampled_from(["forwarded", "x-forwarded"]),
    st.lists(
        st.tuples(
            st.sampled_from(
                [b"forwarded"]
                + [
                    b"x-forwarded-" + name
                    for name in (b"for", b"proto", b"host", b"port", b"prefix")
                ]
            ),
            st.one_of(
                st.binary(max_size=60),
                st.text('for=;,"\\[]:.0123456789ab/ ', max_size=60).map(str.encode),
            ),
        ),
        max_size=6,
    ),
)
def test_nothing_makes_it_raise(family, headers):
    reader = ForwardedReader(TrustedPeers(PROXIES), family, Counted())
    result = reader.read_untrusted(headers)
    assert result.scheme in ("", "http", "https")
    assert result.client is None or parse_node(result.client[0].encode()) is not None


@given(st.binary(max_size=80))
def test_elements_have_no_empty_names(value):
    for element in parse_forwarded(value) or []:
        assert all(element)


# In scopes


def connection(client=("10.0.0.1", 5000), *, root_path="", secure=False):
    reader = ForwardedReader(TrustedPeers(PROXIES), "x-forwarded", Counted())
    builder = ScopeBuilder(root_path=root_path, state={}, forwarded=reader)
    return builder.connection(client=client, server=("10.0.0.2", 80), secure=secure)


def request(*fields, target=b"/a"):
    headers = [(b"host", b"inner"), *fields]
    return RequestReceived(1, "GET", target, headers, "1.1", ended=True)


EVERYTHING = (
    (b"x-forwarded-for", b"192.0.2.1"),
    (b"x-forwarded-proto", b"https"),
    (b"x-forwarded-host", b"good.example"),
    (b"x-forwarded-prefix", b"/api"),
)


def test_a_scope_says_what_the_proxy_says():
    scope = connection(root_path="/app").http_scope(request(*EVERYTHING))
    assert scope["client"] == ("192.0.2.1", 0)
    assert scope["scheme"] == "https"
    assert scope["headers"] == [(b"host", b"good.example"), *EVERYTHING]
    assert (scope["root_path"], scope["path"], scope["raw_path"]) == (
        "/api/app",
        "/api/app/a",
        b"/api/app/a",
    )


def test_a_websockets_scope_does_too():
    scope = connection().websocket_scope(request(*EVERYTHING), [])
    assert (scope["scheme"], scope["client"]) == ("wss", ("192.0.2.1", 0))


def test_who_is_no_proxy_is_not_believed():
    scope = connection(client=("192.0.2.66", 5000)).http_scope(request(*EVERYTHING))
    assert (scope["client"], scope["scheme"]) == (("192.0.2.66", 5000), "http")
    assert scope["headers"][0] == (b"host", b"inner")
    assert (scope["root_path"], scope["path"]) == ("", "/a")


def test_each_request_of_a_connection_is_read():
    scopes = connection()
    clients = [b"192.0.2.1", b"192.0.2.2", None, b"192.0.2.1"]
    found = []
    for client in clients:
        fields = [] if client is None else [(b"x-forwarded-for", client)]
        found.append(scopes.http_scope(request(*fields))["client"])
    assert found == [("192.0.2.1", 0), ("192.0.2.2", 0), ("10.0.0.1", 5000), ("192.0.2.1", 0)]


def test_http_1_0_behind_a_proxy():
    event = request(*EVERYTHING)
    event.http_version = "1.0"
    assert connection().http_scope(event)["client"] == ("192.0.2.1", 0)
