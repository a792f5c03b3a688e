"""The rules for fields that all versions share."""

from __future__ import annotations

import email.utils
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgiri.errors import AppError
from asgiri.worker.protocol import headers as headers_module
from asgiri.worker.protocol.events import Headers
from asgiri.worker.protocol.headers import (
    CONNECTION_SPECIFIC,
    NOT_IN_TRAILERS,
    VALUE_BYTES,
    Malformed,
    RequestParts,
    ResponseDefaults,
    authority_is_valid,
    http_date,
    list_members,
    parse_content_length,
    parse_request_untrusted,
    parse_trailers_untrusted,
    response_head,
    take_from_length,
    trailer_fields,
    tunnel_fields,
)

NONE = ResponseDefaults([], date=False)

# Grammar


@pytest.mark.parametrize(
    "value",
    [
        b"a",
        b"a.example:80",
        b"a:",
        b"[::1]",
        b"[::1]:443",
        b"[v1.x:y]",
        b"a_b~!$&'()*+,;=",
        b"%41",
        b"1.2.3.4",
    ],
)
def test_authority(value: bytes):
    assert authority_is_valid(value)
    assert authority_is_valid(value, needs_host=False)


NO_AUTHORITIES = [
    b":80", b"a b", b"u@a", b"a:b", b"a:1:2", b"[::1", b"[]", b"[g]", b"a/", b"a?", b"a#", b"%4",
    b"%zz", b"\xe4", b"a\n", b"a\\", b"", b"[v1]", b"a:80\n",
]  # fmt: skip


@pytest.mark.parametrize("value", NO_AUTHORITIES)
def test_no_authority(value: bytes):
    assert not authority_is_valid(value)


def test_authority_that_may_be_empty_or_needs_a_port():
    assert authority_is_valid(b"", needs_host=False)
    assert not authority_is_valid(b":80", needs_host=False)
    assert authority_is_valid(b"a:1", needs_port=True)
    assert authority_is_valid(b"[::1]:1", needs_port=True)
    assert not authority_is_valid(b"a", needs_port=True)
    assert not authority_is_valid(b"a:", needs_port=True)
    assert not authority_is_valid(b":1", needs_port=True)


@given(st.integers(0, 10**18 - 1))
def test_content_length_is_read(length: int):
    assert parse_content_length(b"%d" % length) == length


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"+1",
        b"-1",
        b" 1",
        b"1 ",
        b"1_0",
        b"0x1",
        b"1,1",
        b"\xb2",
        "١".encode(),
        b"1" * 19,
        b"1.0",
        b"\n1",
        b"1\n",
    ],
)
def test_no_content_length(value: bytes):
    assert parse_content_length(value) is None


def test_list_members():
    assert list_members(b"a") == [b"a"]
    assert list_members(b" A ,,\tb,c d, ") == [b"a", b"b", b"c d"]
    assert list_members(b"") == []


# What the application sends


@given(st.integers(0, 2**33))
def test_date_is_what_the_standard_library_writes(unix_time: int):
    assert http_date(unix_time).decode() == email.utils.formatdate(unix_time, usegmt=True)


def test_equal_responses_of_one_second_share_their_head():
    defaults = ResponseDefaults([])
    defaults.set_date(0)
    sent = [(b"x", b"y"), (b"content-length", b"5")]
    first = response_head(200, sent, defaults=defaults)
    assert response_head(200, iter(sent), defaults=defaults) is first
    assert response_head(201, sent, defaults=defaults).status == 201
    assert response_head(200, sent[:1], defaults=defaults).content_length is None
    defaults.set_date(1)
    later = response_head(200, sent, defaults=defaults)
    assert dict(later.headers)[b"date"] != dict(first.headers)[b"date"]


def test_head_does_not_follow_what_the_application_does_to_its_list():
    defaults = ResponseDefaults([], date=False)
    sent = [(b"x", b"y")]
    head = response_head(200, sent, defaults=defaults)
    sent.append((b"z", b"z"))
    assert head.headers == [(b"x", b"y")]
    assert response_head(200, [(b"x", b"y")], defaults=defaults).headers == [(b"x", b"y")]
    assert len(response_head(200, sent, defaults=defaults).headers) == 2


