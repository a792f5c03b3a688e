"""The worker process: bytes to protocols to the application, and back.

    transport   bytes <-> protocols: event loop, sockets, rings, timers
    asgi        events <-> application: scopes, receive, send
    protocol    bytes <-> events, sans-IO, one module per protocol engine

Higher may import lower, never the other way round. `asgi` reaches the transport that serves it only
through the interface `asgi.types.ResponseSink`; the transport drives `asgi` through
`asgi.types.Exchange`.
"""
