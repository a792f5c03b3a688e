"""QUIC, server side of one connection: aioquic with our connection IDs and our flow control.
Sans-IO.

aioquic owns the protocol (RFC 9000 to 9002). It has no hook for connection IDs, gives receive
credit as data arrives, and raises on some of what a hostile peer can send, or lets it pass. Those
things are mended here, in the only module that touches its private names; a test fails when one of
them moves, and `quic_self_test` at boot when they mean something else.

Connection IDs. Every ID that a client learns comes from the worker's mint, its reset token from the
shared key.

Receive credit. aioquic doubles a limit when half of it was used, whoever reads. Here a limit is
what the application has taken plus a window: `grant` moves it on. What is announced lags by up to a
quarter of the window, so that a frame is worth its bytes.

Send buffers. aioquic takes whatever it is given. `unsent` says what waits for the peer's windows or
the congestion controller, `held` adds what is under way.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from aioquic.buffer import Buffer, BufferReadError  # type: ignore[attr-defined]
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import (
    CONNECTION_LIMIT_FRAME_CAPACITY,
    MAX_STREAM_DATA_FRAME_CAPACITY,
    Limit,
    QuicConnection,
    QuicConnectionError,
    QuicConnectionState,
    QuicNetworkPath,
)
from aioquic.quic.packet import (
    QuicErrorCode,
    QuicFrameType,
    QuicPacketType,
    QuicProtocolVersion,
    pull_quic_header,
)

from asgiri.config import Http3Config
from asgiri.ipc.connection_id import CONNECTION_ID_LENGTH, ConnectionIdMint
from asgiri.ipc.tokens import ResetTokens
from asgiri.worker.protocol.budget import Budget
from asgiri.worker.protocol.quic_tls import ClientAuthorities, prepare_handshake, tls_extension
from asgiri.worker.protocol.server_names import ServerNames

if TYPE_CHECKING:
    from aioquic.quic.connection import QuicReceiveContext
    from aioquic.quic.packet_builder import QuicPacketBuilder
    from aioquic.quic.recovery import QuicPacketSpace
    from aioquic.quic.stream import QuicStream

ALPN: Final = "h3"
VERSIONS: Final = (QuicProtocolVersion.VERSION_1, QuicProtocolVersion.VERSION_2)

UNI_STREAMS: Final = 16
"""Unidirectional streams a client may have open. HTTP/3 needs 3; the others are for extensions and
grease (RFC 9114 §6.2 asks for at least 3, and for at least 1,024 bytes of credit on each)."""

UPDATE_SHARE: Final = 4
"""A new limit is announced when it is ahead of the last one by window / 4: 1 frame in 200 packets
at the defaults."""

SILENT_AFTER: Final = 3
"""Probes (RFC 9002 §6.2), each after twice the time of the one before: some 7 round trips."""
CHALLENGE_BURST: Final = 100
CHALLENGES_PER_SECOND: Final = 10.0
"""PATH_CHALLENGE frames of a client: each is answered in a datagram of 1200 bytes, and carries
nothing. A client sends some of them when its address changes, a middlebox none."""
MAX_FLIGHT: Final = 4 << 20
"""Bytes that may be under way, whatever the congestion window says. Without it a client that has
acknowledged a gigabyte makes us keep the next one. 4 MiB are 335 Mbit/s at 100 ms."""
MAX_CRYPTO: Final = 64 << 10
"""Bytes of TLS messages that a client may send in each packet number space. A ClientHello takes
2 KiB, a chain of client certificates 10; RFC 9000 §7.5 asks for 4,096. aioquic takes 512 KiB ahead
and 16 MiB in order, from everybody who begins a connection."""
MIN_GAPS: Final = 256
"""Gaps in what came of a stream, at least; one for each 4 KiB of its window beyond 1 MiB. Each
costs memory and time (RFC 9000 §21.7), and every fifth packet lost at random makes 140 of them."""
DEFAULT_ORDER: Final = 3 << 62
"""Where a response stands that has no priority (RFC 9218 §4.1): urgency 3, a part at a time."""


class Initial(NamedTuple):
    """The header of a client's Initial packet."""

    version: int
    destination_cid: bytes
    source_cid: bytes
    token: bytes


