"""Scopes say what the specification wants, for every version, and belong to one exchange."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgiri.worker.asgi.scope import ScopeBuilder, accepts_trailers, decode_path
from asgiri.worker.protocol.events import RequestReceived


def request(target=b"/", *, method="GET", version="1.1", headers=()):
    return RequestReceived(
        1, method, target, [(b"host", b"example"), *headers], version, ended=True
    )


def connection(*, root_path="", state=None, asgi_version="3.0", **options):
    builder = ScopeBuilder(
        root_path=root_path, state={} if state is None else state, asgi_version=asgi_version
    )
    options = {
        "client": ("192.0.2.1", 5000),
        "server": ("192.0.2.2", 80),
        "secure": False,
    } | options
    return builder.connection(**options)


def test_http_scope_has_every_key_of_the_specification():
    headers = [(b"accept", b"*/*")]
    scope = connection().http_scope(request(b"/a%20b/c?d=%20e", method="PUT", headers=headers))
    assert scope == {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.5"},
        "http_version": "1.1",
        "method": "PUT",
        "scheme": "http",
        "path": "/a b/c",
        "raw_path": b"/a%20b/c",
        "query_string": b"d=%20e",
        "root_path": "",
        "headers": [(b"host", b"example"), (b"accept", b"*/*")],
        "client": ("192.0.2.1", 5000),
        "server": ("192.0.2.2", 80),
        "state": {},
        "extensions": {
            "http.response.pathsend": {},
            "http.response.zerocopysend": {},
            "http.response.early_hint": {},
        },
    }


def test_websocket_scope_has_every_key_of_the_specification():
    scope = connection(secure=True).websocket_scope(request(b"/ws?x", version="2"), ["chat"])
    assert scope == {
        "type": "websocket",
        "asgi": {"version": "3.0", "spec_version": "2.5"},
        "http_version": "2",
        "scheme": "wss",
        "path": "/ws",
        "raw_path": b"/ws",
        "query_string": b"x",
        "root_path": "",
        "headers": [(b"host", b"example")],
        "client": ("192.0.2.1", 5000),
        "server": ("192.0.2.2", 80),
        "subprotocols": ["chat"],
        "state": {},
        "extensions": {"websocket.http.response": {}},
    }


def test_websocket_over_cleartext_has_the_scheme_ws():
    assert connection().websocket_scope(request(), [])["scheme"] == "ws"


def test_asgi2_application_is_told_its_version():
    scope = connection(asgi_version="2.0").http_scope(request())
    assert scope["asgi"] == {"version": "2.0", "spec_version": "2.5"}


def test_lifespan_scope_carries_the_state_itself():
    state = {}
    scope = ScopeBuilder(root_path="", state=state).lifespan_scope()
    assert scope == {
        "type": "lifespan",
        "asgi": {"version": "3.0", "spec_version": "2.0"},
        "state": state,
    }
    assert scope["state"] is state


def test_tls_connection_has_scheme_https_and_the_tls_extension():
    tls = {"tls_version": 0x0304}
    scope = connection(secure=True, tls=tls).http_scope(request())
    assert scope["scheme"] == "https"
    assert scope["extensions"]["tls"] == tls
    assert "tls" in connection(secure=True, tls=tls).websocket_scope(request(), [])["extensions"]


def test_peer_on_a_unix_socket_has_no_address():
    scope = connection(client=None, server=("/run/app.sock", None)).http_scope(request())
    assert scope["client"] is None
    assert scope["server"] == ("/run/app.sock", None)


# Paths


@pytest.mark.parametrize(
    ("target", "path", "raw_path", "query"),
    [
        (b"/", "/", b"/", b""),
        (b"/?", "/", b"/", b""),
        (b"/a?b?c", "/a", b"/a", b"b?c"),
        (b"/%E2%82%AC", "/€", b"/%E2%82%AC", b""),
        (b"/a%2Fb", "/a/b", b"/a%2Fb", b""),
        (b"/a+b", "/a+b", b"/a+b", b""),
        (b"/%3F", "/?", b"/%3F", b""),
        (b"/100%", "/100%", b"/100%", b""),
        (b"/%zz", "/%zz", b"/%zz", b""),
        (b"/%ff", "/\ufffd", b"/%ff", b""),
        (b"/\xe2\x82\xac", "/€", b"/\xe2\x82\xac", b""),
        (b"//a//b", "//a//b", b"//a//b", b""),
        (b"*", "*", b"*", b""),
    ],
)
def test_path_is_decoded_and_raw_path_is_as_sent(target, path, raw_path, query):
    scope = connection().http_scope(request(target))
    assert (scope["path"], scope["raw_path"], scope["query_string"]) == (path, raw_path, query)


@pytest.mark.parametrize("root_path", ["/api", "/api/"])
def test_path_includes_the_root_path(root_path):
    scope = connection(root_path=root_path).http_scope(request(b"/items%20/1?x"))
    assert scope["root_path"] == "/api"
    assert scope["path"] == "/api/items /1"
    assert scope["raw_path"] == b"/api/items%20/1"


def test_asterisk_has_no_root_path_in_front():
    assert connection(root_path="/api").http_scope(request(b"*"))["path"] == "*"


@given(st.binary())
def test_decoding_a_path_never_fails(raw_path):
    decode_path(raw_path)


@given(st.text(st.characters(codec="utf-8", exclude_characters="%")))
def test_path_of_plain_text_decodes_to_itself(text):
    assert decode_path(text.encode()) == text


# Extensions


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"trailers", True),
        (b"Trailers", True),
        (b"gzip, trailers;q=0.5", True),
        (b" trailers ,deflate", True),
        (b"gzip", False),
        (b"xtrailers", False),
        (b"", False),
    ],
)
def test_trailers_are_offered_only_to_peers_that_keep_them(value, expected):
    headers = [(b"te", value)]
    assert accepts_trailers(headers) is expected
    extensions = connection().http_scope(request(headers=headers))["extensions"]
    assert ("http.response.trailers" in extensions) is expected


def test_second_te_field_counts_too():
    assert accepts_trailers([(b"te", b"gzip"), (b"te", b"trailers")])


def test_next_request_of_the_connection_is_judged_by_its_own_fields():
    scopes = connection()
    te = [(b"te", b"trailers")]
    offered = [
        "http.response.trailers" in scopes.http_scope(request(headers=headers))["extensions"]
        for headers in (te, te, [], [], te)
    ]
    assert offered == [True, True, False, False, True]


def test_http10_offers_neither_early_hints_nor_trailers():
    headers = [(b"te", b"trailers")]
    scope = connection().http_scope(request(version="1.0", headers=headers))
    assert scope["extensions"].keys() == {"http.response.pathsend", "http.response.zerocopysend"}
    assert scope["http_version"] == "1.0"


# Ownership


def test_what_one_exchange_changes_no_other_sees():
    shared = []
    scopes = connection(state={"shared": shared}, tls={}, secure=True)
    first = scopes.http_scope(request())
    expected = scopes.http_scope(request())
    first["asgi"]["version"] = "changed"
    first["state"]["own"] = 1
    first["extensions"].clear()
    first["headers"].clear()
    first["path"] = "changed"
    first["added"] = 1
    assert scopes.http_scope(request()) == expected
    # A shallow copy: the objects in it are everybody's.
    assert first["state"]["shared"] is shared
    assert scopes.http_scope(request())["state"]["shared"] is shared


def test_state_of_the_worker_is_read_when_the_scope_is_built():
    state = {}
    scopes = connection(state=state)
    state["late"] = 1
    assert scopes.http_scope(request())["state"] == {"late": 1}
