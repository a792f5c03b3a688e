"""What a reload can change of a configuration, and what takes a restart. Sans-IO.

New workers start with what was read anew; once they serve, the master applies its own part. It
opens and closes no sockets then, nor does it become another user: those options keep their values.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from asgiri.config import Config, options_in
from asgiri.errors import StartError

FIXED: Final = {
    "listen": frozenset(declared.field for declared in options_in("listen")),
    "process": frozenset({"pid_file", "user", "group", "umask", "daemon"}),
    "admin": frozenset({"bind", "control_socket"}),
    # Who watches the files has begun with them.
    "reload": frozenset(declared.field for declared in options_in("reload")),
    # Connection IDs that clients hold were made with the secret.
    "http3": frozenset({"quic_secret_file", "quic_server_id"}),
}
"""By section, the options that keep their values until a restart."""


def renew(present: Config, wanted: Config) -> tuple[Config, list[str]]:
    """Return the configuration to go on with, and the options that wait for a restart.

    Raises StartError for what cannot wait.
    """
    check_encryption(wanted, http3=present.http.http3, tls=present.speaks_tls)
    sections: dict[str, Any] = {}
    waiting = []
    for section, fields in FIXED.items():
        before, after = getattr(present, section), getattr(wanted, section)
        kept = {name: getattr(before, name) for name in fields}
        sections[section] = replace(after, **kept)
        waiting += [
            declared.flags[0]
            for declared in options_in(section)
            if declared.field in fields
            and getattr(before, declared.field) != getattr(after, declared.field)
        ]
    return replace(wanted, **sections), waiting


def check_encryption(wanted: Config, *, http3: bool, tls: bool) -> None:
    """Raise StartError if sockets that are open would have to speak QUIC or TLS, or cease to."""
    if wanted.http.http3 is not http3:
        raise StartError(f"HTTP/3 is {_on(http3)}: to turn it {_on(not http3)}, restart")
    if wanted.speaks_tls is not tls:
        raise StartError(f"TLS is {_on(tls)}: to turn it {_on(not tls)}, restart")


def _on(on: bool) -> str:
    return "on" if on else "off"
