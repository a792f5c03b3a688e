"""How does the server compare with others, on every kind of work?

One row per kind of work and server: processor time of the server's whole process tree (schedstat),
one worker each, load generator and server on a processor each, rounds going round all servers, so
that what disturbs the machine disturbs all. Below each table stands what we aim at.

Needs wrk and h2load; for HTTP/3 a directory with another system (`--chroot`) in which h2load-h3,
nginx and Caddy are installed, all with HTTP/3. What is missing on a machine is left out and said.
`--only TEXT` picks questions by their title, `--against COMMIT` compares with ourselves as we were,
`--plot FILE` draws how far each aim is. The other scripts here ask more about less.

Read several rounds, and ratios: on a machine that others use, processor time itself is dearer.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import master_cost
from lib import contenders, costs
from lib.contenders import granian, gunicorn, hypercorn, ours, uvicorn
from lib.cpu import split_processors, tree_nanoseconds
from lib.load import h2load, wrk
from lib.plot import Verdict, draw
from lib.report import Row, print_table
from lib.servers import APP, PROJECT, Contender, Place, find_program, free_port, running
from lib.servers import certificate as make_certificate

VARY = """
local count = 0
request = function()
    count = count + 1
    wrk.headers["X-Request-Number"] = count
    return wrk.format()
end
"""
UPLOAD = """
wrk.method = "POST"
wrk.path = "/upload"
wrk.body = string.rep("x", 1048576)
"""
MIB = 1 << 20
DATAGRAMS = 100_000


@dataclass(slots=True)
class Bench:
    """Where to find what, and for how long to measure."""

    peers: Path | None
    chroot: Path | None
    rounds: int
    seconds: float
    load_processor: int
    server_processor: int

    def in_chroot(self, *command: str) -> list[str]:
        return ["chroot", str(self.chroot), *command]

    @property
    def h2load3(self) -> list[str]:
        return ["h2load-h3"] if self.chroot is None else self.in_chroot("h2load-h3")


Load = Callable[[Bench, Place, float], int]
"""Puts load on a server for about so many seconds; returns how much it got done."""


@dataclass(frozen=True, slots=True)
class Aim:
    """Our figure divided by the best of those whose names begin so; or our figure alone."""

    limit: float
    rivals: str | None = ""
    """None: the limit is in the table's own unit."""

    def verdict(self, title: str, rows: Sequence[Row]) -> Verdict:
        medians = {row.name: row.median for row in rows if row.values}
        own = medians.pop("asgiri", None)
        if self.rivals is None:
            return Verdict(title, f"aim: <= {self.limit:.3g}", own, self.limit)
        others = {name: value for name, value in medians.items() if name.startswith(self.rivals)}
        if own is None or not others:
            aim = f"aim: <= {self.limit:.3g} of {self.rivals or 'the best'}"
            return Verdict(title, aim, None, self.limit)
        best = min(others, key=lambda name: others[name])
        return Verdict(title, f"aim: <= {self.limit:.3g} of {best}", own / others[best], self.limit)


@dataclass(frozen=True, slots=True)
class Question:
    title: str
    rivals: Sequence[Contender]
    load: Load
    aims: Sequence[Aim]
    app: str = APP
    unit: str = "us"
    per: str = "request"
    scale: float = 1e-3
    """From nanoseconds per piece of work."""

    @property
    def heading(self) -> str:
        return f"{self.title}: processor time per {self.per}"


@dataclass(frozen=True, slots=True)
class Cost:
    """A question of another kind, which has its own way to be answered."""

    title: str
    unit: str
    measure: Callable[[costs.Setting], list[Row]]
    aims: Sequence[Aim]

    @property
    def heading(self) -> str:
        return self.title


# Loads


def by_wrk(
    path: str = "/",
    *,
    tls: bool = False,
    script: str = "",
    connections: int = 32,
    options: Sequence[str] = (),
    lossy: bool = False,
) -> Load:
    """`lossy`: the client takes a connection for failed that the server closes as it was asked."""

    def load(bench: Bench, place: Place, seconds: float) -> int:
        scheme = "https" if tls else "http"
        with tempfile.NamedTemporaryFile("w", suffix=".lua") as file:
            file.write(script)
            file.flush()
            outcome = wrk(
                "wrk",
                f"{scheme}://127.0.0.1:{place.port}{path}",
                bench.load_processor,
                connections=connections,
                seconds=seconds,
                options=(*options, *(("-s", file.name) if script else ())),
            )
        if outcome.failed and not lossy:
            print(f"    {outcome.failed} of {outcome.requests} requests failed")
        return outcome.requests

    return load


