"""What other servers have and we have not, or not with the same meaning: what to do instead.

What we have by another name is no matter for here: it is an alias of the option (`config`).
"""

from collections.abc import Mapping
from typing import Final

__all__ = ["ELSEWHERE", "KEYS_ELSEWHERE", "LATER", "answer"]

LATER: Final = "comes with a later version; leave it out"
NOT_NEEDED: Final = "is not needed here; leave it out"
TLS_VERSIONS: Final = "is not needed: TLS 1.2 and 1.3 are spoken, see --tls-min-version"
SMUGGLING: Final = "is not offered: requests are smuggled that way (RFC 9112 §11.2); leave it out"
SYSLOG: Final = "is written in the file of --log-config, as a logging.handlers.SysLogHandler"
DIRTY: Final = "is not offered: give long work to a process pool or a task queue"
PASTE: Final = "is not offered: name a function that makes the application, with --factory"
STATIC: Final = "is not offered: serve files by the application (http.response.pathsend) or a proxy"
METRICS: Final = "is written --admin ADDRESS, where /metrics is"
CONTROL: Final = "is not needed: the control socket is for the server's user alone"
MEMORY: Final = "is not needed: memory is looked at every second, see --max-worker-rss"
PROTOCOL: Final = "is not offered: only HTTP is spoken; leave it out"
UNDERSCORES: Final = (
    "is not offered: names with an underscore reach ASGI as they came, and WSGI not at all"
)

ELSEWHERE: Final[Mapping[str, str]] = {
    # uvicorn
    "--ws": "is not needed: WebSockets are always on; leave it out",
    "--ssl-version": TLS_VERSIONS,
    "--use-colors": "is written --log-color on",
    "--no-use-colors": "is written --log-color off",
    "--reset-contextvars": NOT_NEEDED,
    # gunicorn
    "-v": "is written --version",
    "--threads": "is written --wsgi-threads; for an ASGI application start more --workers",
    "--worker-connections": "is not needed: idle connections are not limited; leave it out",
    "--limit-request-field_size": "is written --h1-max-head-size, for all fields together",
    "--reload-engine": "is not needed: the system tells of changes; leave it out",
    "--reload-extra-file": "is written --reload-include",
    "--spew": "is not offered: trace the application by sys.settrace or a profiler",
    "--check-config": "is written `asgiri config check`, before the other words",
    "--print-config": "is written `asgiri config show`, before the other words",
    "--no-sendfile": NOT_NEEDED,
    "--reuse-port": "is not needed: the master hands connections to the workers; leave it out",
    "-e": "is written NAME=VALUE before the command, or in a file for --env-file",
    "--env": "is written NAME=VALUE before the command, or in a file for --env-file",
    "--worker-tmp-dir": "is not needed: heartbeats go through shared memory; leave it out",
    "--initgroups": "is not needed: --user brings its groups along; leave it out",
    "--disable-redirect-access-to-syslog": NOT_NEEDED,
    "--capture-output": NOT_NEEDED,
    "--logger-class": "is written in the file of --log-config",
    "--log-syslog": SYSLOG,
    "--log-syslog-to": SYSLOG,
    "--log-syslog-prefix": SYSLOG,
    "--log-syslog-facility": SYSLOG,
    "-R": NOT_NEEDED,
    "--enable-stdio-inheritance": NOT_NEEDED,
    "--dogstatsd-tags": "is not offered: the metrics of --admin have labels",
    "--enable-backlog-metric": NOT_NEEDED,
    "--paste": PASTE,
    "--paster": PASTE,
    "--paste-global": PASTE,
    "--protocol": PROTOCOL,
    "--uwsgi-allow-from": PROTOCOL,
    "--suppress-ragged-eofs": NOT_NEEDED,
    "--do-handshake-on-connect": NOT_NEEDED,
    "--http-protocols": "is written --no-http1, --no-http2 and --http3",
    "--http2-cleartext": "is written --h2c-upgrade; prior knowledge is always understood",
    "--http2-max-frame-size": "is not offered: frames have up to 16 KiB, as every peer takes them",
    "--permit-obsolete-folding": SMUGGLING,
    "--strip-header-spaces": SMUGGLING,
    "--permit-unconventional-http-method": NOT_NEEDED,
    "--permit-unconventional-http-version": SMUGGLING,
    "--casefold-http-method": "is not offered: methods are case-sensitive (RFC 9110 §9.1)",
    "--forwarder-headers": UNDERSCORES,
    "--header-map": UNDERSCORES,
    "--asgi-disconnect-grace-period": "is not needed: nothing is cancelled when a client goes",
    "--dirty-app": DIRTY,
    "--dirty-workers": DIRTY,
    "--dirty-timeout": DIRTY,
    "--dirty-threads": DIRTY,
    "--dirty-graceful-timeout": DIRTY,
    "--control-socket-mode": CONTROL,
    "--no-control-socket": CONTROL,
    # hypercorn
    "--debug": "is written --log-level debug",
    "--read-timeout": "is written --body-timeout",
    "--server-name": "is not offered: let the application check the host, or a proxy",
    # granian
    "--uds-permissions": "is written --umask, the bits to leave out: 0117 for 0660",
    "--no-ws": "is not offered: an application refuses a WebSocket by websocket.close",
    "--blocking-threads": "is written --wsgi-threads",
    "--blocking-threads-idle-timeout": NOT_NEEDED,
    "--runtime-threads": NOT_NEEDED,
    "--runtime-blocking-threads": NOT_NEEDED,
    "--runtime-mode": NOT_NEEDED,
    "--task-impl": NOT_NEEDED,
    "--http1-buffer-size": "is written --h1-max-head-size",
    "--http1-header-read-timeout": "is written --header-timeout, in seconds or such as 500ms",
    "--http1-keep-alive": "is not needed: see --keep-alive",
    "--no-http1-keep-alive": "is written --keep-alive 0",
    "--http1-pipeline-flush": NOT_NEEDED,
    "--no-http1-pipeline-flush": NOT_NEEDED,
    "--http2-adaptive-window": "is not needed: windows open as the application reads",
    "--no-http2-adaptive-window": NOT_NEEDED,
    "--http2-keep-alive-interval": "is written --h2-ping-interval, in seconds or such as 500ms",
    "--http2-keep-alive-timeout": "is not needed: it is the --h2-ping-interval",
    "--http2-max-send-buffer-size": "is written --flow-high-water",
    "--log": NOT_NEEDED,
    "--no-log": "is written --log-level critical",
    "--access-log-fmt": "is written --access-logformat, with gunicorn's atoms",
    "--ssl-crl": "is not offered: let certificates be short-lived, or a proxy end TLS",
    "--ssl-client-verify": "is written --cert-reqs required",
    "--no-ssl-client-verify": "is written --cert-reqs none",
    "--respawn-failed-workers": "is not needed: workers that die are always replaced; leave it out",
    "--no-respawn-failed-workers": "is not offered: workers that die are always replaced",
    "--respawn-interval": "is not needed: workers that die often are replaced less often",
    "--rss-sample-interval": MEMORY,
    "--rss-samples": MEMORY,
    "--workers-max-rss": "is written --max-worker-rss, with a unit: 512MiB",
    "--static-path-route": STATIC,
    "--static-path-mount": STATIC,
    "--static-path-dir-to-file": STATIC,
    "--static-path-expires": STATIC,
    "--metrics": METRICS,
    "--no-metrics": NOT_NEEDED,
    "--metrics-scrape-interval": METRICS,
    "--metrics-address": METRICS,
    "--metrics-port": METRICS,
    "--reload-paths": "is written --reload-dir",
    "--reload-ignore-dirs": "is written --reload-exclude",
    "--reload-ignore-patterns": "is written --reload-exclude, with patterns such as *.tmp",
    "--reload-ignore-paths": "is written --reload-exclude",
    "--reload-tick": "is not needed: the system tells of changes; leave it out",
    "--reload-ignore-worker-failure": "is not needed: a reload that fails changes nothing",
    "--no-reload-ignore-worker-failure": NOT_NEEDED,
}
"""Option -> what to do instead."""

