"""What Linux alone knows about parents and children: prctl(2), which Python does not offer.

Elsewhere each question is answered with no; callers say what that means for them.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
from typing import Final

__all__ = ["become_subreaper", "is_subreaper", "set_death_signal"]

PR_SET_PDEATHSIG: Final = 1
PR_SET_CHILD_SUBREAPER: Final = 36
PR_GET_CHILD_SUBREAPER: Final = 37


def set_death_signal(number: int) -> bool:
    """Have the kernel send this process a signal when its parent ends; False where it cannot.

    Meant is the thread that started this process, or the subreaper that it was left to since. A
    parent that has ended before is not noticed: ask for it afterwards.
    """
    return _prctl(PR_SET_PDEATHSIG, ctypes.c_ulong(number))


def become_subreaper() -> bool:
    """Become the parent of orphans among our descendants; False where that is not possible.

    It lasts through execve(2), and is not inherited by children.
    """
    return _prctl(PR_SET_CHILD_SUBREAPER, ctypes.c_ulong(1))


def is_subreaper() -> bool:
    """Tell whether orphans among our descendants are left to us."""
    answer = ctypes.c_int(0)
    return _prctl(PR_GET_CHILD_SUBREAPER, ctypes.byref(answer)) and bool(answer.value)


def _prctl(option: int, argument: object) -> bool:
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            return bool(ctypes.CDLL(None).prctl(option, argument) == 0)
    return False