def by_h2load(
    path: str,
    *,
    connections: int,
    streams: int,
    per_second: int,
    http3: bool = False,
    body: int = 0,
) -> Load:
    """`per_second`: about how many a server answers, to make a round last as long as others."""

    def load(bench: Bench, place: Place, seconds: float) -> int:
        directory = bench.chroot / "tmp" if http3 and bench.chroot else None
        with tempfile.NamedTemporaryFile(dir=directory) as file:
            file.write(bytes(body))
            file.flush()
            visible = f"/tmp/{Path(file.name).name}" if directory else file.name
            outcome = h2load(
                bench.h2load3 if http3 else ["h2load"],
                f"{'https' if http3 else 'http'}://127.0.0.1:{place.port}{path}",
                bench.load_processor,
                connections=connections,
                streams=streams,
                requests=max(connections, int(per_second * seconds)),
                options=(*(("--h3",) if http3 else ()), *(("-d", visible) if body else ())),
            )
        if outcome.failed:
            print(f"    {outcome.failed} of {outcome.requests + outcome.failed} requests failed")
        return outcome.requests

    return load


@dataclass(frozen=True, slots=True)
class WebSocketLoad:
    """Not a plain `Load`: the client says itself when to begin and to end measuring."""

    path: str
    connections: int
    size: int

    @contextlib.contextmanager
    def client(self, bench: Bench, place: Place, seconds: float) -> Iterator[subprocess.Popen[str]]:
        arguments = ("127.0.0.1", place.port, self.path, self.connections, self.size, seconds)
        command = ["taskset", "--cpu-list", str(bench.load_processor), sys.executable]
        command += ["-m", "lib.websocket_load", *map(str, arguments)]
        with subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=PROJECT / "bench",
        ) as process:
            try:
                yield process
            finally:
                process.kill()


# Measuring


def nanoseconds_per_piece(
    question: Question, bench: Bench, place: Place, pids: Sequence[int]
) -> float:
    def spent() -> int:
        return sum(map(tree_nanoseconds, pids))

    if isinstance(question.load, WebSocketLoad):
        with question.load.client(bench, place, bench.seconds) as client:
            assert client.stdout is not None
            client.stdout.readline()
            before = spent()
            line = client.stdout.readline()
            after = spent()
        return (after - before) / max(1, int(line.split()[0] if line else 0))
    question.load(bench, place, 1)  # warm
    before = spent()
    done = question.load(bench, place, bench.seconds)
    return (spent() - before) / max(1, done)


@contextlib.contextmanager
def started(
    contender: Contender, bench: Bench, place: Place, command: list[str]
) -> Iterator[list[int]]:
    """Run a server, and the one in front of it; give the pids whose trees are to be counted."""
    if not contender.front:
        with running(
            command, place.port, bench.server_processor, project=contender.project
        ) as process:
            yield [process.pid]
        return
    assert bench.chroot is not None
    with (
        running(command, place.behind, bench.server_processor) as process,
        tempfile.TemporaryDirectory(dir=bench.chroot / "tmp") as outside,
    ):
        inside = Path("/tmp") / Path(outside).name
        names = {**place.names, "directory": str(inside)}
        for name in ("certfile", "keyfile"):
            copy = Path(outside) / name
            copy.write_bytes(Path(getattr(place, name)).read_bytes())
            names[name] = str(inside / name)
        (Path(outside) / "configuration").write_text(
            contender.front_configuration.format_map(names)
        )
        front = bench.in_chroot(*contender.front, str(inside / "configuration"))
        with running(front, place.port, bench.server_processor) as front_process:
            yield [process.pid, front_process.pid]


def missing(contender: Contender, bench: Bench, command: list[str] | None) -> str:
    if command is None:
        return "missing on this machine"
    if contender.front and (
        bench.chroot is None or not any(bench.chroot.glob(f"usr/*bin/{contender.front[0]}"))
    ):
        return "front server is missing on this machine"
    return ""


