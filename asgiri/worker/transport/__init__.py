"""The I/O side of a worker: TCP connections, the QUIC endpoint, TLS, timers."""
