"""Requests whose fields came before are received a shorter way, which must end where h2's does."""

import hpack
from hypothesis import given
from hypothesis import strategies as st

from asgiri.config import FlowConfig, Http2Config
from asgiri.worker.protocol.events import ResponseHead
from asgiri.worker.protocol.http2 import MAX_FORGETTABLE, Http2Connection
from asgiri.worker.protocol.http2_frames import Flag, FrameType, frame
from asgiri.worker.protocol.sniff import HTTP2_PREFACE

PRIORITY = 0x20
FIELDS = [(b":scheme", b"https"), (b":authority", b"example.org"), (b":path", b"/")]
KNOWN = [(b"GET", b"0"), (b"GET", b"1"), (b"POST", b"0")]
ACTIONS = ["get", "post", "trailers", "reused id", "data", "reset", "answer", "settings", "window"]


class Peer:
    """An engine, and who feeds it by hand. With `long` its HEADERS carry a priority, which means
    nothing and is h2's to read.
    """

    def __init__(self, *, long):
        self.engine = Http2Connection(
            Http2Config(max_concurrent_streams=5), FlowConfig(), now=lambda: 100.0
        )
        self.long = long
        self.encoder = hpack.Encoder()
        self.next_id = 1
        self.receive(HTTP2_PREFACE + frame(FrameType.SETTINGS, 0, b""))
        for method, kind in (*KNOWN, *KNOWN):
            self.request(method, kind)
            self.receive(frame(FrameType.RST_STREAM, self.next_id - 2, bytes(4)))
            self.engine.release(self.next_id - 2)

    def receive(self, raw):
        events = self.engine.receive_data(raw)
        return events, self.engine.data_to_send(), self.engine.sent_events()

    def send_headers(self, stream_id, fields, *, ended):
        flags = Flag.END_HEADERS | (Flag.END_STREAM if ended else 0)
        block = self.encoder.encode(fields)
        if self.long:
            flags, block = flags | PRIORITY, bytes(4) + b"\x0f" + block
        return self.receive(frame(FrameType.HEADERS, stream_id, block, flags))

    def request(self, method, kind):
        stream_id, self.next_id = self.next_id, self.next_id + 2
        fields = [(b":method", method), *FIELDS, (b"kind", kind)]
        return self.send_headers(stream_id, fields, ended=method == b"GET")

    def answer(self, stream_id):
        head = ResponseHead(200, [(b"content-length", b"2")], 2)
        self.engine.send_response(stream_id, head, b"ok", ended=True)
        self.engine.release(stream_id)
        return self.receive(b"")

    def act(self, action, number):
        chosen = self.next_id - 2 * number
        match action:
            case "get":
                return self.request(b"GET", b"%d" % (number // 3))
            case "post":
                return self.request(b"POST", b"0")
            case "trailers":
                return self.send_headers(chosen, [(b"trailer", b"1")], ended=True)
            case "reused id":
                fields = [(b":method", b"GET"), *FIELDS, (b"kind", b"0")]
                return self.send_headers(chosen, fields, ended=True)
            case "data":
                return self.receive(frame(FrameType.DATA, chosen, b"body", number % 2))
            case "reset":
                return self.receive(frame(FrameType.RST_STREAM, chosen, bytes(4)))
            case "answer":
                return self.answer(chosen)
            case "settings":
                window = (4).to_bytes(2) + number.to_bytes(4)
                return self.receive(frame(FrameType.SETTINGS, 0, window))
            case "window":
                return self.receive(frame(FrameType.WINDOW_UPDATE, chosen, (1).to_bytes(4)))


@given(st.lists(st.tuples(st.sampled_from(ACTIONS), st.integers(1, 5)), max_size=20))
def test_both_ways_end_at_the_same_place(actions):
    short, long = Peer(long=False), Peer(long=True)
    for action in actions:
        assert short.act(*action) == long.act(*action)
    assert short.engine.is_idle == long.engine.is_idle


def test_streams_that_are_over_do_not_pile_up():
    peer = Peer(long=False)
    for stream_id in range(peer.next_id, 10 * MAX_FORGETTABLE, 2):
        peer.request(b"GET", b"0")
        peer.answer(stream_id)
    assert len(peer.engine._h2.streams) <= MAX_FORGETTABLE + 1
