"""Control messages between master and worker, and their codec. Sans-IO.

A frame is one opcode byte and an orjson object with the fields of the dataclass. The channel keeps
the borders between frames. Load and acknowledgements never travel here: they are cells of the
scoreboard.

    master -> worker   H hello    D drain   Q quit   L reopen logs   T dump stacks   V log level
                       K reload certificates         S shed
    worker -> master   I importing   R ready   F failed   E drained   W warning

A mold, which forks workers, has a channel as well:

    master -> mold     M hello   C cast   L reopen logs
    mold -> master     I importing   R ready   F failed   W warning   P forked   N fork failed

Trust. A worker can write anything: `decode_untrusted` returns None for what is no message, or a
message with a field that is missing or of the wrong type. Fields that it does not know are ignored:
a master that took over talks to workers of the code before it.
"""

from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias

import orjson

from asgiri.errors import LocalProtocolError
from asgiri.ipc.fields import MismatchError, convert

__all__ = [
    "MAX_FRAME_SIZE",
    "Cast",
    "Drain",
    "Drained",
    "DumpStacks",
    "Failed",
    "ForkFailed",
    "Forked",
    "Hello",
    "Importing",
    "ListenerInfo",
    "Message",
    "MoldHello",
    "Quit",
    "Ready",
    "ReloadCertificates",
    "ReopenLogs",
    "SetLogLevel",
    "Shed",
    "Warning",
    "decode_untrusted",
    "encode",
]

MAX_FRAME_SIZE: Final = 60 * 1024
"""A frame is one datagram: it must fit the smallest socket buffer that we can ask for, twice."""

_CUT_MARK: Final = "\n[... cut ...]\n"


@dataclass(frozen=True, slots=True)
class ListenerInfo:
    """What a worker has to know about a listener; it gets descriptors of UDP listeners only."""

    index: int
    kind: Literal["tcp", "unix", "udp"]
    host: str
    port: int
    path: str
    tls: bool
    insecure: bool = False
    wildcard: bool = False
    """Bound to every address: replies must leave from the one that the client used."""


@dataclass(frozen=True, slots=True)
class Hello:
    """First message to a worker: all it needs to know to become ready."""

    worker_id: int
    slot: int
    generation: int
    config: dict[str, Any]
    secrets: dict[str, Any] | None = field(repr=False)
    listeners: tuple[ListenerInfo, ...]
    record_channel: Literal["ring", "stream"] | None
    """None without HTTP/3."""
    selftest: bool
    """Prove, before reporting ready, that connection IDs and tokens are ours."""
    master_pid: int
    role: Literal["worker", "admin"] = "worker"
    """An admin worker gets the board, and the listeners that it accepts from by itself."""


@dataclass(frozen=True, slots=True)
class MoldHello:
    """First message to a mold: what to import. Secrets and sockets are for its workers alone."""

    generation: int
    config: dict[str, Any]
    master_pid: int


@dataclass(frozen=True, slots=True)
class Cast:
    """Fork a worker. Its end of its control channel comes along."""

    worker_id: int


@dataclass(frozen=True, slots=True)
class Drain:
    """Take nothing new, finish what there is within `timeout` seconds, exit."""

    timeout: float


@dataclass(frozen=True, slots=True)
class Quit:
    """Exit at once."""


@dataclass(frozen=True, slots=True)
class ReopenLogs:
    """Open the log files anew: they were rotated."""


@dataclass(frozen=True, slots=True)
class DumpStacks:
    """Write where the tasks stand, behind the stacks of the threads; see `segment`."""


@dataclass(frozen=True, slots=True)
class SetLogLevel:
    """Change the level of the error log."""

    level: str


@dataclass(frozen=True, slots=True)
class ReloadCertificates:
    """Use these certificates for new connections."""

    config: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Shed:
    """Ask `count` connections to come back through the dispatcher."""

    count: int


@dataclass(frozen=True, slots=True)
class Importing:
    """The worker runs and begins to import the application."""


