"""What does a line of the access log cost a worker?

Calls the access log as a worker does when an exchange ends, writing to /dev/null, so that no disk
is measured. The last row is the same line through a standard LogRecord, as other servers write it.
"""

import logging
import time
from collections.abc import Callable
from typing import Any

from asgiri import logs
from asgiri.config import LogConfig

COUNT = 100_000
SCOPE: dict[str, Any] = {
    "type": "http",
    "http_version": "1.1",
    "scheme": "http",
    "method": "GET",
    "path": "/items/42",
    "raw_path": b"/items/42",
    "query_string": b"page=2",
    "client": ("192.0.2.7", 50123),
    "headers": [
        (b"host", b"example.org"),
        (b"user-agent", b"Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"),
        (b"referer", b"https://example.org/items"),
    ],
}
FORMATS = {
    "default format": LogConfig().access_log_format,
    "Apache combined": '%(h)s %(l)s %(u)s %(t)s "%(r)s" %(s)s %(b)s "%(f)s" "%(a)s"',
}


def microseconds(call: Callable[[], None]) -> float:
    best = float("inf")
    for _ in range(5):
        begin = time.process_time()
        for _ in range(COUNT):
            call()
        best = min(best, time.process_time() - begin)
    return best / COUNT * 1e6


def open_log(**options: Any) -> logs.AccessLog:
    config = LogConfig(access_log_file="/dev/null", error_log_file="/dev/null", **options)
    logs.configure(config, "worker")
    log = logs.open_access_log(config, slot=0, worker_id=0x1A2B3C4D)
    assert log is not None
    return log


def show(name: str, log: logs.AccessLog) -> None:
    cost = microseconds(lambda: log(SCOPE, 200, [], 1234, 0.0042, 17, 3))
    print(f"{name:<28} {cost:.2f}")


def main() -> None:
    print(f"{'line':<28} us per request (CPU, best of 5 x {COUNT:,})")
    for name, template in FORMATS.items():
        show(name, open_log(access_log_format=template))
    show("JSON", open_log(format="json"))
    log = open_log()
    logging.getLogger("asgiri.access").addHandler(logging.NullHandler())
    show("default, by a LogRecord", log)


if __name__ == "__main__":
    main()
