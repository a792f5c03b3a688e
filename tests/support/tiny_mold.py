"""A mold of tiny workers, for tests of the master. `WorkerOrder.mold` names it.

`hello.config["mold"]`:

    good     report ready, fork whoever is asked for
    fail     report Failed, exit with status 3
    exit     exit with status 5 at once
    hang     never report anything
    lie      report ready, then say that process 1 is the worker
    deaf     report ready, then read nothing more
    loud     report ready, with messages that are none, then fork
"""

from __future__ import annotations

import os
import signal
import socket
import sys

from asgiri.ipc.channel import ControlChannel
from asgiri.ipc.messages import Failed, Forked, Importing, MoldHello, Quit, Ready
from asgiri.worker import boot
from asgiri.worker.mold import fork_workers
from tests.support import tiny_worker


def main(control_fd: int) -> None:
    os.set_inheritable(control_fd, False)
    control = ControlChannel.adopt(control_fd)
    hello, _ = boot.receive_first(control, MoldHello)
    control.send(Importing())
    match hello.config["mold"]:
        case "fail":
            control.send(Failed("import", "no module named nothing", "Traceback: nothing"))
            sys.exit(3)
        case "exit":
            sys.exit(5)
        case "hang":
            signal.pause()
        case "deaf":
            control.send(Ready(os.getpid()))
            signal.pause()
        case "lie":
            control.send(Ready(os.getpid()))
            while (received := control.receive()) is None:
                pass
            control.send(Forked(received[0].worker_id, 1))
            signal.pause()
        case "loud":
            with socket.socket(fileno=os.dup(control.fileno())) as raw:
                raw.send(b"Z{}")
            control.send(Quit())
            control.send(Forked(4711, os.getpid()))
    control.send(Ready(os.getpid()))
    worker_fd = fork_workers(control, lambda: "left some things behind")
    if worker_fd is not None:
        tiny_worker.main(worker_fd)


if __name__ == "__main__":
    main(int(sys.argv[1]))