def test_pairs_may_be_lists():
    for _ in range(2):
        head = response_head(200, [[b"X", b"y"], (b"content-length", b"1")], defaults=NONE)
        assert head.headers == [(b"x", b"y"), (b"content-length", b"1")]


def test_heads_and_fields_remembered_are_bounded():
    defaults = ResponseDefaults([], date=False)
    for number in range(5000):
        value = b"%d" % number
        head = response_head(200, [(b"x-number", value)], defaults=defaults)
        assert head.headers == [(b"x-number", value)]
    assert len(defaults.heads) <= 256
    assert len(headers_module._fields) <= 1024


def test_headers_that_cannot_be_iterated_are_refused():
    with pytest.raises(AppError, match="'headers' must be pairs of bytes"):
        response_head(200, None, defaults=NONE)  # type: ignore[arg-type]


def test_defaults_are_added_behind_the_applications_fields():
    defaults = ResponseDefaults([(b"server", b"asgiri")])
    defaults.set_date(0)
    date = (b"date", b"Thu, 01 Jan 1970 00:00:00 GMT")
    assert response_head(200, [(b"X", b"y")], defaults=defaults).headers == [
        (b"x", b"y"),
        (b"server", b"asgiri"),
        date,
    ]
    assert response_head(200, [(b"Server", b"mine")], defaults=defaults).headers == [
        (b"server", b"mine"),
        date,
    ]
    assert defaults.fields == [(b"server", b"asgiri"), date]
    defaults.set_date(1)
    assert defaults.fields[1] == (b"date", b"Thu, 01 Jan 1970 00:00:01 GMT")


def test_applications_date_goes_before_ours():
    defaults = ResponseDefaults([])
    defaults.set_date(0)
    assert response_head(200, [(b"Date", b"now")], defaults=defaults).headers == [(b"date", b"now")]


def test_date_may_be_switched_off():
    defaults = ResponseDefaults([(b"server", b"asgiri")], date=False)
    defaults.set_date(0)
    assert defaults.fields == [(b"server", b"asgiri")]


def test_fields_are_brought_into_form():
    head = response_head(
        200, [[b"X-A", b" b\t"], (b"x-a", b"c"), (b"Content-Length", b" 5 ")], defaults=NONE
    )
    assert head.headers == [(b"x-a", b"b"), (b"x-a", b"c"), (b"content-length", b"5")]
    assert head.content_length == 5
    assert not head.close


def test_any_iterable_of_pairs_will_do():
    assert response_head(200, iter([iter((b"a", b"b"))]), defaults=NONE).headers == [(b"a", b"b")]
    assert response_head(200, (), defaults=NONE).content_length is None


@pytest.mark.parametrize("name", sorted(CONNECTION_SPECIFIC))
def test_connection_specific_fields_are_left_out(name: bytes):
    assert response_head(200, [(name.title(), b"x"), (b"a", b"b")], defaults=NONE).headers == [
        (b"a", b"b")
    ]


def test_application_closes():
    assert response_head(200, [(b"Connection", b"x, Close")], defaults=NONE).close
    assert response_head(
        200, [(b"Connection", b"close"), (b"Connection", b"x")], defaults=NONE
    ).close
    assert not response_head(200, [(b"Connection", b"keep-alive")], defaults=NONE).close
    assert not response_head(200, [(b"Keep-Alive", b"close")], defaults=NONE).close


@pytest.mark.parametrize("status", [204, 205])
def test_length_is_left_out_where_no_content_belongs(status: int):
    head = response_head(status, [(b"a", b"b"), (b"content-length", b"5")], defaults=NONE)
    assert head.headers == [(b"a", b"b")]
    assert head.content_length is None
    assert response_head(status, [(b"a", b"b")], defaults=NONE).headers == [(b"a", b"b")]


def test_length_of_not_modified_stays():
    head = response_head(304, [(b"content-length", b"5")], defaults=NONE)
    assert head.headers == [(b"content-length", b"5")]


