"""Request fields read by h11, in Python. Sans-IO.

A connection lives for one section. The request line is a constant of HTTP/1.0, so that h11 leaves
the rules for Host to us, who have them for every form of target.
"""

from __future__ import annotations

from typing import Final

import h11

from asgiri.worker.protocol.events import Headers
from asgiri.worker.protocol.http1_head import split_fields

_REQUEST_LINE: Final = b"GET / HTTP/1.0\r\n"


class H11Parser:
    """A `FieldParser`."""

    def parse_fields(self, section: bytes) -> Headers:
        """Split a field section; ValueError for what h11 refuses, or reads in a way of its own."""
        connection = h11.Connection(h11.SERVER)
        connection.receive_data(_REQUEST_LINE + section)
        try:
            request = connection.next_event()
        except h11.RemoteProtocolError as error:
            raise ValueError(str(error)) from None
        assert isinstance(request, h11.Request)
        fields = split_fields(section)
        # h11 makes one Content-Length of several that agree, lists included; others may take the
        # first or none. It also writes transfer codings in lower case, which does no harm.
        if [(name, value.lower()) for name, value in fields] != [
            (name, value.lower()) for name, value in request.headers
        ]:
            raise ValueError("fields that h11 reads in its own way")
        return fields
