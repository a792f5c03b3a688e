"""Who is compared in what, each with one worker and the options that make it quick."""

from __future__ import annotations

from collections.abc import Sequence

from lib.servers import Contender, asgiri

OUR_TLS = ("--certfile", "{certfile}", "--keyfile", "{keyfile}")
UVICORN_TLS = ("--ssl-certfile", "{certfile}", "--ssl-keyfile", "{keyfile}")
GRANIAN_TLS = ("--ssl-certificate", "{certfile}", "--ssl-keyfile", "{keyfile}")

NGINX = """\
daemon off;
user root;
worker_processes 1;
pid {directory}/nginx.pid;
error_log stderr error;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    upstream application {{ server 127.0.0.1:{behind}; keepalive 64; }}
    server {{
        listen 127.0.0.1:{port} quic reuseport;
        listen 127.0.0.1:{port} ssl;
        ssl_certificate {certfile};
        ssl_certificate_key {keyfile};
        keepalive_requests 1000000;
        location / {{
            proxy_pass http://application;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
        }}
    }}
}}
"""
CADDY = """\
{{
    admin off
    auto_https off
}}
https://127.0.0.1:{port}, https://localhost:{port} {{
    tls {certfile} {keyfile}
    reverse_proxy 127.0.0.1:{behind}
}}
"""


def ours(*options: str, tls: bool = False, name: str = "asgiri", log: bool = False) -> Contender:
    return asgiri(*options, *(OUR_TLS if tls else ()), name=name, log=log)


def uvicorn(
    *options: str, tls: bool = False, name: str = "uvicorn", log: bool = False
) -> Contender:
    quiet = () if log else ("--no-access-log", "--log-level", "warning")
    tail = UVICORN_TLS if tls else ()
    return Contender(name, "uvicorn", ("{app}", "--port", "{port}", *quiet, *options, *tail))


def granian(
    *options: str, tls: bool = False, name: str = "granian", log: bool = False
) -> Contender:
    base = ("--interface", "asgi", "--loop", "uvloop", "--port", "{port}")
    noise = "--access-log" if log else "--no-access-log"
    tail = GRANIAN_TLS if tls else ()
    return Contender(name, "granian", (*base, noise, *options, *tail, "{app}"))


def gunicorn(*, tls: bool = False, log: bool = False) -> Contender:
    noise = ("--access-logfile", "-") if log else ()
    base = ("-k", "asgi", "-b", "{address}", *noise, *(OUR_TLS if tls else ()))
    return Contender("gunicorn", "gunicorn", (*base, "{app}"))


def hypercorn(*options: str, tls: bool = False, log: bool = False) -> Contender:
    noise = ("--access-logfile", "-") if log else ()
    base = ("-k", "uvloop", "-b", "{address}", *noise, *options, *(OUR_TLS if tls else ()))
    return Contender("hypercorn", "hypercorn", (*base, "{app}"))


def http1(*, tls: bool = False, log: bool = False) -> Sequence[Contender]:
    return (
        ours(tls=tls, log=log),
        uvicorn("--http", "httptools", tls=tls, log=log, name="uvicorn, httptools"),
        uvicorn("--http", "zttp", tls=tls, log=log, name="uvicorn, zttp"),
        granian("--http", "1", tls=tls, log=log),
        gunicorn(tls=tls, log=log),
        hypercorn(tls=tls, log=log),
    )


def behind(name: str, template: str, *command: str) -> Contender:
    """uvicorn behind a front server that speaks HTTP/3."""
    return Contender(
        f"{name} + uvicorn",
        "uvicorn",
        ("{app}", "--port", "{behind}", "--no-access-log", "--log-level", "warning"),
        front=command,
        front_configuration=template,
    )


def http3() -> Sequence[Contender]:
    return (
        ours("--http3", tls=True),
        hypercorn("--quic-bind", "{address}", tls=True),
        behind("Caddy", CADDY, "caddy", "run", "--adapter", "caddyfile", "--config"),
        behind("nginx", NGINX, "nginx", "-c"),
    )
