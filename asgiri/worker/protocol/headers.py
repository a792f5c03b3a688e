"""Rules for fields that hold for every version of HTTP. Sans-IO.

Three parts, by who wrote the fields:

    grammar       RFC 9110 §5, Host, Content-Length; HTTP/1.1 (`http1_head`) uses it too
    application   `response_head`, `trailer_fields`, `tunnel_fields`: the one check of what it sends
    peer, 2 and 3 `parse_request_untrusted`, `parse_trailers_untrusted`: RFC 9113 §8.2 and §8.3,
                  RFC 9114 §4.2 and §4.3. Decoded fields in, parts of a request or `Malformed` out
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from asgiri.errors import AppError
from asgiri.worker.protocol.events import Headers, ResponseHead

# --------------------------------------------------------------------------------------------------
# Grammar

TCHAR: Final = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]"
TOKEN: Final = re.compile(TCHAR + rb"+")

VALUE_BYTES: Final = b"\t" + bytes(range(0x20, 0x7F)) + bytes(range(0x80, 0x100))
"""What a value may hold. RFC 9110 §5.5: CR, LF and NUL are dangerous, other controls "invalid"."""

# RFC 3986 §3.2.2. Without userinfo: "treat its presence as an error", RFC 9110 §4.2.4.
_NAME_BYTES: Final = rb"0-9A-Za-z\-._~!$&'()*+,;="
_AUTHORITY: Final = re.compile(
    rb"(?P<host>\[(?:[0-9A-Fa-f:.]+|[vV][0-9A-Fa-f]+\.[%b:]+)\]|(?:[%b]|%%[0-9A-Fa-f]{2})*)"
    rb"(?::(?P<port>[0-9]*))?" % (_NAME_BYTES, _NAME_BYTES)
)

_LENGTH_DIGITS: Final = 18
"""Longest Content-Length: 10^18 - 1 bytes is more than anybody sends, and sums fit 64 bits."""

CONNECTION_SPECIFIC: Final = frozenset(
    (b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade")
)
"""RFC 9110 §7.6.1: fields for one hop, which the engine of each version writes itself."""

NOT_IN_TRAILERS: Final = CONNECTION_SPECIFIC | frozenset(
    b"accept-encoding age authorization cache-control content-encoding content-length "
    b"content-range content-type cookie date expect expires forwarded host http2-settings "
    b"if-match if-modified-since if-none-match if-range if-unmodified-since location "
    b"max-forwards pragma proxy-authenticate proxy-authorization range retry-after "
    b"sec-websocket-accept sec-websocket-key set-cookie te trailer vary warning "
    b"www-authenticate x-forwarded-for x-forwarded-host x-forwarded-proto".split()
)
"""RFC 9110 §6.5.1: what is "necessary for message framing, routing, authentication, request
modifiers, response controls, or content format". A list, because no registry marks them."""


# What nearly all of them are: 0.2 us, where the whole grammar takes 1.2.
_PLAIN_AUTHORITY: Final = re.compile(rb"[0-9A-Za-z.\-]+:[0-9]+|[0-9A-Za-z.\-]+")


def authority_is_valid(value: bytes, *, needs_host: bool = True, needs_port: bool = False) -> bool:
    """Check `uri-host [ ":" port ]`. A Host field may be empty (RFC 9110 §7.2): `needs_host`."""
    if not needs_port and _PLAIN_AUTHORITY.fullmatch(value):
        return True
    match = _AUTHORITY.fullmatch(value)
    if match is None or (needs_port and not match["port"]):
        return False
    return bool(match["host"]) or not (needs_host or value)


def parse_content_length(value: bytes) -> int | None:
    """Read `1*DIGIT`; None for anything else, with signs, lists and white space."""
    # bytes.isdigit() knows ASCII only, unlike str's; int() alone takes "+5", "1_0" and " 5".
    return int(value) if value.isdigit() and len(value) <= _LENGTH_DIGITS else None


def list_members(value: bytes) -> list[bytes]:
    """Split a list of tokens (RFC 9110 §5.6.1), in lower case, without its empty members."""
    return [member for part in value.lower().split(b",") if (member := part.strip(b" \t"))]