def quic_configuration(
    config: Http3Config, *, certfile: str, keyfile: str | None, password: str
) -> QuicConfiguration:
    """Read a certificate and return what all connections share that are shown it."""
    configuration = QuicConfiguration(
        is_client=False,
        alpn_protocols=[ALPN],
        connection_id_length=CONNECTION_ID_LENGTH,
        idle_timeout=config.idle_timeout,
        max_data=config.connection_window,
        max_stream_data=config.stream_window,
        max_datagram_size=config.max_datagram_size,
        supported_versions=list(VERSIONS),
    )
    configuration.load_cert_chain(certfile, keyfile, password or None)
    return configuration


class _SilentLogger:
    """aioquic's log lines carry what the peer wrote; we report by events and counters."""

    def debug(self, *_: object) -> None: ...

    info = warning = error = debug


_SILENT: Final = _SilentLogger()


class SteeredQuicConnection(QuicConnection):
    """aioquic's connection; every method of ours that starts without an underscore is safe to call
    at any time.

    `receive_datagram`, `datagrams_to_send` and `handle_timer` never raise: what aioquic raises
    closes the connection with INTERNAL_ERROR and is kept in `fault`.
    """

    def __init__(
        self,
        *,
        configuration: QuicConfiguration,
        mint: ConnectionIdMint,
        reset_tokens: ResetTokens,
        max_streams: int,
        original_destination_connection_id: bytes,
        retry_source_connection_id: bytes | None = None,
        names: ServerNames[QuicConfiguration] | None = None,
        authorities: ClientAuthorities | None = None,
    ) -> None:
        """`names`: None when everybody is shown the same certificate. `authorities`: None when
        clients are not asked for theirs.
        """
        self._names = names
        self._authorities = authorities
        self._orders: dict[int, int] = {}
        """Streams that have a priority: smaller goes first."""
        self._queue: list[QuicStream] = []
        self._progress: dict[int, tuple[int, float]] = {}
        """Streams that have something to send: how far they had come, and when."""
        super().__init__(
            configuration=configuration,
            original_destination_connection_id=original_destination_connection_id,
            retry_source_connection_id=retry_source_connection_id,
        )
        self._mint = mint
        self._reset_tokens = reset_tokens
        self._connection_step = configuration.max_data // UPDATE_SHARE
        self._stream_window = configuration.max_stream_data
        self._stream_step = configuration.max_stream_data // UPDATE_SHARE
        self._max_gaps = max(MIN_GAPS, configuration.max_stream_data >> 12)
        self._local_max_streams_bidi.value = self._local_max_streams_bidi.sent = max_streams
        self._local_max_streams_uni.value = self._local_max_streams_uni.sent = UNI_STREAMS
        self._is_given_up = False
        self._is_finished = False
        self._has_news = False
        self._challenges = Budget(burst=CHALLENGE_BURST, per_second=CHALLENGES_PER_SECOND)
        self.fault: str | None = None
        """What aioquic raised, if it did."""
        # The peer's words would reach the log of every application that sets its root logger to
        # INFO.
        self._logger = self._loss._logger = _SILENT  # type: ignore[assignment]

        first = self._host_cids[0]
        first.cid = mint.mint()
        first.stateless_reset_token = reset_tokens.token(first.cid)
        self.host_cid = self._local_initial_source_connection_id = first.cid

    # State

    @property
    def host_connection_ids(self) -> list[bytes]:
        """Every connection ID of ours that the peer may use now."""
        return [entry.cid for entry in self._host_cids]

    @property
    def has_begun(self) -> bool:
        """A packet could be decrypted: the peer made its keys from the connection ID it chose."""
        return self._state is not QuicConnectionState.FIRSTFLIGHT

    def tls_extension(self) -> dict[str, Any]:
        """Value of the `tls` extension of ASGI scopes; known when the handshake is complete."""
        return tls_extension(self.tls)

    @property
    def is_ending(self) -> bool:
        """True from the first reason to end on: a close by either side, or a timeout."""
        return self._close_event is not None or self._is_given_up

    @property
    def close_is_pending(self) -> bool:
        """True while a CONNECTION_CLOSE of ours waits for `datagrams_to_send`."""
        return self._close_pending and not self._is_given_up

    @property
    def end_reason(self) -> str:
        if self.fault is not None:
            return self.fault
        event = self._close_event
        return "" if event is None else f"{event.error_code:#x} {event.reason_phrase}"

    @property
    def peer_is_to_blame(self) -> bool:
        """The peer broke a rule of QUIC, for which aioquic closes and has not told it yet."""
        return self._close_pending and not self._is_finished

    @property
    def end_code(self) -> int:
        """Code of the CONNECTION_CLOSE, of either side; NO_ERROR when there was none."""
        event = self._close_event
        return int(QuicErrorCode.NO_ERROR if event is None else event.error_code)

    def finish(self, error_code: int, reason: str) -> None:
        """Close the connection for a reason of HTTP/3's. Does nothing when it is ending already."""
        if self._close_event is None:
            self._is_finished = True
            self.close(error_code=error_code, reason_phrase=reason)

    def forget_handshake(self) -> None:
        """Let go of what only the handshake needed: 48 KiB, half of what a connection holds."""
        self._crypto_buffers = {}

    def trust_path(self, address: Any) -> None:
        """A token proved the client's address: no limit on what it is sent (RFC 9000 §8.1)."""
        self._network_paths = [QuicNetworkPath(address, is_validated=True)]

    def is_at(self, address: Any) -> bool:
        """The path in use leads there and is validated: no replay can make us believe it."""
        path = self._network_paths[0]
        return path.is_validated and bool(path.addr == address)

    # Receiving

    def receive_datagram(self, data: bytes, addr: Any, now: float) -> None:
        try:
            super().receive_datagram(data, addr, now)
        except Exception as error:
            # Foreign code reads a stranger's bytes: whatever it raises ends this connection alone.
            self._fail(error)

    def grant(self, stream_id: int, size: int) -> bool:
        """As many bytes of a stream were taken: let the peer send more. True: worth a packet."""
        limit = self._local_max_data
        limit.value += size
        is_due = limit.value - limit.sent >= self._connection_step
        stream = self._streams.get(stream_id)
        if stream is not None:
            stream.max_stream_data_local += size
            ahead = stream.max_stream_data_local - stream.max_stream_data_local_sent
            is_due = is_due or (ahead >= self._stream_step and not stream.receiver.is_finished)
        return is_due

    def release(self, stream_id: int, unread: int) -> bool:
        """Count all that came on a stream as taken, delivered or not: nobody will read it.

        `unread` is what was delivered and not granted: all there is when aioquic has forgotten the
        stream.
        """
        stream = self._streams.get(stream_id)
        if stream is None:
            return self.grant(stream_id, unread)
        taken = stream.max_stream_data_local - self._stream_window
        return self.grant(stream_id, stream.receiver.highest_offset - taken)

    def stop_receiving(self, stream_id: int, error_code: int) -> None:
        """Ask the peer to send no more on a stream (STOP_SENDING)."""
        stream = self._streams.get(stream_id)
        if stream is not None and not stream.receiver.is_finished:
            stream.receiver.stop(error_code)

    # Sending

    def open_uni_stream(self) -> int:
        """Begin a stream of our own; `send` to it."""
        stream_id = self.get_next_available_stream_id(is_unidirectional=True)
        self._get_or_create_stream_for_send(stream_id)
        return stream_id

    def send(self, stream_id: int, data: bytes, *, ended: bool = False) -> None:
        """Queue bytes. Nothing happens when the stream is over, whoever ended it."""
        stream = self._streams.get(stream_id)
        if stream is None:
            return
        sender = stream.sender
        if sender._buffer_fin is None and sender._reset_error_code is None:
            sender.write(data, end_stream=ended)
            self._has_news = True

    def abort_sending(self, stream_id: int, error_code: int) -> None:
        """Give our side of a stream up (RESET_STREAM). Nothing happens when it is over."""
        stream = self._streams.get(stream_id)
        if stream is not None:
            stream.sender.reset(error_code)

    def sending_is_over(self, stream_id: int) -> bool:
        """Our side of a stream was reset, as a STOP_SENDING does."""
        stream = self._streams.get(stream_id)
        return stream is None or stream.sender._reset_error_code is not None

    def unsent(self, stream_id: int) -> int:
        """Bytes of a stream that have not been sent once."""
        stream = self._streams.get(stream_id)
        if stream is None or stream.sender._reset_error_code is not None:
            return 0
        return stream.sender._buffer_stop - stream.sender.highest_offset

    def held(self, stream_id: int) -> int:
        """Bytes of a stream in memory: unsent, or sent and not acknowledged."""
        stream = self._streams.get(stream_id)
        return 0 if stream is None else len(stream.sender._buffer)

    @property
    def has_unfinished_responses(self) -> bool:
        """True while the peer has not acknowledged the end of everything sent on its streams."""
        return any(
            not stream.sender.is_finished
            for stream_id, stream in self._streams.items()
            if not stream_id & 3 and stream.sender._buffer_stop
        )

    @property
    def is_silent(self) -> bool:
        """The peer has let several probes go unanswered: it is gone, or its network is."""
        return self._loss._pto_count >= SILENT_AFTER

    def prioritize(self, stream_id: int, urgency: int, *, incremental: bool) -> None:
        """Send the more urgent first (RFC 9218): of equals those that go part by part, in turns,
        and then one after the other."""
        self._orders[stream_id] = (urgency << 62) + (0 if incremental else 1 + stream_id)

    def stalled_streams(self, now: float, patience: float) -> list[int]:
        """Streams of which nothing could be sent for so long. To be called now and then."""
        progress = {}
        stalled = []
        for stream_id, stream in self._streams.items():
            sender = stream.sender
            if sender._buffer_stop == sender.highest_offset or sender._reset_error_code is not None:
                continue
            offset, since = self._progress.get(stream_id, (-1, now))
            if offset != sender.highest_offset:
                since = now
            elif now - since >= patience:
                stalled.append(stream_id)
            progress[stream_id] = (sender.highest_offset, since)
        self._progress = progress
        return stalled

    def datagrams_to_send(self, now: float) -> list[tuple[bytes, Any]]:
        # Before its first valid datagram a connection has no path, and aioquic would fail for want
        # of one.
        if not self._network_paths or not self._cryptos or self._is_given_up:
            return []
        control = self._loss._cc
        if control.congestion_window > MAX_FLIGHT:
            control.congestion_window = MAX_FLIGHT
        if self._has_news:
            # aioquic lets an acknowledgement wait for a millisecond, then sends it in a packet of
            # its own. Where a packet leaves anyhow it goes along: one less for most requests.
            self._has_news = False
            for space in self._loss.spaces:
                if space.ack_at is not None and space.ack_at > now:
                    space.ack_at = now
        elif self._is_quiet(now):
            return []
        try:
            return super().datagrams_to_send(now)
        except Exception as error:  # as in receive_datagram
            self._fail(error)
            return []

    def handle_timer(self, now: float) -> None:
        # Unless it was asked, aioquic goes by the loss timer of the last time it was.
        due = self.get_timer()
        if due is None or due > now:
            return
        try:
            super().handle_timer(now)
        except Exception as error:  # as in receive_datagram
            self._fail(error)

    def _is_quiet(self, now: float) -> bool:
        """Whether aioquic would look through everything and send nothing: 35 us against 3 here.

        So it goes with each packet that only acknowledges, which is every second one of a client.
        """
        if (
            not self._handshake_confirmed
            or self._close_pending
            or self._probe_pending
            or self._ping_pending
            or self._handshake_done_pending
            or self._streams_blocked_pending
            or self._retire_connection_ids
        ):
            return False
        ack_at = self._loss.spaces[-1].ack_at
        if ack_at is not None and ack_at <= now:
            return False
        if any(path.remote_challenges or not path.is_validated for path in self._network_paths):
            return False
        if not all(entry.was_sent for entry in self._host_cids):
            return False
        if not self._streams_are_quiet() or self._due_limits():
            return False
        self._pacing_at = None
        return True

    def _streams_are_quiet(self) -> bool:
        finished = False
        for stream in self._queue:
            sender, receiver = stream.sender, stream.receiver
            if not sender.buffer_is_empty or sender.reset_pending or receiver.stop_pending:
                return False
            ahead = stream.max_stream_data_local - stream.max_stream_data_local_sent
            if ahead >= self._stream_step and not receiver.is_finished:
                return False
            finished = finished or (sender.is_finished and receiver.is_finished)
        if finished:
            self._discard_finished_streams()
        return True

    def _discard_finished_streams(self) -> None:
        """As aioquic does when it sends: each stream that is over lets the peer open another."""
        for stream in self._queue:
            if stream.is_finished and stream.stream_id is not None:
                # The client's: ours are critical to HTTP/3 and end with the connection.
                del self._streams[stream.stream_id]
                self._stream_limit(stream.stream_id).value += 1
        self._streams_queue = [stream for stream in self._queue if not stream.is_finished]

    def _due_limits(self) -> list[Limit]:
        """Limits of the connection that shall be announced."""
        max_data = self._local_max_data
        # A lost announcement sets `sent` to 0: due at once.
        limits = [max_data] if max_data.value - max_data.sent >= self._connection_step else []
        for limit in (self._local_max_streams_bidi, self._local_max_streams_uni):
            # As aioquic does: when the peer has fewer streams left than the update would grant.
            if limit.sent - limit.used < limit.value - limit.sent:
                limits.append(limit)  # noqa: PERF401 (half the time of a comprehension)
        return limits

    def close(
        self,
        error_code: int = QuicErrorCode.NO_ERROR,
        frame_type: int | None = None,
        reason_phrase: str = "",
    ) -> None:
        # For aioquic a close without a frame type is HTTP/3's, also where it makes one itself.
        if frame_type is None and not self._is_finished:
            frame_type = int(QuicFrameType.PADDING)
        super().close(error_code, frame_type, reason_phrase)

    # aioquic calls these

    def _initialize(self, peer_cid: bytes) -> None:
        super()._initialize(peer_cid)
        if self._names is not None or self._authorities is not None:
            prepare_handshake(self.tls, self._names, self._authorities)

    @property
    def _streams_queue(self) -> list[QuicStream]:
        """The order of service, in which aioquic puts a stream last that was served."""
        if self._orders:
            self._queue.sort(key=self._order)
        return self._queue

    @_streams_queue.setter
    def _streams_queue(self, queue: list[QuicStream]) -> None:
        self._queue = queue
        if len(self._orders) > 2 * len(queue) + 16:
            self._orders = {key: self._orders[key] for key in self._orders if key in self._streams}

    def _order(self, stream: QuicStream) -> int:
        stream_id = stream.stream_id or 0
        # Ours carry what all others wait for.
        return -1 if stream_id & 1 else self._orders.get(stream_id, DEFAULT_ORDER)

    def _replenish_connection_ids(self) -> None:
        known = len(self._host_cids)
        super()._replenish_connection_ids()
        for entry in self._host_cids[known:]:
            entry.cid = self._mint.mint()
            entry.stateless_reset_token = self._reset_tokens.token(entry.cid)

    def _handle_ack_frame(self, context: QuicReceiveContext, frame_type: int, buf: Buffer) -> None:
        super()._handle_ack_frame(context, frame_type, buf)
        # RFC 9000 §13.1: who acknowledges what was not sent makes us send faster (§21.4).
        if self._spaces[context.epoch].largest_acked_packet >= self._packet_number:
            raise QuicConnectionError(
                QuicErrorCode.PROTOCOL_VIOLATION, frame_type, "acknowledges what was never sent"
            )

    def _handle_crypto_frame(
        self, context: QuicReceiveContext, frame_type: int, buf: Buffer
    ) -> None:
        start = buf.tell()
        if buf.pull_uint_var() + buf.pull_uint_var() > MAX_CRYPTO:
            raise QuicConnectionError(
                QuicErrorCode.CRYPTO_BUFFER_EXCEEDED, frame_type, f"above {MAX_CRYPTO} bytes"
            )
        buf.seek(start)
        self._bound_gaps(self._crypto_streams[context.epoch], frame_type)
        super()._handle_crypto_frame(context, frame_type, buf)

    def _get_or_create_stream(self, frame_type: int, stream_id: int) -> QuicStream:
        stream = super()._get_or_create_stream(frame_type, stream_id)
        self._bound_gaps(stream, frame_type)
        return stream

    def _bound_gaps(self, stream: QuicStream, frame_type: int) -> None:
        if len(stream.receiver._ranges) > self._max_gaps:
            raise QuicConnectionError(
                QuicErrorCode.INTERNAL_ERROR, frame_type, f"above {self._max_gaps} gaps"
            )

    def _handle_new_connection_id_frame(
        self, context: QuicReceiveContext, frame_type: int, buf: Buffer
    ) -> None:
        start = buf.tell()
        sequence_number = buf.pull_uint_var()
        if buf.pull_uint_var() > sequence_number:  # RFC 9000 §19.15
            raise QuicConnectionError(
                QuicErrorCode.FRAME_ENCODING_ERROR, frame_type, "retires later connection IDs"
            )
        if not self._peer_cid.cid:
            raise QuicConnectionError(
                QuicErrorCode.PROTOCOL_VIOLATION, frame_type, "no connection ID was wanted"
            )
        buf.seek(start)
        super()._handle_new_connection_id_frame(context, frame_type, buf)

    def _parse_transport_parameters(self, data: bytes, from_session_ticket: bool = False) -> None:
        if _repeats_itself(data):
            raise QuicConnectionError(
                QuicErrorCode.TRANSPORT_PARAMETER_ERROR,
                int(QuicFrameType.CRYPTO),
                "a transport parameter comes twice",
            )
        super()._parse_transport_parameters(data, from_session_ticket)

    def _handle_path_challenge_frame(
        self, context: QuicReceiveContext, frame_type: int, buf: Buffer
    ) -> None:
        if not self._challenges.spend(context.time):
            raise QuicConnectionError(
                QuicErrorCode.INTERNAL_ERROR, frame_type, f"above {CHALLENGE_BURST} challenges"
            )
        super()._handle_path_challenge_frame(context, frame_type, buf)

    def _write_connection_limits(self, builder: QuicPacketBuilder, space: QuicPacketSpace) -> None:
        for limit in self._due_limits():
            buffer = builder.start_frame(
                limit.frame_type,
                capacity=CONNECTION_LIMIT_FRAME_CAPACITY,
                handler=self._on_connection_limit_delivery,
                handler_args=(limit,),
            )
            buffer.push_uint_var(limit.value)
            limit.sent = limit.value

    def _write_stream_limits(
        self, builder: QuicPacketBuilder, space: QuicPacketSpace, stream: QuicStream
    ) -> None:
        limit = stream.max_stream_data_local
        if limit - stream.max_stream_data_local_sent < self._stream_step:
            return
        if stream.receiver.is_finished or stream.receiver._stop_error_code is not None:
            return
        buffer = builder.start_frame(
            QuicFrameType.MAX_STREAM_DATA,
            capacity=MAX_STREAM_DATA_FRAME_CAPACITY,
            handler=self._on_max_stream_data_delivery,
            handler_args=(stream,),
        )
        buffer.push_uint_var(stream.stream_id or 0)
        buffer.push_uint_var(limit)
        stream.max_stream_data_local_sent = limit

    # Internals

    def _fail(self, error: Exception) -> None:
        if self.fault is None:
            self.fault = f"{type(error).__name__}: {error}"
            self.close(
                error_code=int(QuicErrorCode.INTERNAL_ERROR),
                frame_type=int(QuicFrameType.PADDING),
            )
        else:
            self._is_given_up = True  # too broken even to say goodbye


def _repeats_itself(parameters: bytes) -> bool:
    """A transport parameter comes twice (RFC 9000 §7.4). False when they cannot be read."""
    buffer = Buffer(data=parameters)
    seen = set()
    with contextlib.suppress(BufferReadError):
        while not buffer.eof():
            key = buffer.pull_uint_var()
            if key in seen:
                return True
            seen.add(key)
            buffer.pull_bytes(buffer.pull_uint_var())
    return False


# Before a connection exists


def parse_initial_untrusted(datagram: bytes) -> Initial | None:
    """Read the first packet's header; None unless it is an Initial of a version of ours."""
    buffer = Buffer(data=datagram)
    try:
        header = pull_quic_header(buffer, host_cid_length=CONNECTION_ID_LENGTH)
    except ValueError:
        return None
    if header.packet_type != QuicPacketType.INITIAL or header.version not in VERSIONS:
        return None
    return Initial(header.version, header.destination_cid, header.source_cid, header.token)
