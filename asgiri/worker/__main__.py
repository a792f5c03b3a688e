"""Entry point of a worker process: `python -m asgiri.worker FD`, FD being its control channel."""

import sys

from asgiri.worker.runtime import run

if __name__ == "__main__":
    sys.exit(run(int(sys.argv[1])))