@pytest.mark.parametrize("status", [None, "200", 200.0, 99, 100, 101, 199, 1000, -1, b"200"])
def test_bad_status(status: object):
    with pytest.raises(AppError, match="status"):
        response_head(status, [], defaults=NONE)


BAD_FIELDS: list[Any] = [
    5, None, [5], [b"ab", b"c"], [(b"a",)], [(b"a", b"b", b"c")], "ab", [None], {b"a": b"b"},
    [("a", b"b")], [(b"a", "b")], [(b"a", 5)], [(b"a", None)], [(b"a", bytearray(b"b"))],
    [(bytearray(b"a"), b"b")], [(b"", b"b")], [(b"a b", b"c")], [(b"a:", b"c")],
    [(b"a\r\nb", b"c")], [(b"\xe4", b"c")], [(b"a", b"b\r\nc: d")], [(b"a", b"b\n")],
    [(b"a", b"\0")], [(b"a", b"\x7f")],
    [(b"a", b"\r")], [(b"a", b"\x0b")], [([], b"a")],
    [(b"connection", "close")], [(b"content-length", 5)], [(b"content-length", "5")],
]  # fmt: skip


@pytest.mark.parametrize("fields", BAD_FIELDS, ids=repr)
def test_bad_fields_are_the_applications_error(fields: Any):
    for check in (
        lambda: response_head(200, fields, defaults=NONE),
        lambda: trailer_fields(fields),
        lambda: tunnel_fields(fields),
    ):
        with pytest.raises(AppError):
            check()


def test_error_names_the_field():
    with pytest.raises(AppError, match="b'x-evil'"):
        response_head(200, [(b"a", b"b"), (b"X-Evil", b"a\r\nb: c")], defaults=NONE)
    with pytest.raises(AppError, match="b'x evil'"):
        response_head(200, [(b"x evil", b"")], defaults=NONE)


@pytest.mark.parametrize(
    "fields",
    [
        [(b"content-length", b"x")],
        [(b"content-length", b"")],
        [(b"content-length", b"-1")],
        [(b"content-length", b"5"), (b"content-length", b"6")],
        [(b"content-length", b"5"), (b"Content-Length", b"5")],
        [(b"content-length", b"0"), (b"Content-Length", b"0")],
    ],
)
def test_content_length_of_the_application(fields: Headers):
    with pytest.raises(AppError, match="content-length"):
        response_head(200, fields, defaults=NONE)


@given(st.binary(max_size=8), st.binary(max_size=8))
def test_no_response_can_be_split(name: bytes, value: bytes):
    try:
        head = response_head(200, [(name, value)], defaults=NONE)
    except AppError:
        return
    for field in head.headers:
        assert not b"".join(field).translate(None, VALUE_BYTES)
        assert field[0] == field[0].lower()
        assert field[1] == field[1].strip(b" \t")


def test_names_that_applications_make_up_are_not_remembered_for_ever():
    for number in range(3000):
        response_head(200, [(b"x-%d" % number, b"")], defaults=NONE)
    assert len(headers_module._names) <= 1024
    head = response_head(200, [(b"X-Never-Seen-Before", b"")], defaults=NONE)
    assert head.headers == [(b"x-never-seen-before", b"")]


def test_trailers_and_early_hints():
    assert trailer_fields([(b"X-Sum", b" 1 "), (b"Link", b"</a>")]) == [
        (b"x-sum", b"1"),
        (b"link", b"</a>"),
    ]
    for name in NOT_IN_TRAILERS:
        with pytest.raises(AppError, match="no place"):
            trailer_fields([(name, b"x")])


def test_tunnel_fields():
    fields = [
        (b"Sec-WebSocket-Accept", b"x"),
        (b"Connection", b"x"),
        (b"Upgrade", b"x"),
        (b"Content-Length", b"1"),
        (b"X", b"y"),
    ]
    assert tunnel_fields(fields) == [(b"x", b"y")]