def ask(question: Question, bench: Bench, certificate: tuple[str, str]) -> list[Row]:
    rows = {contender.name: Row(contender.name) for contender in question.rivals}
    for _ in range(bench.rounds):
        for contender in question.rivals:
            row = rows[contender.name]
            if row.note:
                continue
            place = Place(free_port(), *certificate, question.app, free_port())
            command = contender.command(place, bench.peers)
            row.note = missing(contender, bench, command)
            if row.note or command is None:
                continue
            try:
                with started(contender, bench, place, command) as pids:
                    spent = nanoseconds_per_piece(question, bench, place, pids)
            except SystemExit as error:
                row.note = f"failed: {str(error).splitlines()[0]}"
            else:
                row.values.append(spent * question.scale)
    return list(rows.values())


# Questions

HTTP1 = contenders.http1()
FAST_HTTP1 = [row for row in HTTP1 if row.name != "hypercorn"]
CLOSE = ("-H", "Connection: close")
HTTP2 = (
    ours(),
    granian("--http", "auto"),
    uvicorn("--http", "zttp", "--http2", name="uvicorn, zttp"),
    hypercorn(),
)
WEBSOCKET = (
    ours("--no-ws-per-message-deflate"),
    uvicorn("--ws", "websockets", "--ws-per-message-deflate", "false", name="uvicorn, websockets"),
    uvicorn("--ws", "wsproto", "--ws-per-message-deflate", "false", name="uvicorn, wsproto"),
    granian(),
    gunicorn(),
    hypercorn(),
)
BULK = (ours("--http3", tls=True), hypercorn("--quic-bind", "{address}", tls=True))
PER_MIB = {"per": "MiB", "scale": 1e-6, "unit": "ms"}

QUESTIONS: Sequence[Question] = (
    Question("HTTP/1.1 hello, 32 connections", HTTP1, by_wrk(), [Aim(0.75)]),
    Question("HTTP/1.1 hello, no two heads alike", FAST_HTTP1, by_wrk(script=VARY), [Aim(0.75)]),
    Question("HTTP/1.1 hello over TLS", contenders.http1(tls=True), by_wrk(tls=True), [Aim(0.75)]),
    Question("HTTP/1.1 hello, access log on", contenders.http1(log=True), by_wrk(), [Aim(0.85)]),
    Question("FastAPI hello", FAST_HTTP1, by_wrk(), [Aim(1.0)], app="fastapi_app:app"),
    Question("download of 1 MiB", FAST_HTTP1, by_wrk("/download", connections=8), [Aim(0.9)]),
    Question("upload of 1 MiB", FAST_HTTP1, by_wrk(script=UPLOAD, connections=8), [Aim(0.8)]),
    Question(
        "a connection for each request",
        FAST_HTTP1,
        by_wrk(options=CLOSE, lossy=True),
        [Aim(1.0, "uvicorn")],
    ),
    Question(
        "HTTP/2 hello in cleartext",
        HTTP2,
        by_h2load("/", connections=32, streams=32, per_second=8000),
        [Aim(0.55, "hypercorn"), Aim(1.0, "granian")],
    ),
    Question(
        "HTTP/3 hello, 8 connections x 8 streams",
        contenders.http3(),
        by_h2load("/", connections=8, streams=8, per_second=4000, http3=True),
        [Aim(0.25, "hypercorn"), Aim(0.7, "Caddy"), Aim(1.0, "nginx")],
    ),
    Question(
        "HTTP/3 download, 1 MiB each",
        BULK,
        by_h2load("/download", connections=2, streams=2, per_second=25, http3=True),
        [Aim(1 / 1.5, "hypercorn")],
        **PER_MIB,
    ),
    Question(
        "HTTP/3 upload, 1 MiB each",
        BULK,
        by_h2load("/upload", connections=2, streams=2, per_second=15, http3=True, body=MIB),
        [Aim(1 / 1.5, "hypercorn")],
        **PER_MIB,
    ),
    Question(
        "WebSocket echo, 100 bytes",
        WEBSOCKET,
        WebSocketLoad("/echo", 32, 100),  # type: ignore[arg-type]
        [Aim(0.9)],
        per="message",
    ),
    Question(
        "WebSocket echo, 64 KiB",
        WEBSOCKET,
        WebSocketLoad("/echo", 8, 65536),  # type: ignore[arg-type]
        [Aim(0.9)],
        per="message",
    ),
    Question(
        "WebSocket broadcast to 1,000",
        WEBSOCKET,
        WebSocketLoad("/all", 1000, 100),  # type: ignore[arg-type]
        [Aim(0.9)],
        per="message delivered",
    ),
)