# --------------------------------------------------------------------------------------------------
# What the application sends


class ResponseDefaults:
    """What each response carries unless the application sends its own. One per worker."""

    def __init__(self, fields: Headers, *, date: bool = True) -> None:
        """Take the fields that stay, names in lower case; `date` adds the one that does not."""
        self._fixed = [*fields]
        self._with_date = date
        self.fields: Headers = [*fields]
        self.names = frozenset((*dict(fields), b"date") if date else dict(fields))
        self.heads: dict[object, ResponseHead] = {}
        """Heads made with these fields, by status and what the application sent. Most applications
        repeat theirs: a look-up costs 0.2 us, the checks and HTTP/1.1's form 1.1."""

    def set_date(self, unix_time: float) -> None:
        """Renew the date. To be called before the first response and when the second changes."""
        if self._with_date:
            self.fields = [*self._fixed, (b"date", http_date(unix_time))]
            self.heads.clear()


_DAYS: Final = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS: Final = (
    "Jan",
    "Feb",
    "Mar",
    "Apr",
    "May",
    "Jun",
    "Jul",
    "Aug",
    "Sep",
    "Oct",
    "Nov",
    "Dec",
)


def http_date(unix_time: float) -> bytes:
    """Format as IMF-fixdate (RFC 9110 §5.6.7). Not strftime, which speaks the locale's language."""
    at = dt.datetime.fromtimestamp(unix_time, dt.UTC)
    day, month = _DAYS[at.weekday()], _MONTHS[at.month - 1]
    return f"{day}, {at.day:02} {month} {at.year:04} {at:%H:%M:%S} GMT".encode("ascii")


_MOST_NAMES: Final = 1024
"""Names remembered as valid. Applications use some dozens; those beyond are checked each time."""

_names: dict[bytes, bytes] = {}
"""Field names as applications spell them -> in lower case. 30 ns, where the check takes 170."""

_MOST_FIELDS: Final = 1024
"""Fields remembered as valid. Most responses of an application repeat those of the one before."""
_LONGEST_KEPT_VALUE: Final = 128

_fields: dict[object, tuple[bytes, bytes]] = {}
"""Fields as applications give them -> as engines write them. 60 ns, where the checks take 400."""

_MOST_HEADS: Final = 256
"""Heads kept, at most for the second that their date is right: what a worker answers in 4 ms."""

_ENGINES_OWN: Final = CONNECTION_SPECIFIC | {b"content-length"}
_NOT_IN_TUNNELS: Final = _ENGINES_OWN | {b"sec-websocket-accept"}


def response_head(
    status: object, headers: Iterable[Any], *, defaults: ResponseDefaults
) -> ResponseHead:
    """Check what 'http.response.start' carries and bring it into the form that engines write.

    Raises AppError that names the field. Connection-specific fields are left out: an engine writes
    its own.
    """
    if not isinstance(status, int) or not 200 <= status <= 999:
        raise AppError(f"'status' must be an int from 200 to 999, not {status!r}")
    try:
        given = tuple(headers)
    except TypeError as error:
        raise AppError(f"'headers' must be pairs of bytes: {error}") from None
    heads = defaults.heads
    try:
        if (head := heads.get((status, given))) is not None:
            return head
    except TypeError:  # a list as a pair, as good as a tuple but for this
        return _check_head(status, given, defaults)
    head = _check_head(status, given, defaults)
    if len(heads) >= _MOST_HEADS:
        heads.clear()
    heads[status, given] = head
    return head


