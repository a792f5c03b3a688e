"""QUIC connections of a worker: from the master's datagrams to sessions, and from them to the
network.

Batches. Per turn of the loop we take up to BATCH_RECORDS datagrams or BATCH_SECONDS of time, give
each to its connection, and let every connection that was touched answer once, on the loop's next
turn, behind the first steps of the applications. An answer per datagram costs twice as much.

Strangers. A datagram whose connection ID nobody here has is an Initial that begins a connection, or
late for one that is gone (`quic_ids`), or meant for one that we have forgotten: only then it gets a
stateless reset, and only from us, because nobody else can know that its connection is not alive
here (RFC 9000 §10.3, §21.11). The master resets what belongs to workers that are gone.
"""

from __future__ import annotations

import itertools
import logging
import operator
import os
import socket
from collections.abc import Mapping
from typing import Final

from asgiri.config import TlsConfig
from asgiri.errors import ChannelClosedError
from asgiri.ipc.connection_id import (
    CONNECTION_ID_LENGTH,
    ConnectionIdCodec,
    ConnectionIdKind,
    ConnectionIdMint,
)
from asgiri.ipc.records import Peer, PeerTable, Record, RecordFlag, RecordReader
from asgiri.ipc.scoreboard import Cell, Refusal
from asgiri.ipc.tokens import QuicSecrets, ResetTokens, RetryTokens
from asgiri.worker.asgi.scope import Address
from asgiri.worker.protocol.events import Event
from asgiri.worker.protocol.http3 import Http3Connection
from asgiri.worker.protocol.http3_server import Http3Server
from asgiri.worker.protocol.quic import parse_initial_untrusted
from asgiri.worker.protocol.quic_self_test import check_steering
from asgiri.worker.transport.deadlines import NEVER
from asgiri.worker.transport.quic_ids import ConnectionTable, StatelessResets, Tombstone
from asgiri.worker.transport.quic_session import QuicSession
from asgiri.worker.transport.services import WorkerServices
from asgiri.worker.transport.timers import Timers
from asgiri.worker.transport.udp import DatagramSender

logger = logging.getLogger("asgiri.worker")

BATCH_RECORDS: Final = 64
BATCH_SECONDS: Final = 0.002
"""Per turn of the loop. A full ring is 120 ms of work, which nobody else shall wait for."""
TAKE_RECORDS: Final = 16
"""Taken at once: the time is looked at in between."""

SHORTEST_DATAGRAM: Final = 22
"""First octet, connection ID, and what is left of a packet at the least."""
SMALLEST_INITIAL: Final = 1200
"""RFC 9000 §14.1."""
SHORTEST_CLIENT_CHOSEN_ID: Final = 8
"""RFC 9000 §7.2; aioquic does not check it."""

_LONG_HEADER: Final = 0x80
_ID_END: Final = 1 + CONNECTION_ID_LENGTH
_CONNECTION: Final = int(ConnectionIdKind.CONNECTION)
_CONTROL: Final = int(RecordFlag.CONTROL)
_ADDRESS: Final = operator.itemgetter(1)