def test_length_is_counted_down():
    assert take_from_length(5, 3, ended=False) == 2
    assert take_from_length(2, 2, ended=True) == 0
    assert take_from_length(2, 2, ended=False) == 0
    with pytest.raises(AppError, match="longer"):
        take_from_length(2, 3, ended=False)
    with pytest.raises(AppError, match="3 bytes shorter"):
        take_from_length(5, 2, ended=True)


# What peers of HTTP/2 and HTTP/3 send

GET: Headers = [
    (b":method", b"GET"),
    (b":scheme", b"https"),
    (b":path", b"/"),
    (b":authority", b"a"),
]
CONNECT: Headers = [(b":method", b"CONNECT"), (b":authority", b"a:443")]
EXTENDED: Headers = [(b":protocol", b"websocket"), (b":method", b"CONNECT"), *GET[1:]]


def parsed(*fields: tuple[bytes, bytes], pseudo: Headers = GET) -> RequestParts:
    parts = parse_request_untrusted([*pseudo, *fields])
    assert isinstance(parts, RequestParts), parts
    return parts


def changed(name: bytes, value: bytes | None, pseudo: Headers = GET) -> Headers:
    return [(n, v if n != name else value) for n, v in pseudo if n != name or value is not None]  # type: ignore[misc]


def test_request():
    assert parsed((b"accept", b"*/*"), (b"x-y", b"")) == RequestParts(
        "GET", b"/", [(b"host", b"a"), (b"accept", b"*/*"), (b"x-y", b"")], None, False, None
    )


def test_host_comes_first_from_either_field():
    without = changed(b":authority", None)
    assert parsed((b"x", b"y"), (b"host", b"a:1"), pseudo=without).headers == [
        (b"host", b"a:1"),
        (b"x", b"y"),
    ]
    assert parsed((b"x", b"y"), (b"host", b"A")).headers == [(b"host", b"a"), (b"x", b"y")]


def test_cookies_are_joined_where_the_first_one_stood():
    fields = [(b"cookie", b"a=1"), (b"x", b"y"), (b"cookie", b"b=2"), (b"cookie", b"c=3")]
    assert parsed(*fields).headers == [(b"host", b"a"), (b"cookie", b"a=1; b=2; c=3"), (b"x", b"y")]
    assert parsed((b"cookie", b"a=1")).headers == [(b"host", b"a"), (b"cookie", b"a=1")]


def test_fields_that_concern_the_message():
    assert parsed((b"content-length", b"5")).content_length == 5
    assert parsed((b"expect", b"100-Continue")).expects_continue
    assert not parsed((b"expect", b"x")).expects_continue
    assert parsed((b"te", b"Trailers")).headers == [(b"host", b"a"), (b"te", b"Trailers")]


def test_methods_and_targets():
    assert parsed(pseudo=changed(b":method", b"BREW")).method == "BREW"
    assert parsed(pseudo=changed(b":path", b"/a?b=c")).target == b"/a?b=c"
    options = changed(b":path", b"*", changed(b":method", b"OPTIONS"))
    assert parsed(pseudo=options).target == b"*"


def test_connect():
    parts = parsed(pseudo=CONNECT)
    assert (parts.method, parts.target, parts.protocol) == ("CONNECT", b"a:443", None)


def test_extended_connect():
    parts = parsed(pseudo=EXTENDED)
    assert (parts.method, parts.target, parts.protocol) == ("CONNECT", b"/", "websocket")
    assert parts.headers == [(b"host", b"a")]