def per_datagram(setting: costs.Setting) -> list[Row]:
    own, floor = Row("asgiri"), Row("bare recvfrom")
    with tempfile.NamedTemporaryFile() as secret:
        secret.write(secrets.token_hex(32).encode())
        secret.flush()
        for _ in range(setting.rounds):
            floor.values.append(master_cost.recvfrom_per_datagram(DATAGRAMS))
            spent = master_cost.master_per_datagram(*setting.certificate, secret.name, DATAGRAMS)
            own.values.append(spent)
    return [own, floor]


def per_connection(setting: costs.Setting) -> list[Row]:
    rounds = range(setting.rounds)
    return [Row("asgiri", [master_cost.master_per_connection("wrk", 2) for _ in rounds])]


COSTS: Sequence[Cost] = (
    Cost("the master, per datagram", "us", per_datagram, [Aim(3.0, "bare recvfrom")]),
    Cost("the master, per connection", "us", per_connection, [Aim(10.0, None)]),
    Cost("HTTP/3: what a master adds to the median answer", "us", costs.latency, [Aim(50.0, None)]),
    Cost("memory of an idle worker", "MiB", costs.idle_worker, [Aim(1.0, "uvicorn")]),
    Cost("memory of an idle connection", "KiB", costs.idle_connection, [Aim(8.0, None)]),
    Cost("from the command to the first answer", "ms", costs.start, [Aim(1.2, "uvicorn")]),
)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", type=Path, help="directory of a venv with other servers")
    parser.add_argument("--chroot", type=Path, help="directory of a system with HTTP/3 programs")
    parser.add_argument("--only", default="", help="ask questions whose title contains this")
    parser.add_argument(
        "--server",
        default="",
        help="measure servers whose name contains one of these, parted by commas",
    )
    parser.add_argument("--against", default="", help="a commit of ours to compare with")
    parser.add_argument("--plot", type=Path, help="write an SVG of the aims")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3)
    return parser.parse_args()


@contextlib.contextmanager
def ourselves_at(commit: str) -> Iterator[Path | None]:
    """Check a commit out beside this one."""
    if not commit:
        yield None
        return
    with tempfile.TemporaryDirectory() as directory:
        git = ["git", "-C", str(PROJECT), "worktree"]
        subprocess.run([*git, "add", "--detach", directory, commit], check=True)
        try:
            yield Path(directory)
        finally:
            subprocess.run([*git, "remove", "--force", directory], check=True)


def chosen(question: Question, names: Sequence[str], before: Path | None) -> Question:
    rivals = [r for r in question.rivals if any(name in r.name for name in names)]
    if before is not None:
        earlier = [r for r in question.rivals if r.name == "asgiri"]
        rivals += [dataclasses.replace(r, name="earlier", project=before) for r in earlier]
    return dataclasses.replace(question, rivals=rivals)


def report(question: Question | Cost, rows: Sequence[Row]) -> list[Verdict]:
    print_table(question.heading, question.unit, rows, compare="asgiri")
    verdicts = [aim.verdict(question.title, rows) for aim in question.aims]
    for verdict in verdicts:
        print(verdict.text)
    sys.stdout.flush()
    return verdicts


def main() -> None:
    options = parse_arguments()
    load, server = split_processors()
    bench = Bench(options.peers, options.chroot, options.rounds, options.seconds, load, server)
    for program in ("wrk", "h2load"):
        if find_program(program) is None:
            raise SystemExit(f"{program} is missing")
    verdicts: list[Verdict] = []
    with make_certificate() as certificate, ourselves_at(options.against) as before:
        for question in QUESTIONS:
            if options.only.lower() in question.title.lower():
                asked = chosen(question, options.server.split(","), before)
                verdicts += report(asked, ask(asked, bench, certificate))
        setting = costs.Setting(options.peers, options.rounds, certificate)
        for cost in COSTS:
            if options.only.lower() in cost.title.lower():
                verdicts += report(cost, cost.measure(setting))
    print("\nAll aims, what falls short first\n")
    for verdict in sorted(verdicts, key=lambda verdict: verdict.word != "MISSED"):
        print(f"  {verdict.title}: {verdict.text}")
    if options.plot is not None:
        options.plot.write_text(draw(verdicts))


if __name__ == "__main__":
    main()
