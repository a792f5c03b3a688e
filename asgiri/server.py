"""The server from Python.

    asgiri.run("main:app", workers=4, http3=True)               # until told to stop
    Server(app, port=8000).run()                                # an object: in this process

    async with Server(app, port=0) as server:                   # on this event loop, for tests
        await client.get(f"{server.url}/hello")

Options are those of the command line, spelled as Python names: `keep_alive=5`.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import logging
import signal
import sys
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Any, NoReturn, Self

from asgiri import logs
from asgiri.certificates import provide_certificates
from asgiri.config import BindAddress, Config, all_options
from asgiri.errors import AsgiriError, ConfigError, ExitCode, StartError
from asgiri.in_process import InProcessServer
from asgiri.master import runtime
from asgiri.master.settings import Settings
from asgiri.options import DeclaredOption, nearest
from asgiri.worker.asgi.loader import LoadError, adapt, load
from asgiri.worker.boot import BootError, new_event_loop

logger = logging.getLogger("asgiri.master")

__all__ = ["HttpProtocolVersion", "Server", "run"]


class HttpProtocolVersion(enum.Enum):
    """What clients may speak."""

    AUTO = "auto"
    """All versions that are switched on: HTTP/1.1 and HTTP/2, HTTP/3 with `enable_http3`."""
    HTTP_1_1 = "http/1.1"
    HTTP_2 = "h2"
    HTTP_3 = "h3"


_VERSIONS: Mapping[HttpProtocolVersion, Mapping[str, bool]] = {
    HttpProtocolVersion.AUTO: {},
    HttpProtocolVersion.HTTP_1_1: {"http2": False, "http3": False},
    HttpProtocolVersion.HTTP_2: {"http1": False, "http3": False},
    HttpProtocolVersion.HTTP_3: {"http1": False, "http2": False, "http3": True},
}


class Server:
    """An application and how it is served. Raises ConfigError for what makes no sense."""

    def __init__(
        self,
        app: str | Callable[..., Any],
        *,
        host: str = "127.0.0.1",
        port: int = 8000,
        certfile: str = "",
        keyfile: str = "",
        http_version: HttpProtocolVersion = HttpProtocolVersion.AUTO,
        enable_http3: bool = False,
        workers: int = 1,
        **options: Any,
    ) -> None:
        """`app`: "module:attribute", or the application itself, which is served in this process by
        one worker. `options`: see the module.
        """
        self._app = app
        values: dict[str, Any] = {"http3": enable_http3, "workers": workers, **options}
        values |= _VERSIONS[http_version]
        for name, path in (("certfile", certfile), ("keyfile", keyfile)):
            if path:
                values[name] = path
        if not {"bind", "uds", "fd"} & values.keys():
            values["bind"] = str(BindAddress(kind="tcp", host=host, port=port))
        target = app if isinstance(app, str) else "application:object"
        self.config = provide_certificates(_configure(target, values))
        if not isinstance(app, str) and self.config.workers.count > 1:
            remedy = "needs the application as 'module:attribute': workers import it themselves"
            raise ConfigError("workers", self.config.workers.count, remedy)
        self._running: InProcessServer | None = None

    # To the end

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT. Raises SystemExit when that does not end well."""
        try:
            if isinstance(self._app, str):
                logs.configure(self.config.log, "master")
                status = runtime.run(Settings(self.config))
            else:
                logs.configure(self.config.log, "worker")
                status = self._run_here()
        except (AsgiriError, LoadError, BootError) as error:
            _fail(error)
        if status != ExitCode.OK:
            raise SystemExit(status)

    def _run_here(self) -> int:
        with asyncio.Runner(loop_factory=lambda: new_event_loop(self.config)) as runner:
            runner.run(self._serve_until_told())
        return ExitCode.OK

    async def _serve_until_told(self) -> None:
        loop = asyncio.get_running_loop()
        told = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, told.set)
        async with self:
            logger.info("listening on %s", self.url)
            await told.wait()
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)  # the next one ends the process as usual

    # On an event loop that runs

    async def __aenter__(self) -> Self:
        """Serve from now on, in this process. Raises StartError."""
        if self._running is not None:
            raise StartError("this server is running already")
        try:
            config = self.config.app
            loaded = load(config) if isinstance(self._app, str) else adapt(config, self._app)
        except LoadError as error:
            raise StartError(str(error)) from None
        running = InProcessServer(loaded, self.config)
        await running.start()
        self._running = running
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Finish what is under way, at most for `graceful_timeout`, and stop."""
        running, self._running = self._running, None
        if running is not None:
            await running.stop(0.0 if error else self.config.workers.graceful_timeout)

    @property
    def port(self) -> int:
        """Where it listens while it runs in this process."""
        return self._address()[1]

    @property
    def url(self) -> str:
        """The same as a URL without a path, such as http://127.0.0.1:8000."""
        host, port = self._address()
        scheme = "https" if self.config.speaks_tls else "http"
        return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"

    def _address(self) -> tuple[str, int]:
        if self._running is None:
            raise StartError("the server is not running in this process")
        for listener in self._running.listeners:
            if listener.port:
                loopback = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104
                return loopback.get(listener.host, listener.host), listener.port
        raise StartError("the server listens on no port")


