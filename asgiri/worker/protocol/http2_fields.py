"""Field blocks of an HTTP/2 peer, kept from h2. Sans-IO.

h2 would end the connection for a content-length, or a field of responses, that makes one request
malformed, and would call a block that cannot be decoded PROTOCOL_ERROR. It gets blocks without
fields, and `fields` has the last ones.
"""

from __future__ import annotations

from collections.abc import Iterable

from hpack import HeaderTuple
from hpack.exceptions import HPACKError, OversizedHeaderListError

from asgiri.ipc.scoreboard import Refusal
from asgiri.worker.protocol.http2_frames import ErrorCode, FrameViolation
from asgiri.worker.protocol.http2_hpack import KnowingDecoder


class FieldDecoder(KnowingDecoder):
    """What h2 decodes blocks with. Raises FrameViolation, which h2 lets pass."""

    def __init__(self, *, max_list_size: int) -> None:
        """Up to `max_list_size` the caller decides, which needs the state to stay in step; a list
        of more than twice the size ends the connection before it is whole.
        """
        super().__init__(2 * max_list_size)
        self.fields: list[tuple[bytes, bytes]] = []
        """Of the last block; not to be changed."""

    def recall(self, block: bytes) -> bool:
        """Take into `fields` what came before; False if it has to be decoded."""
        known = self.known.get(block)
        if known is not None:
            self.fields = [*known]
        return known is not None

    def decode(self, data: bytes, raw: bool = False) -> Iterable[HeaderTuple]:
        """Decode a block into `fields`."""
        try:
            self.fields = [*super().decode(data, raw=True)]
        except OversizedHeaderListError as error:
            code, reason = ErrorCode.ENHANCE_YOUR_CALM, Refusal.HTTP2_HEADERS_TOO_LARGE
            raise FrameViolation(code, reason, str(error)) from None
        except (HPACKError, IndexError, TypeError, ValueError) as error:
            # RFC 9113 §4.3: "MUST be treated as a connection error [...] of type
            # COMPRESSION_ERROR". Not all are HPACKErrors: hpack runs off the end of some.
            code, reason = ErrorCode.COMPRESSION_ERROR, Refusal.HTTP2_COMPRESSION
            raise FrameViolation(code, reason, f"{type(error).__name__}: {error}") from None
        return []
