"""Extensible priorities (RFC 9218): how urgent a response is, and whether a part of it is of use.
Sans-IO.

The field value is a Structured Fields dictionary (RFC 8941 §3.2) of which two members matter: `u`,
an integer from 0 to 7, and `i`, a boolean. RFC 9218 §4: what can't be parsed or is out of range is
ignored.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

_MEMBER: Final = re.compile(rb"[ \t]*([a-z*][a-z0-9_.*-]*)(?:=([^,;]*))?(?:;[^,]*)?[ \t]*")
_MAX_LENGTH: Final = 256
"""Bytes of a field value that are looked at. Real ones have 6."""


class Priority(NamedTuple):
    """Sorts in the order of sending, the tie broken by the stream's number."""

    urgency: int = 3
    incremental: bool = False


DEFAULT: Final = Priority()


def parse_priority_untrusted(value: bytes) -> Priority:
    """Read a Priority field value or the one in a PRIORITY_UPDATE frame. Never raises."""
    urgency, incremental = DEFAULT
    for part in value[:_MAX_LENGTH].split(b","):
        match = _MEMBER.fullmatch(part)
        if match is None:
            # RFC 8941 §4.2: a failure anywhere makes the whole field fail, and a failed field is
            # ignored.
            return DEFAULT
        name, member = match[1], match[2]
        if name == b"u" and member is not None and len(member) == 1 and b"0" <= member <= b"7":
            urgency = int(member)
        elif name == b"i" and member in (None, b"?1"):
            incremental = True
        elif name == b"i" and member == b"?0":
            incremental = False
    return Priority(urgency, incremental)
