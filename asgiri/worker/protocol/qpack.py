"""QPACK (RFC 9204) over pylsqpack, with bounds on what a field section may make of us. Sans-IO.

The decoder has the dynamic table that browsers expect. The encoder has none: it would save bytes of
fields that repeat, and cost a frame on the encoder stream, an acknowledgement for each response,
and responses that wait for each other when packets get lost.
"""

from __future__ import annotations

from typing import Final

import pylsqpack

from asgiri.errors import AppError
from asgiri.worker.protocol.events import Headers
from asgiri.worker.protocol.http3_frames import ErrorCode, FrameViolation, count_field_lines

TABLE_SIZE: Final = 4096
"""Of the decoder: as large as HTTP/2's."""
BLOCKED_STREAMS: Final = 16
"""Requests whose field section may wait for the encoder stream."""
MAX_FIELD_LINES: Final = 1024
"""In a field section. One octet can stand for a 4 KiB entry of the table: 4 MiB while decoding."""


class SectionTooLargeError(Exception):
    """A field section is larger than we announced that we take. It is out of the decoder."""


class FieldSections:
    """Both directions of one connection."""

    def __init__(self, largest_section: int) -> None:
        self._largest_section = largest_section
        self._decoder = pylsqpack.Decoder(TABLE_SIZE, BLOCKED_STREAMS)
        self._encoder = pylsqpack.Encoder()
        self._output = bytearray()

    def take_output(self) -> bytes:
        """What belongs on our decoder stream."""
        output = bytes(self._output)
        self._output.clear()
        return output

    # From the peer

    def decode(self, stream_id: int, block: bytes) -> Headers | None:
        """Return the fields; None when they wait for the encoder stream.

        Raises SectionTooLargeError, and FrameViolation for what is no field section.
        """
        if block == b"\x00\x00":
            return []  # which pylsqpack takes for an error, and trailers may be
        # Each line takes an octet or more, so that short sections need no counting.
        if (
            len(block) > MAX_FIELD_LINES
            and count_field_lines(block, MAX_FIELD_LINES) > MAX_FIELD_LINES
        ):
            self.cancel(stream_id)
            raise SectionTooLargeError
        try:
            output, fields = self._decoder.feed_header(stream_id, block)
        except pylsqpack.StreamBlocked:
            return None
        except pylsqpack.DecompressionFailed:
            raise FrameViolation(ErrorCode.QPACK_DECOMPRESSION_FAILED, "field section") from None
        return self._checked(output, fields)

    def resume(self, stream_id: int) -> Headers | None:
        """Return the fields of a section that had to wait, or None, as `decode` does."""
        try:
            output, fields = self._decoder.resume_header(stream_id)
        except pylsqpack.StreamBlocked:
            return None
        except pylsqpack.DecompressionFailed:
            raise FrameViolation(ErrorCode.QPACK_DECOMPRESSION_FAILED, "field section") from None
        return self._checked(output, fields)

    def cancel(self, stream_id: int) -> None:
        """References of a stream to the table will not be resolved (RFC 9204 §2.2.2.2)."""
        self._output += self._decoder.cancel_stream(stream_id)

    def encoder_stream_received(self, data: bytes) -> list[int]:
        """Take instructions of the peer's encoder; return the streams that may be resumed."""
        try:
            return self._decoder.feed_encoder(data)
        except pylsqpack.EncoderStreamError:
            raise FrameViolation(
                ErrorCode.QPACK_ENCODER_STREAM_ERROR, "encoder instruction"
            ) from None

    def decoder_stream_received(self, data: bytes) -> None:
        """Take instructions of the peer's decoder."""
        try:
            self._encoder.feed_decoder(data)
        except pylsqpack.DecoderStreamError:
            raise FrameViolation(
                ErrorCode.QPACK_DECODER_STREAM_ERROR, "decoder instruction"
            ) from None

    # To the peer

    def encode(self, stream_id: int, fields: Headers) -> bytes:
        """Return the field section. Raises AppError when a name or value does not fit."""
        try:
            return self._encoder.encode(stream_id, fields)[1]
        except ValueError as error:  # above 65,535 bytes
            raise AppError(f"response fields for HTTP/3: {error}") from None

    # Internals

    def _checked(self, output: bytes, fields: Headers) -> Headers:
        if output:
            self._output += output
        # RFC 9114 §4.2.2: the length of name and value, and 32 bytes for each field.
        size = sum([len(name) + len(value) for name, value in fields]) + 32 * len(fields)
        if size > self._largest_section:
            raise SectionTooLargeError
        return fields