class QuicEndpoint:
    """All QUIC connections of a worker. Owns the record channel and its copies of the sockets."""

    def __init__(
        self,
        services: WorkerServices,
        *,
        reader: RecordReader,
        sockets: Mapping[int, socket.socket],
        secrets: QuicSecrets,
        worker_id: int,
        tls: TlsConfig,
    ) -> None:
        """`sockets`: those of the UDP listeners, by the index of the listener."""
        self._services = services
        self._reader = reader
        self._sockets = dict(sockets)
        self._worker_id = worker_id
        self._codec = ConnectionIdCodec(secrets.connection_id_key, server_id=secrets.server_id)
        self._mint = ConnectionIdMint(self._codec, worker_id, random=os.urandom)
        self._reset_tokens = ResetTokens(secrets.reset_key)
        self._retry_tokens = RetryTokens(secrets.token_key, random=os.urandom)
        self._server = Http3Server(
            config=services.config.http3,
            flow=services.config.flow,
            tls=tls,
            mint=self._mint,
            reset_tokens=self._reset_tokens,
        )
        self._senders = {
            index: DatagramSender(services.loop, sock, services.scoreboard)
            for index, sock in sockets.items()
        }
        self._local_addresses: dict[int, Address] = {
            index: sock.getsockname()[:2] for index, sock in sockets.items()
        }
        self._peers = PeerTable()
        self._table: ConnectionTable[QuicSession] = ConnectionTable()
        self._resets = StatelessResets(self._reset_tokens)
        self._timers = Timers(services.loop, services.now)
        self._sessions: set[QuicSession] = set()
        self._half_open = 0
        self._touched: list[QuicSession] = []
        self._is_closed = False

    # For the runtime

    def check_steering(self) -> None:
        """Boot self-test; raises LocalProtocolError."""
        check_steering(self._mint, self._reset_tokens)

    def start(self) -> None:
        """Take datagrams from now on."""
        self._services.loop.add_reader(self._reader.fileno(), self._read)

    def load_certificate(self, tls: TlsConfig) -> None:
        """Use this one for new connections."""
        self._server.load_certificate(tls)

    @property
    def is_empty(self) -> bool:
        """No connection is left."""
        return not self._sessions

    def close(self) -> None:
        """Close all connections, and what the endpoint owns. The second call does nothing."""
        if self._is_closed:
            return
        self._is_closed = True
        for session in list(self._sessions):
            session.close()
        self._transmit_touched()
        for session in list(self._sessions):
            self._forget(session, self._services.now(), b"")
        self._services.loop.remove_reader(self._reader.fileno())
        self._timers.close()
        for sender in self._senders.values():
            sender.close()
        self._reader.close()
        for sock in self._sockets.values():
            sock.close()

    # For the sessions

    def touch(self, session: QuicSession) -> None:
        """A connection may have something to send: on the loop's next turn it does."""
        if session.is_touched:
            return
        session.is_touched = True
        if not self._touched:
            services = self._services
            # In the worker's own context: what it reports may start an application.
            services.loop.call_soon(
                self._transmit_touched, context=services.requests.application.context
            )
        self._touched.append(session)

    def handshake_timed_out(self, session: QuicSession) -> None:
        """Forget a connection without a word: nobody has shown that its address is its own."""
        self._services.scoreboard.add(Cell.HANDSHAKE_TIMEOUTS)
        self._services.scoreboard.refuse(Refusal.QUIC_HANDSHAKE_TIMEOUT)
        self._forget(session, self._services.now(), b"")

    # Receiving

    def _read(self) -> None:
        if self._is_closed:
            return
        services = self._services
        reader = self._reader
        now = services.now()
        until = now + BATCH_SECONDS
        count = 0
        while count < BATCH_RECORDS:
            try:
                records = reader.take(TAKE_RECORDS)
            except ChannelClosedError:  # the control channel says what follows from it
                services.loop.remove_reader(reader.fileno())
                return
            if not records:
                break
            count += len(records)
            for record in records:
                self._record(record, now)
            now = services.now()
            if now >= until:
                break
        services.scoreboard.add(Cell.RING_RECORDS, count)
        services.scoreboard.set(Cell.RING_CORRUPT, reader.corrupt)
        if reader.pending:
            # The descriptor does not tell of these; what it does tell of wakes us by itself.
            services.loop.call_soon(self._read, context=services.requests.application.context)

    def _record(self, record: Record, now: float) -> None:
        payload = record.payload
        size = record.gso_size
        if record.flags & _CONTROL:
            return
        if size:
            for start in range(0, len(payload), size):
                self._datagram(payload[start : start + size], record.peer, now)
        else:
            self._datagram(payload, record.peer, now)

    def _datagram(self, datagram: bytes, peer: bytes, now: float) -> None:
        if len(datagram) < SHORTEST_DATAGRAM:
            return
        if datagram[0] & _LONG_HEADER:
            connection_id = datagram[6 : 6 + datagram[5]]
        else:
            connection_id = datagram[1:_ID_END]
        session = self._table.living.get(connection_id)
        if session is None:
            self._stranger(datagram, connection_id, peer, now)
            return
        events = session.engine.receive_datagram(datagram, peer, now)
        if session.is_half_open and session.engine.handshake_complete:
            self._opened(session)
        if peer != session.peer and session.engine.is_at(peer):
            self._moved(session, peer)
        if events:
            session.handle_events(events)
        self.touch(session)

    def _stranger(self, datagram: bytes, connection_id: bytes, peer: bytes, now: float) -> None:
        """Handle a datagram that belongs to no connection."""
        scoreboard = self._services.scoreboard
        tombstone = self._table.tombstone(connection_id)
        if tombstone is not None:
            scoreboard.refuse(Refusal.QUIC_RETIRED_CONNECTION_ID)
            if reply := tombstone.reply():
                self._send([(reply, peer)])
            return
        opened = self._codec.open_untrusted(connection_id)
        if datagram[0] & _LONG_HEADER and (opened is None or opened[0] != _CONNECTION):
            self._begin(datagram, connection_id, peer, now, is_retried=opened is not None)
            return
        scoreboard.refuse(Refusal.QUIC_UNKNOWN_CONNECTION)
        if datagram[0] & _LONG_HEADER or opened != (_CONNECTION, self._worker_id):
            return
        # Ours, and nobody else's: the client would wait for its timeout.
        address = self._peers.decode(peer).address
        if reset := self._resets.answer(connection_id, len(datagram), address, now):
            scoreboard.add(Cell.RESETS_SENT)
            self._send([(reset, peer)])

    # Connections

    def _begin(
        self, datagram: bytes, connection_id: bytes, peer: bytes, now: float, *, is_retried: bool
    ) -> None:
        """Begin a connection, if this is an Initial that may."""
        services = self._services
        initial = parse_initial_untrusted(datagram)
        if initial is None:
            services.scoreboard.refuse(Refusal.QUIC_UNKNOWN_CONNECTION)
            return
        if len(datagram) < SMALLEST_INITIAL or len(connection_id) < SHORTEST_CLIENT_CHOSEN_ID:
            services.scoreboard.refuse(Refusal.QUIC_BAD_INITIAL)
            return
        client = self._peers.decode(peer)
        if client.listener not in self._senders:
            # The master does not write such records: somebody scribbled over the ring.
            services.scoreboard.refuse(Refusal.QUIC_UNKNOWN_LISTENER)
            return
        proof = None
        if initial.token:
            # A token that is not ours, or not for this Initial, is as good as none.
            proof = self._retry_tokens.open_untrusted(initial.token, client.address, now)
            if proof is not None and proof.retry_source_cid != connection_id:
                proof = None
        if is_retried and proof is None:
            # No handshake can succeed: the client wants to see in it what only the token tells.
            services.scoreboard.refuse(Refusal.QUIC_BAD_TOKEN)
            return
        if self._half_open >= services.config.http3.max_half_open:
            services.scoreboard.refuse(Refusal.QUIC_HALF_OPEN_LIMIT)
            return
        if proof is None:
            engine = self._server.accept(connection_id)
        else:
            engine = self._server.accept(
                proof.original_destination_cid, retried_from=connection_id, trusted_address=peer
            )
        events = engine.receive_datagram(datagram, peer, now)
        if not engine.has_begun:
            # It was no Initial of a client: nothing in it could be decrypted. Nothing is kept.
            services.scoreboard.refuse(Refusal.QUIC_BAD_INITIAL)
            return
        self._add(engine, connection_id, peer, client, events)

    def _add(
        self,
        engine: Http3Connection,
        connection_id: bytes,
        peer: bytes,
        client: Peer,
        events: list[Event],
    ) -> None:
        services = self._services
        session = QuicSession(
            self, services, engine, peer, client.address[:2], self._server_address(client)
        )
        self._sessions.add(session)
        self._half_open += 1
        for known in (connection_id, *engine.connection_ids):
            session.connection_ids.add(known)
            self._table.add(known, session)
        services.scoreboard.add(Cell.QUIC_OPENED)
        services.scoreboard.add(Cell.QUIC_OPEN)
        services.scoreboard.set(Cell.QUIC_HALF_OPEN, self._half_open)
        services.deadlines.add(session)
        if services.draining:
            session.begin_drain()
        if events:
            session.handle_events(events)
        self.touch(session)

    def _opened(self, session: QuicSession) -> None:
        """The handshake is complete."""
        session.is_half_open = False
        session.deadline = NEVER
        self._half_open -= 1
        self._services.scoreboard.set(Cell.QUIC_HALF_OPEN, self._half_open)
        session.tls.update(self._server.tls_extension(session.engine))

    def _forget(self, session: QuicSession, now: float, close: bytes) -> None:
        """A connection is gone. `close`: our CONNECTION_CLOSE, for packets that still come."""
        if session not in self._sessions:
            return
        scoreboard = self._services.scoreboard
        self._sessions.discard(session)
        self._services.deadlines.discard(session)
        if session.is_half_open:
            self._half_open -= 1
            scoreboard.set(Cell.QUIC_HALF_OPEN, self._half_open)
        self._timers.set(session, NEVER)
        self._table.bury(session.connection_ids, now, Tombstone(close))
        scoreboard.add(Cell.QUIC_CLOSED)
        scoreboard.add(Cell.QUIC_OPEN, -1)
        session.connection_gone()

    def _server_address(self, peer: Peer) -> Address:
        host, port = self._local_addresses[peer.listener]
        if peer.local_ip is None:
            return host, port
        family = socket.AF_INET if len(peer.local_ip) == 4 else socket.AF_INET6
        return socket.inet_ntop(family, peer.local_ip), port

    # Sending

    def _transmit_touched(self) -> None:
        sessions, self._touched = self._touched, []
        now = self._services.now()
        for session in sessions:
            session.is_touched = False
            if session in self._sessions:
                self._transmit(session, now)

    def _transmit(self, session: QuicSession, now: float) -> None:
        engine = session.engine
        is_closing = engine.close_is_pending
        datagrams = engine.datagrams_to_send(now)
        if datagrams:
            self._send(datagrams)
        if engine.connection_id_changes:
            self._note_connection_ids(session, now)
        if events := engine.sent_events():
            session.handle_events(events)
        if engine.is_closed:
            self._forget(session, now, datagrams[-1][0] if is_closing and datagrams else b"")
        else:
            if session.deadline == NEVER and engine.has_requests:
                session.look_after(now)
            timer = engine.timer()
            self._timers.set(session, NEVER if timer is None else timer)

    def _moved(self, session: QuicSession, peer: bytes) -> None:
        client = self._peers.decode(peer)
        if client.listener in self._senders:
            session.moved(peer, client.address[:2], self._server_address(client))

    def _note_connection_ids(self, session: QuicSession, now: float) -> None:
        for connection_id, is_new in session.engine.take_connection_id_changes():
            if is_new:
                session.connection_ids.add(connection_id)
                self._table.add(connection_id, session)
            else:
                session.connection_ids.discard(connection_id)
                self._table.bury((connection_id,), now, Tombstone())

    def _send(self, datagrams: list[tuple[bytes, bytes]]) -> None:
        for address, group in itertools.groupby(datagrams, _ADDRESS):
            peer = self._peers.decode(address)
            sender = self._senders.get(peer.listener)
            if sender is None:
                self._services.scoreboard.refuse(Refusal.QUIC_UNKNOWN_LISTENER)
            else:
                sender.send([datagram for datagram, _ in group], peer)