LIFESPAN: Final = "is not offered: what a worker prepares belongs into the lifespan's startup"
REQUESTS: Final = "is not offered: wrap the application (ASGI middleware)"

KEYS_ELSEWHERE: Final[Mapping[str, str]] = {
    # gunicorn, and what its hooks are here
    "limit_request_field_size": "is written h1_max_head_size, for all fields together",
    "reload_extra_files": "is written reload_include",
    "sendfile": NOT_NEEDED,
    "raw_env": "is written in a file for env_file",
    "tmp_upload_dir": NOT_NEEDED,
    "secure_scheme_headers": "is not offered: X-Forwarded-Proto of a trusted proxy counts",
    "syslog": SYSLOG,
    "syslog_addr": SYSLOG,
    "syslog_prefix": SYSLOG,
    "syslog_facility": SYSLOG,
    "default_proc_name": "is written name",
    "raw_paste_global_conf": PASTE,
    "uwsgi_allow_ips": PROTOCOL,
    "control_socket_disable": CONTROL,
    "on_starting": "is written when_ready, or runs while the file does",
    "pre_fork": "is not offered: workers are not forked from the master",
    "post_fork": "is written worker_ready, or belongs into the lifespan's startup",
    "post_worker_init": "is written worker_ready",
    "worker_int": LIFESPAN,
    "worker_abort": "is written worker_exit, with worker.status",
    "pre_exec": "is not offered: SIGUSR2 exchanges the program in place",
    "pre_request": REQUESTS,
    "post_request": REQUESTS,
    "child_exit": "is written worker_exit",
    "nworkers_changed": "is written worker_ready and worker_exit",
    "on_exit": "is not offered: what the server leaves is cleaned up by whoever supervises it",
    "dirty_apps": DIRTY,
    "dirty_post_fork": DIRTY,
    "dirty_worker_init": DIRTY,
    "dirty_worker_exit": DIRTY,
    "on_dirty_starting": DIRTY,
    "ssl_context": "is not offered: see certfile, ca_certs, ciphers and tls_min_version",
    # hypercorn
    "alpn_protocols": "is written http1 = false or http2 = false",
    "alt_svc_headers": "is not needed: alt-svc is sent by itself with HTTP/3",
    "h11_pass_raw_headers": UNDERSCORES,
    "h2_max_inbound_frame_size": "is not offered: frames have up to 16 KiB",
    "keep_alive_max_requests": "is not offered: connections may carry any number of requests",
    "max_app_queue_size": "is written flow_high_water, in bytes",
    "server_names": "is not offered: let the application check the host, or a proxy",
    "shutdown_timeout": "is written graceful_timeout",
    "verify_flags": "is not offered: see cert_reqs and ca_certs",
    "wsgi_max_body_size": "is not needed: bodies are not kept in memory",
}
"""Key of a configuration file, or hook in one -> what to do instead."""


def answer(key: str) -> str:
    """Say what a key of a file is here; "" when no other server has it."""
    return KEYS_ELSEWHERE.get(key) or ELSEWHERE.get(f"--{key.replace('_', '-')}", "")