MALFORMED: dict[str, Headers] = {
    "RFC 9113 §8.3 unknown pseudo-header field": [*GET, (b":x", b"y")],
    "RFC 9113 §8.3 pseudo-header field of responses": [*GET, (b":status", b"200")],
    "RFC 9113 §8.3 pseudo-header field behind a field": [*GET[:3], (b"x", b"y"), GET[3]],
    "RFC 9113 §8.3 pseudo-header field behind host": [*GET[:3], (b"host", b"a"), GET[3]],
    "RFC 9113 §8.3 pseudo-header field twice": [*GET, (b":path", b"/")],
    "RFC 9113 §8.3 empty pseudo-header name": [*GET, (b":", b"y")],
    "RFC 9113 §8.3.1 no :method": changed(b":method", None),
    "RFC 9113 §8.3.1 no :scheme": changed(b":scheme", None),
    "RFC 9113 §8.3.1 no :path": changed(b":path", None),
    "RFC 9113 §8.3.1 empty :path": changed(b":path", b""),
    "RFC 9113 §8.3.1 relative :path": changed(b":path", b"a"),
    "RFC 9113 §8.3.1 absolute :path": changed(b":path", b"https://a/"),
    "RFC 9113 §8.3.1 * without OPTIONS": changed(b":path", b"*"),
    "RFC 9113 §8.3.1 fragment": changed(b":path", b"/#a"),
    "RFC 9113 §8.3.1 space in :path": changed(b":path", b"/a b"),
    "RFC 9113 §8.3.1 NUL in :path": changed(b":path", b"/\0"),
    "RFC 9113 §8.3.1 line end in :path": changed(b":path", b"/ HTTP/1.1\r\nx: y"),
    "RFC 9113 §8.3.1 high byte in :path": changed(b":path", b"/\xff"),
    "RFC 9113 §8.3.1 empty :method": changed(b":method", b""),
    "RFC 9113 §8.3.1 space in :method": changed(b":method", b"GET /"),
    "RFC 9113 §8.3.1 empty :scheme": changed(b":scheme", b""),
    "RFC 9113 §8.3.1 bad :scheme": changed(b":scheme", b"https://"),
    "RFC 9113 §8.3.1 userinfo": changed(b":authority", b"u@a"),
    "RFC 9113 §8.3.1 bad :authority": changed(b":authority", b"a/b"),
    "RFC 9114 §4.3.1 empty :authority": changed(b":authority", b""),
    "RFC 9114 §4.3.1 neither :authority nor host": changed(b":authority", None),
    "RFC 9114 §4.3.1 empty host": [*changed(b":authority", None), (b"host", b"")],
    "RFC 9114 §4.3.1 host is another": [*GET, (b"host", b"b")],
    "RFC 9110 §7.2 two hosts": [*GET, (b"host", b"a"), (b"host", b"a")],
    "RFC 9110 §7.2 bad host": [*changed(b":authority", None), (b"host", b"a b")],
    "RFC 9113 §8.2.1 upper case": [*GET, (b"X-Y", b"z")],
    "RFC 9113 §8.2.1 empty name": [*GET, (b"", b"z")],
    "RFC 9113 §8.2.1 colon in a name": [*GET, (b"x:y", b"z")],
    "RFC 9113 §8.2.1 space in a name": [*GET, (b"x y", b"z")],
    "RFC 9113 §8.2.1 line end in a name": [*GET, (b"x\r\ny", b"z")],
    "RFC 9113 §8.2.1 NUL in a name": [*GET, (b"x\0", b"z")],
    "RFC 9113 §8.2.1 high byte in a name": [*GET, (b"x\xff", b"z")],
    "RFC 9113 §8.2.1 NUL in a value": [*GET, (b"x", b"a\0b")],
    "RFC 9113 §8.2.1 CR in a value": [*GET, (b"x", b"a\rb")],
    "RFC 9113 §8.2.1 LF in a value": [*GET, (b"x", b"a\nb")],
    "RFC 9110 §5.5 control in a value": [*GET, (b"x", b"a\x01b")],
    "RFC 9113 §8.2.1 CR LF in the second cookie": [*GET, (b"cookie", b"a"), (b"cookie", b"\r\n")],
    "RFC 9113 §8.2.1 leading space": [*GET, (b"x", b" a")],
    "RFC 9113 §8.2.1 trailing space": [*GET, (b"x", b"a ")],
    "RFC 9113 §8.2.1 leading tab": [*GET, (b"x", b"\ta")],
    "RFC 9113 §8.2.1 trailing tab": [*GET, (b"x", b"a\t")],
    "RFC 9113 §8.2.1 only a space": [*GET, (b"x", b" ")],
    "RFC 9113 §8.2.2 connection": [*GET, (b"connection", b"close")],
    "RFC 9113 §8.2.2 keep-alive": [*GET, (b"keep-alive", b"5")],
    "RFC 9113 §8.2.2 proxy-connection": [*GET, (b"proxy-connection", b"close")],
    "RFC 9113 §8.2.2 transfer-encoding": [*GET, (b"transfer-encoding", b"chunked")],
    "RFC 9113 §8.2.2 upgrade": [*GET, (b"upgrade", b"websocket")],
    "RFC 9113 §8.2.2 te": [*GET, (b"te", b"gzip")],
    "RFC 9113 §8.2.2 te with more": [*GET, (b"te", b"trailers, gzip")],
    "RFC 9110 §8.6 bad content-length": [*GET, (b"content-length", b"+5")],
    "RFC 9110 §8.6 two content-lengths": [
        *GET,
        (b"content-length", b"5"),
        (b"content-length", b"5"),
    ],
    "RFC 9113 §8.5 CONNECT with :path": [*CONNECT, (b":path", b"/")],
    "RFC 9113 §8.5 CONNECT with :scheme": [*CONNECT, (b":scheme", b"https")],
    "RFC 9113 §8.5 CONNECT without :authority": CONNECT[:1],
    "RFC 9113 §8.5 CONNECT without port": changed(b":authority", b"a", CONNECT),
    "RFC 8441 §4 :protocol with GET": [(b":protocol", b"websocket"), *GET],
    "RFC 8441 §4 empty :protocol": changed(b":protocol", b"", EXTENDED),
    "RFC 8441 §4 no :path": changed(b":path", None, EXTENDED),
    "RFC 8441 §4 no :scheme": changed(b":scheme", None, EXTENDED),
    "RFC 8441 §4 no :authority": [*changed(b":authority", None, EXTENDED), (b"host", b"a")],
    "nothing at all": [],
}