def _check_head(status: int, headers: tuple[Any, ...], defaults: ResponseDefaults) -> ResponseHead:
    fields: Headers = []
    length: int | None = None
    close = False
    replaced: list[bytes] = []
    try:
        for pair in headers:
            field = _fields.get(pair) if type(pair) is tuple else None
            if field is None:
                name, value = pair
                lower = _names.get(name) or _check_name(name)
                if lower == b"content-length":
                    length, value = _application_length(value, length)
                    fields.append((lower, value))
                    continue
                if lower in CONNECTION_SPECIFIC:
                    close = close or _asks_to_close(lower, value)
                    continue
                field = _check_field(pair, lower, value)
            if field[0] in defaults.names:
                replaced.append(field[0])
            fields.append(field)
    except (TypeError, ValueError) as error:
        raise AppError(f"'headers' must be pairs of bytes: {error}") from None
    if length is not None and status in (204, 205):
        # RFC 9110 §8.6: "MUST NOT send a Content-Length header field in any response with ... 204";
        # §15.3.6: no content with 205, whatever the application announced.
        fields = [field for field in fields if field[0] != b"content-length"]
        length = None
    if replaced:
        fields += [field for field in defaults.fields if field[0] not in replaced]
    else:
        fields += defaults.fields
    return ResponseHead(int(status), fields, length, close)


def trailer_fields(headers: Iterable[Any]) -> Headers:
    """Check the trailers (RFC 9110 §6.5) or early hints that the application sends."""
    fields = _application_fields(headers)
    for name, _ in fields:
        if name in NOT_IN_TRAILERS:
            raise AppError(f"header {name!r}: has no place in a trailer section or early hint")
    return fields


def tunnel_fields(headers: Iterable[Any]) -> Headers:
    """Check the fields that the application adds to the answer that opens a tunnel."""
    return [field for field in _application_fields(headers) if field[0] not in _NOT_IN_TUNNELS]


def take_from_length(left: int, size: int, *, ended: bool) -> int:
    """Count a part of a body against what its content-length leaves; AppError if it is no fit."""
    left -= size
    if left < 0:
        raise AppError(f"the body is longer than its content-length, by {-left} bytes or more")
    if left and ended:
        raise AppError(f"the body is {left} bytes shorter than its content-length")
    return left


def _check_field(pair: Any, lower: bytes, value: object) -> tuple[bytes, bytes]:
    if type(value) is not bytes:
        raise AppError(f"header {lower!r}: the value must be bytes, not {value!r}")
    field = (lower, value.strip(b" \t"))
    if value.translate(None, VALUE_BYTES):
        _refuse_value([field])
    if type(pair) is tuple and len(value) <= _LONGEST_KEPT_VALUE:
        if len(_fields) >= _MOST_FIELDS:
            _fields.clear()
        _fields[pair] = field
    return field


def _asks_to_close(lower: bytes, value: object) -> bool:
    if type(value) is not bytes:
        raise AppError(f"header {lower!r}: the value must be bytes, not {value!r}")
    return lower == b"connection" and b"close" in list_members(value)


def _application_fields(headers: Iterable[Any]) -> Headers:
    fields: Headers = []
    try:
        for name, value in headers:
            lower = _names.get(name) or _check_name(name)
            if type(value) is not bytes:
                raise AppError(f"header {lower!r}: the value must be bytes, not {value!r}")
            fields.append((lower, value.strip(b" \t")))
    except (TypeError, ValueError) as error:
        raise AppError(f"'headers' must be pairs of bytes: {error}") from None
    _refuse_value(fields)
    return fields


def _check_name(name: object) -> bytes:
    if not isinstance(name, bytes) or not TOKEN.fullmatch(name):
        raise AppError(f"header {name!r}: the name must be a token in bytes (RFC 9110 §5.1)")
    lower = name.lower()
    if len(_names) < _MOST_NAMES:
        _names[name] = lower
    return lower


def _refuse_value(fields: Headers) -> None:
    """Raise for the first value that could split a response (or is merely not allowed)."""
    for name, value in fields:
        if value.translate(None, VALUE_BYTES):
            raise AppError(f"header {name!r}: {value!r} has control characters")


def _application_length(value: object, earlier: int | None) -> tuple[int, bytes]:
    """Read a content-length; return it as a number and as it is written."""
    if type(value) is not bytes:
        raise AppError(f"header b'content-length': the value must be bytes, not {value!r}")
    if not value.isdigit():
        value = value.strip(b" \t")
    length = parse_content_length(value)
    if length is None or earlier is not None:
        raise AppError(f"header b'content-length': must be one number, not {value!r}")
    return length, value


