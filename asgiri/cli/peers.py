"""Options of other servers that have no counterpart of the same meaning here, and what to do."""

from collections.abc import Mapping
from typing import Final

__all__ = ["ELSEWHERE", "LATER"]

LATER: Final = "comes with a later version; leave it out"
NOT_NEEDED: Final = "is not needed here; leave it out"

ELSEWHERE: Final[Mapping[str, str]] = {
    # uvicorn
    "--ws": "is not needed: WebSockets are always on; leave it out",
    "--ssl-version": "is not needed: TLS 1.2 and 1.3 are spoken; leave it out",
    "--use-colors": "is written --log-color on",
    "--no-use-colors": "is written --log-color off",
    "--reset-contextvars": NOT_NEEDED,
    # gunicorn
    "--threads": "is written --wsgi-threads; for an ASGI application start more --workers",
    "--worker-connections": "is not needed: idle connections are not limited; leave it out",
    "--worker-tmp-dir": "is not needed: heartbeats go through shared memory; leave it out",
    "--reuse-port": "is not needed: the master hands connections to the workers; leave it out",
    "--no-sendfile": NOT_NEEDED,
    "--reload-engine": "is not needed: the system tells of changes; leave it out",
    "--reload-extra-file": "is written --reload-include",
    "--limit-request-field_size": "is written --h1-max-head-size, for all fields together",
    "--check-config": LATER,
    "--print-config": LATER,
    "--dogstatsd-tags": LATER,
    "--capture-output": NOT_NEEDED,
    # hypercorn
    "--debug": "is written --log-level debug",
    "--verify-mode": "is written --cert-reqs",
    "--server-name": LATER,
    "--read-timeout": "is written --body-timeout",
    # granian
    "--backpressure": "is written --limit-concurrency",
    "--runtime-mode": NOT_NEEDED,
    "--runtime-threads": NOT_NEEDED,
    "--runtime-blocking-threads": NOT_NEEDED,
    "--blocking-threads": "is written --wsgi-threads",
    "--task-impl": NOT_NEEDED,
    "--respawn-failed-workers": "is not needed: workers that die are always replaced; leave it out",
    "--http1-buffer-size": "is written --h1-max-head-size",
    "--ws-enabled": NOT_NEEDED,
    "--reload-paths": "is written --reload-dir",
    "--reload-ignore-dirs": "is written --reload-exclude",
    "--reload-ignore-patterns": "is written --reload-exclude, with patterns such as *.tmp",
    "--reload-ignore-paths": "is written --reload-exclude",
    "--reload-tick": "is not needed: the system tells of changes; leave it out",
    "--reload-ignore-worker-failure": NOT_NEEDED,
}
"""Option -> what to do instead."""

KEYS_ELSEWHERE: Final[Mapping[str, str]] = {}
"""The same for the keys of their configuration files."""
