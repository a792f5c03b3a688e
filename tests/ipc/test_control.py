"""Frames of the control socket: the same however they arrive, and nothing that is none gets by."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgiri.errors import LocalProtocolError
from asgiri.ipc import control
from asgiri.ipc.control import (
    ANSWERS,
    MAX_ANSWER_SIZE,
    MAX_REQUEST_SIZE,
    REQUESTS,
    Board,
    BrokenFrameError,
    Done,
    Refused,
)

text = st.text(st.characters(codec="utf-8"), max_size=50)
requests = st.one_of(
    st.sampled_from([control.Reload(), control.Watch(), control.Stop(), control.Stop(True)]),
    st.builds(control.Scale, st.integers(-(1 << 63), (1 << 63) - 1)),
    st.builds(control.Stacks, st.integers(0, 1 << 40)),
    st.builds(control.SetLevel, text),
)
answers = st.one_of(st.just(Board()), st.builds(Done, text), st.builds(Refused, text))


def take_all(codec, chunks):
    buffer, found = bytearray(), []
    for chunk in chunks:
        buffer += chunk
        while (message := codec.take_untrusted(buffer)) is not None:
            found.append(message)
    return found, bytes(buffer)


@given(st.data(), st.sampled_from(["requests", "answers"]))
def test_messages_do_not_depend_on_how_their_bytes_arrive(data, direction):
    codec, kinds = {"requests": (REQUESTS, requests), "answers": (ANSWERS, answers)}[direction]
    sent = data.draw(st.lists(kinds, max_size=5))
    stream = b"".join(map(codec.encode, sent))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=5)))
    edges = [0, *cuts, len(stream)]
    chunks = [stream[a:b] for a, b in itertools.pairwise(edges)]
    assert take_all(codec, chunks) == (sent, b"")


@given(st.binary(max_size=200))
def test_what_is_no_frame_is_said_to_be_broken_and_nothing_else(garbage):
    try:
        take_all(REQUESTS, [garbage])
    except BrokenFrameError:
        pass


def frame(body: bytes) -> bytes:
    return len(body).to_bytes(4) + body


@pytest.mark.parametrize(
    "broken",
    [
        bytes(4),
        (MAX_REQUEST_SIZE + 1).to_bytes(4),
        b"\xff\xff\xff\xff",
        frame(b"x{}"),
        frame(b"+{}"),
        frame(b"n"),
        frame(b"n{}"),
        frame(b'n{"count": "3"}'),
        frame(b'n{"count": 1.5}'),
        frame(b'n{"count": true}'),
        frame(b"n[3]"),
        frame(b"n{"),
        frame(b"n" + b"[" * 2000),
        frame(b'v{"level": 7}'),
    ],
)
def test_broken_frames(broken):
    with pytest.raises(BrokenFrameError):
        take_all(REQUESTS, [broken])


def test_fields_of_newer_code_are_passed_over():
    newer = frame(b'n{"count": 3, "gently": true}')
    assert take_all(REQUESTS, [newer]) == ([control.Scale(3)], b"")


def test_an_answer_that_is_too_long_is_our_bug():
    assert len(ANSWERS.encode(Done("x" * (MAX_ANSWER_SIZE - 100)))) <= MAX_ANSWER_SIZE + 4
    with pytest.raises(LocalProtocolError):
        ANSWERS.encode(Done("x" * MAX_ANSWER_SIZE))
