"""What `asgiri ctl` and `asgiri top` say to the master, and its answers. Sans-IO.

A frame is a u32 size in network order, then one opcode byte and an orjson object with the fields of
the dataclass. A client asks, waits for the answer, and may ask again; `Board` comes with the
descriptor of the board (`board`) as SCM_RIGHTS.

    client -> master   r reload   s stop   n scale   w watch   d stacks   v log level
    master -> client   + done     - refused          b board

Trust. The socket's mode lets in its user and root only, and the master looks who it is. What they
send may still be anything: a frame that is too large, or no request, ends the connection.
"""

from dataclasses import dataclass
from typing import Final, Generic, TypeAlias, TypeVar

import orjson

from asgiri.errors import LocalProtocolError
from asgiri.ipc.fields import MismatchError, convert

__all__ = [
    "ANSWERS",
    "MAX_ANSWER_SIZE",
    "MAX_REQUEST_SIZE",
    "MAX_WORKERS",
    "REQUESTS",
    "Answer",
    "Board",
    "BrokenFrameError",
    "Codec",
    "Done",
    "Refused",
    "Reload",
    "Request",
    "Scale",
    "SetLevel",
    "Stacks",
    "Stop",
    "Watch",
]

MAX_REQUEST_SIZE: Final = 4096
"""Requests have two short fields at most."""
MAX_ANSWER_SIZE: Final = 1 << 20
"""Holds the stacks of all workers in one slot, with all that has to be escaped."""
MAX_WORKERS: Final = 1024
"""As --workers allows."""
_HEAD: Final = 4


@dataclass(frozen=True, slots=True)
class Reload:
    """Begin a new generation, as SIGHUP does; the answer comes when it serves, or has failed."""


@dataclass(frozen=True, slots=True)
class Stop:
    """Stop, as SIGTERM does; or at once, as SIGQUIT. The end of the connection is the server's."""

    at_once: bool = False


@dataclass(frozen=True, slots=True)
class Scale:
    """Have so many workers until the next reload."""

    count: int


@dataclass(frozen=True, slots=True)
class Watch:
    """Keep the board up to date as long as the connection is open."""


@dataclass(frozen=True, slots=True)
class Stacks:
    """Tell where the workers in this slot stand."""

    slot: int


@dataclass(frozen=True, slots=True)
class SetLevel:
    """Have all processes log from this level on, until the next reload."""

    level: str


@dataclass(frozen=True, slots=True)
class Done:
    """It is done, with this result for people."""

    text: str


@dataclass(frozen=True, slots=True)
class Refused:
    """It is not, for this reason."""

    text: str


@dataclass(frozen=True, slots=True)
class Board:
    """The descriptor of the board is with this one."""


Request: TypeAlias = Reload | Stop | Scale | Watch | Stacks | SetLevel
Answer: TypeAlias = Done | Refused | Board
M = TypeVar("M")


class BrokenFrameError(Exception):
    """What came is no frame: nothing that follows makes sense either."""


class Codec(Generic[M]):
    """The frames of one direction."""

    def __init__(self, types: dict[str, type[M]], max_size: int) -> None:
        self._types = {ord(opcode): message_type for opcode, message_type in types.items()}
        self._opcodes = {message_type: opcode for opcode, message_type in self._types.items()}
        self._max_size = max_size

    def encode(self, message: M) -> bytes:
        """Return the frame of a message."""
        name = type(message).__name__
        try:
            body = bytes([self._opcodes[type(message)]]) + orjson.dumps(message)
        except orjson.JSONEncodeError as error:
            raise LocalProtocolError(f"{name}: {error}") from error
        if len(body) > self._max_size:
            raise LocalProtocolError(f"{name} of {len(body)} bytes: at most {self._max_size}")
        return len(body).to_bytes(_HEAD) + body

    def take_untrusted(self, buffer: bytearray) -> M | None:
        """Take the first message out of what has come; None when it is not complete.

        Raises BrokenFrameError. A buffer that this was asked of never has to hold more than one
        frame of the largest size.
        """
        if len(buffer) < _HEAD:
            return None
        size = int.from_bytes(buffer[:_HEAD])
        if not 0 < size <= self._max_size:
            raise BrokenFrameError(f"frame of {size} bytes")
        if len(buffer) < _HEAD + size:
            return None
        body = bytes(buffer[_HEAD : _HEAD + size])
        del buffer[: _HEAD + size]
        message_type = self._types.get(body[0])
        if message_type is None:
            raise BrokenFrameError(f"frame of kind {body[:1]!r}")
        try:
            message: M = convert(message_type, orjson.loads(body[1:]))
        except (orjson.JSONDecodeError, MismatchError):
            raise BrokenFrameError(f"{message_type.__name__} that is none") from None
        return message


REQUESTS: Final[Codec[Request]] = Codec(
    {"r": Reload, "s": Stop, "n": Scale, "w": Watch, "d": Stacks, "v": SetLevel},
    MAX_REQUEST_SIZE,
)
ANSWERS: Final[Codec[Answer]] = Codec(
    {"+": Done, "-": Refused, "b": Board},
    MAX_ANSWER_SIZE,
)
