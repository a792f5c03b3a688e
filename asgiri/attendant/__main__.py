"""Entry point: `python -m asgiri.attendant FD` attends, with FILE before FD it reads that."""

import os
import sys

import orjson

from asgiri.attendant.attend import attend
from asgiri.attendant.values import read_values

if __name__ == "__main__":
    *files, fd = sys.argv[1:]
    if files:
        document = orjson.dumps(read_values(files[0]), option=orjson.OPT_NON_STR_KEYS)
        with os.fdopen(int(fd), "wb") as pipe:
            pipe.write(document)
    else:
        attend(int(fd))
    # Threads that the operator's code has left are not waited for.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
