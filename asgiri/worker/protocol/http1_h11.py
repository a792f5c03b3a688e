"""Request fields read by h11, in Python. Sans-IO.

A connection lives for one section. The request line is a constant of HTTP/1.0, so that h11 leaves
the rules for Host to us, who have them for every form of target.
"""

from __future__ import annotations

import h11

from asgiri.worker.protocol.events import Headers

_REQUEST_LINE = b"GET / HTTP/1.0\r\n"


class H11Parser:
    """A `FieldParser`."""

    def parse_fields(self, section: bytes) -> Headers:
        """Split a field section; ValueError for what h11 does not accept."""
        # h11 asks only when a head is not complete: the limits are the scanner's.
        connection = h11.Connection(h11.SERVER)
        connection.receive_data(_REQUEST_LINE + section)
        try:
            request = connection.next_event()
        except h11.RemoteProtocolError as error:
            raise ValueError(str(error)) from None
        assert isinstance(request, h11.Request)
        return list(request.headers)
