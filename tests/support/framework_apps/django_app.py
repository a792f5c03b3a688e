"""Django as its users write it, in one file."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator

from django.conf import settings
from django.core.asgi import get_asgi_application
from django.http import (
    FileResponse,
    HttpRequest,
    HttpResponse,
    JsonResponse,
    StreamingHttpResponse,
)
from django.urls import path

settings.configure(
    ALLOWED_HOSTS=["localhost", "127.0.0.1"],
    ROOT_URLCONF=__name__,
    SECRET_KEY="of no use",
    DATA_UPLOAD_MAX_MEMORY_SIZE=None,
    LOGGING_CONFIG=None,
)


def hello(_: HttpRequest, name: str) -> HttpResponse:
    """Not a coroutine: runs in a thread."""
    return HttpResponse(f"hello {name}", content_type="text/plain")


async def upload(request: HttpRequest) -> JsonResponse:
    content = request.FILES["file"].read()
    digest = hashlib.sha256(content).hexdigest()
    return JsonResponse({"name": request.POST["name"], "size": len(content), "sha256": digest})


async def raw(request: HttpRequest) -> JsonResponse:
    return JsonResponse({"size": len(request.body)})


async def stream(_: HttpRequest) -> StreamingHttpResponse:
    async def numbers() -> AsyncIterator[str]:
        for number in range(1000):
            yield f"{number}\n"

    return StreamingHttpResponse(numbers(), content_type="text/plain")


def file(_: HttpRequest) -> FileResponse:
    return FileResponse(open(__file__, "rb"))


async def fail(_: HttpRequest) -> HttpResponse:
    raise RuntimeError("framework error on purpose")


urlpatterns = [
    path("hello/<name>", hello),
    path("upload", upload),
    path("raw", raw),
    path("stream", stream),
    path("file", file),
    path("fail", fail),
]

app = get_asgi_application()