def run(app: str | Callable[..., Any], **options: Any) -> None:
    """Serve until told to stop: `Server(app, **options).run()`, but what is wrong with the options
    ends the process with one line for each problem, as it does on the command line.
    """
    try:
        server = Server(app, **options)
    except AsgiriError as error:
        _fail(error)
    server.run()


def _fail(error: Exception) -> NoReturn:
    sys.stderr.writelines(f"asgiri: {line}\n" for line in str(error).splitlines())
    code = ExitCode.RUNTIME
    if isinstance(error, ConfigError):
        code = ExitCode.USAGE
    elif isinstance(error, LoadError):
        code = ExitCode.APP_FAILED
    elif isinstance(error, BootError):
        code = ExitCode(error.status)
    raise SystemExit(code)


# Options


def _configure(target: str, values: Mapping[str, Any]) -> Config:
    problems: list[ConfigError] = []
    sections: dict[str, dict[str, Any]] = {"app": {"target": target}}
    known = _options_by_name()
    for name, value in values.items():
        declared = known.get(name)
        if declared is None:
            guess = nearest(name, known)
            remedy = f"no such option; did you mean {guess}?" if guess else "no such option"
            problems.append(ConfigError(name, value, remedy))
            continue
        try:
            section = sections.setdefault(declared.section, {})
            section[declared.field] = _parse(declared, value)
        except ConfigError as error:
            problems.append(ConfigError(name, error.value, error.remedy))
    _fold_addresses(sections.get("listen", {}))
    with contextlib.suppress(ConfigError) if problems else contextlib.nullcontext():
        config = Config.from_values(sections)
    ConfigError.raise_all(problems)
    return config


def _options_by_name() -> dict[str, DeclaredOption]:
    return {
        flag.removeprefix("--").replace("-", "_"): declared
        for declared in all_options()
        if not declared.pending
        for flag in (*declared.flags, *declared.aliases)
        if flag.startswith("--")
    }


def _parse(declared: DeclaredOption, value: Any) -> Any:
    if isinstance(value, str):
        return declared.parse_arguments([value])
    if declared.repeated and isinstance(value, Iterable):
        return declared.parse_arguments([str(item) for item in value])
    if isinstance(value, int) and declared.base is float:
        value = float(value)
    if (problem := declared.check(value)) is not None:
        raise problem
    return value


def _fold_addresses(listen: dict[str, Any]) -> None:
    if (path := listen.pop("uds", None)) is not None:
        listen["bind"] = (f"unix:{path}",)
    if (fd := listen.pop("fd", None)) is not None:
        listen["bind"] = (f"fd://{fd}",)