# --------------------------------------------------------------------------------------------------
# What a peer of HTTP/2 or HTTP/3 sends


@dataclass(slots=True)
class RequestParts:
    """What a request's field section says: the parts of `RequestReceived`, and its length."""

    method: str
    target: bytes
    headers: Headers
    protocol: str | None
    expects_continue: bool
    content_length: int | None
    """The engine counts DATA against it: another sum is malformed too (RFC 9113 §8.1.1)."""


@dataclass(slots=True)
class Malformed:
    """The message breaks a rule: a stream error PROTOCOL_ERROR, or H3_MESSAGE_ERROR."""

    detail: str


class _MalformedError(Exception):
    pass


_PSEUDO_FIELDS: Final = frozenset((b":method", b":scheme", b":authority", b":path", b":protocol"))
_FIELD_NAME: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+")
_SCHEME: Final = re.compile(rb"[A-Za-z][A-Za-z0-9+\-.]*")
_PATH: Final = re.compile(rb"/[!\"$-~]*")
# Checked by a look-up, others by the regex. Fixed, because peers could fill a table that learns.
_COMMON_NAMES: Final = frozenset(
    b"accept accept-encoding accept-language authorization cache-control content-type "
    b"if-modified-since if-none-match origin pragma priority range referer sec-ch-ua "
    b"sec-ch-ua-mobile sec-ch-ua-platform sec-fetch-dest sec-fetch-mode sec-fetch-site "
    b"sec-fetch-user upgrade-insecure-requests user-agent x-forwarded-for x-forwarded-proto "
    b"x-requested-with".split()
)
_SPECIAL: Final = CONNECTION_SPECIFIC | {b"host", b"te", b"cookie", b"content-length", b"expect"}


def parse_request_untrusted(fields: Iterable[tuple[bytes, bytes]]) -> RequestParts | Malformed:
    """Check a request's field section. Never raises.

    In the result `host` comes first, with what :authority says where there is one, and cookies are
    one field (RFC 9113 §8.2.3). Which :protocol may be asked for is the engine's to say.
    """
    pseudo: dict[bytes, bytes] = {}
    special: dict[bytes, list[bytes]] = {}
    headers: Headers = []
    try:
        for name, value in fields:
            if name[:1] == b":":
                _take_pseudo_field(pseudo, name, value, late=bool(headers))
                continue
            if name in _SPECIAL:
                special.setdefault(name, []).append(value)
            elif name not in _COMMON_NAMES and not _FIELD_NAME.fullmatch(name):
                raise _MalformedError(f"field name {name!r}")
            headers.append((name, value))
        _check_values(headers)
        content_length = _check_special(special)
        method, target = _read_pseudo_fields(pseudo)
        host = _effective_host(pseudo.get(b":authority"), special.get(b"host", []))
    except _MalformedError as error:
        return Malformed(str(error))
    if special.keys() & _REARRANGED:
        headers = _rearranged(headers, special)
    headers.insert(0, (b"host", host))
    return RequestParts(
        method,
        target,
        headers,
        pseudo[b":protocol"].decode("ascii") if b":protocol" in pseudo else None,
        any(b"100-continue" in list_members(value) for value in special.get(b"expect", ())),
        content_length,
    )


def parse_trailers_untrusted(fields: Iterable[tuple[bytes, bytes]]) -> Headers | Malformed:
    """Check a request's trailer section; what has no place there is left out. Never raises."""
    trailers: Headers = []
    try:
        for name, value in fields:
            # "Trailers MUST NOT include pseudo-header fields" (RFC 9113 §8.1): tokens have no colon
            if not _FIELD_NAME.fullmatch(name) or name in CONNECTION_SPECIFIC:
                raise _MalformedError(f"field name {name!r} in a trailer section")
            trailers.append((name, value))
        _check_values(trailers)
    except _MalformedError as error:
        return Malformed(str(error))
    return [field for field in trailers if field[0] not in NOT_IN_TRAILERS]