@pytest.mark.parametrize("fields", MALFORMED.values(), ids=MALFORMED)
def test_malformed_request(fields: Headers):
    malformed = parse_request_untrusted(fields)
    assert isinstance(malformed, Malformed)
    assert malformed.detail


names = st.one_of(
    st.binary(max_size=4),
    st.sampled_from(
        [name for name, _ in [*GET, *EXTENDED]]
        + [b"host", b"cookie", b"te", b"x", b"content-length"]
    ),
)
values = st.one_of(
    st.binary(max_size=4),
    st.sampled_from([b"GET", b"CONNECT", b"/", b"a", b"a:1", b"https", b"5", b"*"]),
)
field_lists = st.lists(st.tuples(names, values), max_size=6)


@given(field_lists, st.booleans())
def test_parsing_never_raises(fields: Headers, with_get: bool):
    parts = parse_request_untrusted([*GET, *fields] if with_get else fields)
    if isinstance(parts, RequestParts):
        assert parts.headers[0][0] == b"host"
        assert not any(name.startswith(b":") for name, _ in parts.headers)
        assert sum(name == b"host" for name, _ in parts.headers) == 1
    parse_trailers_untrusted(fields)


@given(field_lists)
def test_events_do_not_depend_on_how_bytes_arrive(fields: Headers):
    """The decoder may hand fields over one by one as well as in a list."""
    assert parse_request_untrusted(iter([*GET, *fields])) == parse_request_untrusted(
        [*GET, *fields]
    )
    assert parse_trailers_untrusted(iter(fields)) == parse_trailers_untrusted(fields)


def test_trailers():
    fields: Headers = [(b"x-sum", b"1"), (b"content-length", b"5"), (b"host", b"b"), (b"y", b"")]
    assert parse_trailers_untrusted(fields) == [(b"x-sum", b"1"), (b"y", b"")]
    assert parse_trailers_untrusted([]) == []


@pytest.mark.parametrize(
    "field",
    [
        (b":path", b"/"),
        (b"X", b"y"),
        (b"connection", b"close"),
        (b"x", b"a\n"),
        (b"x", b" a"),
        (b"", b""),
    ],
)
def test_malformed_trailers(field: tuple[bytes, bytes]):
    assert isinstance(parse_trailers_untrusted([field]), Malformed)
