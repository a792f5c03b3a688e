"""The operator's face: an ASGI application for a worker of its own, which answers while every other
one is blocked, and while the master stands still.

It reads the board (`asgiri.ipc.board`), which it finds in the state of its lifespan, and nothing
else; it changes nothing.

    app          paths and answers
    health       what /healthz and /readyz say
    metrics      the names and where their numbers come from
    prometheus   the same as text
    statsd       the same for StatsD, under gunicorn's names where it has them
    watch        the board, read once for all who ask at the same time
"""
