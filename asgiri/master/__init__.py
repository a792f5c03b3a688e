"""The master: owns every socket, parses no HTTP, runs no application, never blocks.

One process, one thread, one loop. Its decisions are pure modules (sans-IO), the rest carries them
out:

    decides                         carries out
    quic_header, steering           receiver     a datagram: which ring, which answer, or a drop
    dispatcher                      acceptor     a TCP connection: which worker
    slots, supervisor               runtime, processes    which workers should exist
                                    loop, signals, listeners

`runtime` wires them: a `Switch` of the supervisor becomes `set_ready` of dispatcher and steering; a
worker's exit becomes `remove_worker` of both; steering asks the dispatcher where a new QUIC
connection goes. The three deciders never call each other by name and never see a process, a
socket or a clock.
"""
