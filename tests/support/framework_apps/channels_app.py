"""Django Channels as its users write it: Django for HTTP, consumers for WebSockets."""

from __future__ import annotations

from typing import Any

from channels.generic.websocket import AsyncWebsocketConsumer
from channels.routing import ProtocolTypeRouter, URLRouter
from django.conf import settings
from django.urls import path

from tests.support.framework_apps.django_app import app as django_app

settings.CHANNEL_LAYERS = {"default": {"BACKEND": "channels.layers.InMemoryChannelLayer"}}


class Room(AsyncWebsocketConsumer):
    """What one says, all hear."""

    async def connect(self) -> None:
        self.name = self.scope["url_route"]["kwargs"]["name"]
        await self.channel_layer.group_add(self.name, self.channel_name)
        await self.accept(subprotocol="chat")

    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        if text_data == "leave":
            await self.close(4000, "bye")
            return
        await self.channel_layer.group_send(self.name, {"type": "said", "text": text_data})

    async def said(self, event: dict[str, Any]) -> None:
        await self.send(f"{self.name}: {event['text']}")

    async def disconnect(self, code: int) -> None:
        await self.channel_layer.group_discard(self.name, self.channel_name)


app = ProtocolTypeRouter(
    {
        "http": django_app,
        "websocket": URLRouter([path("room/<name>", Room.as_asgi())]),
    }
)
