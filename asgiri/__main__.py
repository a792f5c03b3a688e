"""`python -m asgiri` is the command `asgiri`."""

import sys

from asgiri.cli import main

if __name__ == "__main__":
    sys.exit(main())
