"""Run a command where the system refuses memfd_create, eventfd and pidfd_open, as sandboxes do:
`python -m tests.support.sandbox COMMAND...`
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import sys

REFUSED = {"x86_64": (319, 290, 434), "aarch64": (279, 19, 434)}.get(platform.machine(), ())
"""Numbers of the system calls; empty where nobody has looked them up."""

PR_SET_SECCOMP = 22
PR_SET_NO_NEW_PRIVS = 38
SECCOMP_MODE_FILTER = 2
# Classic BPF (linux/bpf_common.h) and what a filter answers (linux/seccomp.h).
LOAD, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06
ALLOW = 0x7FFF0000
REFUSE = 0x00050000


class Program(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def refuse_for_good() -> None:
    """From here on and in every child."""
    filters = [(LOAD, 0, 0, 0)]  # the number of the call
    for index, number in enumerate(REFUSED):
        filters.append((JUMP_IF_EQUAL, len(REFUSED) - index, 0, number))
    filters += [(RETURN, 0, 0, ALLOW), (RETURN, 0, 0, REFUSE | errno.EPERM)]
    code = b"".join(struct.pack("HBBI", *instruction) for instruction in filters)
    program = Program(len(filters), code)
    libc = ctypes.CDLL(None, use_errno=True)
    for call in (
        (PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
        (PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0),
    ):
        if libc.prctl(*call):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


if __name__ == "__main__":
    refuse_for_good()
    os.execvp(sys.argv[1], sys.argv[1:])
