from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from asgiri.worker.protocol.sniff import HTTP2_PREFACE, Sniffed, sniff


@given(st.integers(0, len(HTTP2_PREFACE) - 1))
def test_part_of_the_preface_says_nothing_yet(size: int):
    assert sniff(HTTP2_PREFACE[:size]) is Sniffed.NEED_MORE


@given(st.binary())
def test_whole_preface_is_http2_whatever_follows(behind: bytes):
    assert sniff(HTTP2_PREFACE + behind) is Sniffed.HTTP2


@given(st.integers(0, len(HTTP2_PREFACE) - 1), st.integers(0, 255), st.binary(max_size=40))
def test_any_other_byte_is_http1(at: int, byte: int, behind: bytes):
    expected = Sniffed.HTTP1 if byte != HTTP2_PREFACE[at] else None
    found = sniff(HTTP2_PREFACE[:at] + bytes([byte]) + behind)
    assert expected is None or found is expected


def test_requests_are_http1():
    for request in (
        b"GET / HTTP/1.1\r\n",
        b"P",
        b"PRI",
        b"PROPFIND / HTTP/1.1\r\n",
        b"PRI * HTTP/1.1",
    ):
        if not HTTP2_PREFACE.startswith(request):
            assert sniff(request) is Sniffed.HTTP1


@given(
    st.one_of(
        st.binary(max_size=40), st.just(HTTP2_PREFACE + b"x"), st.just(b"PRI * HTTP/2.0\r\n\r\nSX")
    )
)
def test_events_do_not_depend_on_how_bytes_arrive(received: bytes):
    """Asked at each byte, the first answer that is not "need more" stays the answer."""
    answers = [sniff(received[:size]) for size in range(len(received) + 1)]
    decided = [answer for answer in answers if answer is not Sniffed.NEED_MORE]
    assert len(set(decided)) <= 1
    assert answers[len(answers) - len(decided) :] == decided