@dataclass(frozen=True, slots=True)
class Ready:
    """The worker takes connections from now on."""

    pid: int


@dataclass(frozen=True, slots=True)
class Failed:
    """The worker will exit without having become ready."""

    stage: Literal["import", "lifespan", "tls", "selftest", "config"]
    summary: str
    """One line."""
    traceback: str


@dataclass(frozen=True, slots=True)
class Drained:
    """Nothing is left; the worker exits next."""


@dataclass(frozen=True, slots=True)
class Warning:  # noqa: A001 - the word for it
    """Something that the operator should read, once, under the worker's name."""

    text: str


@dataclass(frozen=True, slots=True)
class Forked:
    """A worker exists, and is a child of the master by now."""

    worker_id: int
    pid: int


@dataclass(frozen=True, slots=True)
class ForkFailed:
    """The system did not allow it."""

    worker_id: int
    reason: str


Message: TypeAlias = (
    Hello
    | MoldHello
    | Cast
    | Drain
    | Quit
    | ReopenLogs
    | DumpStacks
    | SetLogLevel
    | ReloadCertificates
    | Shed
    | Importing
    | Ready
    | Failed
    | Drained
    | Warning
    | Forked
    | ForkFailed
)

_TYPES: Final[dict[int, type[Message]]] = {
    ord("H"): Hello,
    ord("M"): MoldHello,
    ord("C"): Cast,
    ord("D"): Drain,
    ord("Q"): Quit,
    ord("L"): ReopenLogs,
    ord("T"): DumpStacks,
    ord("V"): SetLogLevel,
    ord("K"): ReloadCertificates,
    ord("S"): Shed,
    ord("I"): Importing,
    ord("R"): Ready,
    ord("F"): Failed,
    ord("E"): Drained,
    ord("W"): Warning,
    ord("P"): Forked,
    ord("N"): ForkFailed,
}
_OPCODES: Final = {message: bytes([opcode]) for opcode, message in _TYPES.items()}


def encode(message: Message) -> bytes:
    """Return the frame of a message. Texts that are too long for a frame are cut in the middle."""
    budget = MAX_FRAME_SIZE
    frame = _frame(_fit(message, budget))
    while len(frame) > MAX_FRAME_SIZE and isinstance(message, Failed | Warning):
        budget //= 2  # escaping makes up to six bytes of one
        frame = _frame(_fit(message, budget))
    if len(frame) > MAX_FRAME_SIZE:
        name = type(message).__name__
        raise LocalProtocolError(f"{name} of {len(frame)} bytes: at most {MAX_FRAME_SIZE}")
    return frame


def decode_untrusted(frame: bytes) -> Message | None:
    """Return the message, or None when this is none. Never raises."""
    message_type = _TYPES.get(frame[0]) if frame else None
    if message_type is None:
        return None
    try:
        message: Message = convert(message_type, orjson.loads(frame[1:]))
    except (orjson.JSONDecodeError, MismatchError):
        return None
    return message


def _frame(message: Message) -> bytes:
    try:
        return _OPCODES[type(message)] + orjson.dumps(message)
    except orjson.JSONEncodeError as error:
        raise LocalProtocolError(f"{type(message).__name__}: {error}") from error


def _fit(message: Message, budget: int) -> Message:
    """Make the texts that come from an application's failure fit for the frame."""
    match message:
        case Failed(stage, summary, traceback):
            return Failed(stage, _cut(summary, budget // 4), _cut(traceback, budget // 2))
        case Warning(text):
            return Warning(_cut(text, budget // 2))
        case _:
            return message


def _cut(text: str, size: int) -> str:
    # A traceback can hold lone surrogates: a path that is not UTF-8, for example.
    raw = text.encode("utf-8", "backslashreplace")
    if len(raw) <= size:
        return raw.decode()
    half = size // 2
    return raw[:half].decode(errors="ignore") + _CUT_MARK + raw[-half:].decode(errors="ignore")
