"""The master: owns every socket, parses no HTTP, runs no application, never blocks.

One process, one thread, one loop. Its decisions are pure modules (sans-IO), the rest carries them
out:

    decides                                     carries out
    steering      a QUIC datagram: which        receiver
                  worker, which answer, or
                  why it is dropped
    dispatcher    a connection: which worker    acceptor (TCP), steering (QUIC)
    supervisor    which workers should exist    fleet (one worker), runtime (the server)

    beneath them
    quic_header, quic_versions    what the master may know of a packet
    admission, bounds             what strangers may take: budgets, tables, rates
    slots, roster, actions        a worker's life, all workers, what is asked for

`runtime` wires them: a `Switch` of the supervisor becomes `set_ready` of dispatcher and steering; a
worker's exit becomes `remove_worker` of both; steering asks the dispatcher where a new QUIC
connection goes. The deciders never call each other by name and never see a process, a socket or a
clock: time is an argument, randomness a callable.
"""
