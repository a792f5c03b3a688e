"""Ask both HTTP/1.1 parsers about the same requests: `python -m tests.fuzz.parsers --count 200000`.

Each stream holds one to three requests, nearly right or worse, and arrives in parts that are cut
anew for each parser. Both must accept the same requests, with the same method, target, version,
fields, body, trailers and end, and refuse the rest for the same reason with the same bytes.
Prints what it counted; the exit code is 1 when they disagreed, and the streams are shown.
"""

from __future__ import annotations

import argparse
import itertools
import random
import sys
import time
from collections import Counter
from dataclasses import dataclass, field

from asgiri.worker.protocol.http1_head import FieldParser
from tests.conformance.http1_cases import CASES
from tests.support import http1_requests as pieces
from tests.support.http1_engine import PARSERS, Transcript, connection, converse

_CASES = [case.request for case in CASES if len(case.request) < 2000]
_SHOWN = 10


@dataclass(slots=True)
class Tally:
    """What came of the streams."""

    streams: int = 0
    requests: int = 0
    """Accepted by both."""
    refusals: Counter[str] = field(default_factory=Counter)
    """Streams that both refused, by reason."""
    disagreements: list[bytes] = field(default_factory=list)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.parsers", description=__doc__)
    parser.add_argument("--count", type=int, default=20_000, help="streams (default: 20000)")
    parser.add_argument("--seed", type=int, default=None, help="of another run, to repeat it")
    arguments = parser.parse_args()
    seed = random.randrange(1 << 32) if arguments.seed is None else arguments.seed
    begin = time.monotonic()
    tally = compare(arguments.count, seed)
    print(
        f"{tally.streams} streams in {time.monotonic() - begin:.0f} s (seed {seed}): "
        f"{tally.requests} requests accepted by both, "
        f"{sum(tally.refusals.values())} streams refused by both, "
        f"{len(tally.disagreements)} disagreements"
    )
    for reason, count in tally.refusals.most_common():
        print(f"{count:>8}  {reason}")
    for stream in tally.disagreements[:_SHOWN]:
        print(repr(stream))
    return int(bool(tally.disagreements))


def compare(count: int, seed: int) -> Tally:
    """Generate `count` streams from `seed` and have both parsers read each."""
    chance = random.Random(seed)
    parsers = [parser() for parser in PARSERS.values()]
    tally = Tally()
    for _ in range(count):
        stream = make_stream(chance)
        one, other = (_read(parser, _cut(chance, stream)) for parser in parsers)
        tally.streams += 1
        if one != other:
            tally.disagreements.append(stream)
            continue
        tally.requests += len(one.answered())
        tally.refusals.update(reason.name.lower() for reason, _ in one.violations)
    return tally


def _read(parser: FieldParser, parts: list[bytes]) -> Transcript:
    transcript = converse(connection(parser), parts, eof=True)
    # Each library complains in words of its own.
    transcript.violations = [(reason, "") for reason, _ in transcript.violations]
    transcript.ended = transcript.ended and "ended"
    return transcript


def make_stream(chance: random.Random) -> bytes:
    """Return some requests in a row, perhaps with a byte too many, too few, or another."""
    stream = b"".join(_request(chance) for _ in range(chance.choice((1, 1, 2, 3))))
    for _ in range(chance.choice((0, 0, 0, 1, 2))):
        at = chance.randint(0, len(stream))
        stream = (
            stream[:at] + chance.choice([b"", *pieces.BYTES]) + stream[at + chance.randint(0, 2) :]
        )
    return stream


def _request(chance: random.Random) -> bytes:
    if chance.random() < 0.1:
        return chance.choice(_CASES)
    line = b" ".join(
        (
            _mostly(chance, pieces.METHODS[:2], pieces.METHODS),
            _mostly(chance, pieces.TARGETS[:2], pieces.TARGETS),
            _mostly(chance, pieces.VERSIONS[:1], pieces.VERSIONS),
        )
    )
    framing, body = _framing(chance)
    fields = [
        _mostly(chance, [b"Host: a\r\n"], [b"", b"Host: a\r\nHost: b\r\n"]),
        framing,
        *(_field(chance) for _ in range(chance.randint(0, 4))),
    ]
    chance.shuffle(fields)
    end = _mostly(chance, [b"\r\n"], [b"\n", b"\r\n "])
    return line + end + b"".join(fields) + b"\r\n" + body


def _framing(chance: random.Random) -> tuple[bytes, bytes]:
    match chance.randint(0, 2):
        case 0:
            return b"", b""
        case 1:
            size = chance.randint(0, 12)
            return b"Content-Length: %d\r\n" % size, b"0123456789ab"[:size]
        case _:
            chunks = b"".join(
                _mostly(chance, pieces.CHUNKS[:4], pieces.CHUNKS)
                for _ in range(chance.randint(0, 4))
            )
            body = chunks + _mostly(chance, pieces.ENDINGS[:2], pieces.ENDINGS)
            return b"Transfer-Encoding: chunked\r\n", body


def _field(chance: random.Random) -> bytes:
    if chance.random() < 5 / 6:
        return chance.choice(pieces.USUAL_FIELDS)
    return b"".join(
        (
            chance.choice(pieces.NAMES),
            b":",
            _mostly(chance, [b" "], [b"", b"\t", b"  "]),
            chance.choice(pieces.VALUES),
            _mostly(chance, [b"\r\n"], [b" \r\n", b"\n", b"\r\r\n", b"\r"]),
        )
    )


def _mostly(chance: random.Random, usual: list[bytes], others: list[bytes]) -> bytes:
    """Return one of `usual` in 15 of 16: else one stream would break every rule at once."""
    return chance.choice(others if chance.random() < 1 / 16 else usual)


def _cut(chance: random.Random, stream: bytes) -> list[bytes]:
    inner = range(1, len(stream))
    at = sorted(chance.sample(inner, min(len(inner), chance.randint(0, 4))))
    return [stream[a:b] for a, b in itertools.pairwise([0, *at, len(stream)]) if a < b]


if __name__ == "__main__":
    sys.exit(main())