def _take_pseudo_field(
    pseudo: dict[bytes, bytes], name: bytes, value: bytes, *, late: bool
) -> None:
    if name not in _PSEUDO_FIELDS:
        raise _MalformedError(f"pseudo-header field {name!r} is not one of a request")
    if name in pseudo:
        raise _MalformedError(f"two fields {name!r}")
    if late:
        raise _MalformedError(f"{name!r} behind a regular field")
    pseudo[name] = value


def _check_values(fields: Headers) -> None:
    # All values in one pass of C, as in `response_head`.
    if b"".join([value for _, value in fields]).translate(None, VALUE_BYTES):
        raise _MalformedError("control characters in a field value")
    for name, value in fields:
        # RFC 9113 §8.2.1: "MUST NOT start or end with an ASCII whitespace character".
        if value and (value[0] in b" \t" or value[-1] in b" \t"):
            raise _MalformedError(f"white space around the value of {name!r}")


def _check_special(special: dict[bytes, list[bytes]]) -> int | None:
    """Check the fields that describe the message; return its content-length, if it has one."""
    for name in CONNECTION_SPECIFIC & special.keys():
        raise _MalformedError(f"connection-specific field {name!r}")
    for value in special.get(b"te", ()):
        # RFC 9113 §8.2.2: "MUST NOT contain any value other than "trailers"".
        if value.lower() != b"trailers":
            raise _MalformedError(f"te: {value!r}")
    lengths = special.get(b"content-length")
    if lengths is None:
        return None
    length = parse_content_length(lengths[0])
    if length is None or len(lengths) > 1:
        raise _MalformedError(f"content-length: {lengths!r}")
    return length


def _read_pseudo_fields(pseudo: dict[bytes, bytes]) -> tuple[str, bytes]:
    """Return method and target (RFC 9113 §8.3.1, §8.5, RFC 9114 §4.3.1, §4.4, RFC 8441 §4)."""
    method = pseudo.get(b":method", b"")
    if not TOKEN.fullmatch(method):
        raise _MalformedError(f":method {method!r}")
    if b":protocol" in pseudo:
        if method != b"CONNECT" or not TOKEN.fullmatch(pseudo[b":protocol"]):
            raise _MalformedError(f":protocol {pseudo[b':protocol']!r} with {method!r}")
        if b":authority" not in pseudo:
            raise _MalformedError("extended CONNECT without :authority")
    elif method == b"CONNECT":
        authority = pseudo.get(b":authority", b"")
        if b":scheme" in pseudo or b":path" in pseudo:
            raise _MalformedError("CONNECT with :scheme or :path")
        if not authority_is_valid(authority, needs_port=True):
            raise _MalformedError(f"CONNECT to {authority!r}")
        return "CONNECT", authority
    path = pseudo.get(b":path", b"")
    if not _SCHEME.fullmatch(pseudo.get(b":scheme", b"")):
        raise _MalformedError(f":scheme {pseudo.get(b':scheme')!r}")
    if not _PATH.fullmatch(path) and not (path == b"*" and method == b"OPTIONS"):
        raise _MalformedError(f":path {path[:80]!r}")
    return method.decode("ascii"), path


def _effective_host(authority: bytes | None, hosts: list[bytes]) -> bytes:
    """RFC 9114 §4.3.1: one or both, never empty; if both, "they MUST contain the same value"."""
    if len(hosts) > 1 or (authority is None and not hosts):
        raise _MalformedError(f"{len(hosts)} host fields and no :authority or more")
    host = hosts[0] if authority is None else authority
    if not authority_is_valid(host) or (hosts and hosts[0].lower() != host.lower()):
        raise _MalformedError(f":authority {authority!r} with host {hosts!r}")
    return host


_REARRANGED: Final = frozenset((b"host", b"cookie"))


def _rearranged(headers: Headers, special: dict[bytes, list[bytes]]) -> Headers:
    """Take `host` out, and join cookies where the first one stood."""
    cookies = special.get(b"cookie", [])
    joined: Headers = []
    for field in headers:
        if field[0] == b"cookie":
            if cookies:
                joined.append((b"cookie", b"; ".join(cookies)))
                cookies = []
        elif field[0] != b"host":
            joined.append(field)
    return joined
