"""Flask as its users write it: WSGI."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import flask

app = flask.Flask(__name__)


@app.get("/hello/<name>")
def hello(name: str) -> flask.Response:
    return flask.Response(f"hello {name}", content_type="text/plain")


@app.post("/upload")
def upload() -> dict[str, str | int]:
    content = flask.request.files["file"].read()
    digest = hashlib.sha256(content).hexdigest()
    return {"name": flask.request.form["name"], "size": len(content), "sha256": digest}


@app.put("/raw")
def raw() -> dict[str, int]:
    size = 0
    while part := flask.request.stream.read(65536):
        size += len(part)
    return {"size": size}


@app.get("/stream")
def stream() -> flask.Response:
    def numbers() -> Iterator[bytes]:
        for number in range(1000):
            yield b"%d\n" % number

    return flask.Response(numbers(), content_type="text/plain")


@app.get("/file")
def file() -> flask.Response:
    return flask.send_file(__file__)


@app.get("/fail")
def fail() -> None:
    raise RuntimeError("framework error on purpose")
