"""Control messages: they come back as they were, and rubbish is None."""

from __future__ import annotations

import json
import typing

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asgiri.errors import LocalProtocolError
from asgiri.ipc import messages
from asgiri.ipc.messages import (
    MAX_FRAME_SIZE,
    Drain,
    Drained,
    Failed,
    Hello,
    ListenerInfo,
    Message,
    Quit,
    Ready,
    Shed,
    decode_untrusted,
    encode,
)

WarningMessage = messages.Warning
ALL = typing.get_args(Message)
text = st.text(max_size=20)
number = st.integers(0, (1 << 32) - 1)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 53), 1 << 53) | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=8,
)
objects = st.dictionaries(text, json_values, max_size=4)
listeners = st.builds(
    ListenerInfo,
    number,
    st.sampled_from(["tcp", "unix", "udp"]),
    text,
    number,
    text,
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
hellos = st.builds(
    Hello,
    number,
    number,
    number,
    objects,
    st.none() | objects,
    st.lists(listeners, max_size=3).map(tuple),
    st.sampled_from(["ring", "stream", None]),
    st.booleans(),
    number,
)
stages = st.sampled_from(["import", "lifespan", "tls", "selftest", "config"])
others = st.one_of(
    st.builds(Drain, st.floats(0, 1e6)),
    st.sampled_from([Quit(), messages.ReopenLogs(), messages.DumpStacks(), messages.Importing()]),
    st.builds(messages.SetLogLevel, text),
    st.builds(messages.ReloadCertificates, objects),
    st.builds(Shed, number),
    st.builds(Ready, number),
    st.builds(Failed, stages, text, text),
    st.just(Drained()),
    st.builds(WarningMessage, text),
    st.builds(messages.MoldHello, number, objects, number),
    st.builds(messages.Cast, number),
    st.builds(messages.Forked, number, number),
    st.builds(messages.ForkFailed, number, text),
)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(hellos | others)
def test_a_message_comes_back_as_it_was(message):
    assert decode_untrusted(encode(message)) == message


def test_every_message_has_an_opcode_of_its_own():
    assert set(messages._OPCODES) == set(ALL)
    assert len(set(messages._OPCODES.values())) == len(ALL)


@given(st.binary(max_size=60))
def test_rubbish_is_no_message_and_never_raises(frame):
    message = decode_untrusted(frame)
    assert message is None or isinstance(message, ALL)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(messages._TYPES)), json_values, st.data())
def test_an_opcode_with_any_json_is_a_whole_message_or_none(opcode, value, data):
    if isinstance(value, dict):
        fields = list(typing.get_type_hints(messages._TYPES[opcode]))
        value |= {name: data.draw(json_values) for name in fields}
    message = decode_untrusted(bytes([opcode]) + orjson.dumps(value))
    # Whole: it can be encoded, so no field holds what its type cannot.
    assert message is None or decode_untrusted(encode(message)) == message


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"?{}",
        b"R",
        b"R{",
        b"R[]",
        b"R{}",
        b'R{"pid":"1"}',
        b'R{"pid":true}',
        b'R{"pid":1.5}',
        b'R{"pid":null}',
        b'R{"pid":' + b"9" * 400 + b"}",
        b'D{"timeout":"soon"}',
        b'F{"stage":"lunch","summary":"","traceback":""}',
        b'F{"stage":["import"],"summary":"","traceback":""}',
        b'W{"text":"\xff"}',
        b"W" + b'{"text":' * 3000,
        b'K{"config":[]}',
    ],
)
def test_a_broken_message_is_none(frame):
    assert decode_untrusted(frame) is None


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("listeners", {}),
        ("listeners", [1]),
        ("listeners", [{"index": 0}]),
        ("secrets", []),
        ("record_channel", "pigeon"),
        ("selftest", 1),
        ("slot", None),
    ],
)
def test_a_hello_with_a_field_of_another_type_is_none(field, value):
    hello = Hello(1, 2, 3, {}, None, (), "ring", False, 4)
    body = json.loads(encode(hello)[1:])
    assert decode_untrusted(b"H" + orjson.dumps(body)) == hello
    assert decode_untrusted(b"H" + orjson.dumps(body | {field: value})) is None
    del body[field]
    assert decode_untrusted(b"H" + orjson.dumps(body)) is None


def test_a_field_of_newer_code_is_ignored_and_an_optional_one_may_be_missing():
    assert decode_untrusted(b'R{"pid":1,"mood":"good"}') == Ready(1)
    assert decode_untrusted(b'D{"timeout":30}') == Drain(30.0)
    info = {"index": 1, "kind": "tcp", "host": "::", "port": 1, "path": "", "tls": False}
    body = json.loads(encode(Hello(1, 2, 3, {}, None, (), None, False, 4))[1:])
    hello = decode_untrusted(b"H" + orjson.dumps(body | {"listeners": [info]}))
    assert isinstance(hello, Hello)
    assert hello.listeners == (ListenerInfo(1, "tcp", "::", 1, "", False),)


def test_a_long_traceback_is_cut_in_the_middle():
    traceback = "Traceback: first line\n" + "x" * 200_000 + "\nValueError: last line"
    frame = encode(Failed("import", "ValueError: last line", traceback))
    assert len(frame) <= MAX_FRAME_SIZE
    failed = decode_untrusted(frame)
    assert isinstance(failed, Failed)
    assert failed.summary == "ValueError: last line"
    assert failed.traceback.startswith("Traceback: first line\n")
    assert failed.traceback.endswith("\nValueError: last line")
    assert "[... cut ...]" in failed.traceback
    assert len(failed.traceback) > MAX_FRAME_SIZE // 3


@pytest.mark.parametrize("character", ["\0", "\N{SNOWMAN}", "\N{PILE OF POO}", "\udc80", '"'])
def test_texts_that_grow_when_encoded_fit_too(character):
    for message in (
        Failed("lifespan", character * 100_000, character * 100_000),
        WarningMessage(character * 100_000),
    ):
        frame = encode(message)
        assert len(frame) <= MAX_FRAME_SIZE
        assert isinstance(decode_untrusted(frame), type(message))


def test_undecodable_bytes_of_a_path_are_shown_not_lost():
    frame = encode(WarningMessage("/srv/\udcff/app.py"))
    assert decode_untrusted(frame) == WarningMessage(r"/srv/\udcff/app.py")


def test_a_message_of_ours_that_does_not_fit_is_our_bug():
    with pytest.raises(LocalProtocolError, match=r"ReloadCertificates of \d+ bytes"):
        encode(messages.ReloadCertificates({"pem": "x" * MAX_FRAME_SIZE}))
    with pytest.raises(LocalProtocolError, match="SetLogLevel"):
        encode(messages.SetLogLevel("\udc80"))


def test_a_printed_hello_shows_no_secret():
    assert "hunter2" not in repr(Hello(1, 2, 3, {}, {"key": "hunter2"}, (), None, False, 4))
