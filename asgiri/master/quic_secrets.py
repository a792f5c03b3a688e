"""The root secret of connection IDs and tokens, from what the operator gave.

Derived from the TLS private key, it is the same after a restart without any configuration, and so
clients of connections that died with the old process learn it by a stateless reset, in one round
trip.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

from asgiri.certificates import private_key_der
from asgiri.config import Http3Config, TlsConfig
from asgiri.errors import StartError
from asgiri.ipc.tokens import QuicSecrets

logger = logging.getLogger("asgiri.master")

RANDOM_ROOT_SIZE = 32


def load_quic_secrets(http3: Http3Config, tls: TlsConfig) -> QuicSecrets:
    """Derive the secrets of this server; raises StartError or ConfigError."""
    return QuicSecrets.derive(_root(http3, tls), server_id=http3.quic_server_id)


def _root(http3: Http3Config, tls: TlsConfig) -> bytes:
    if http3.quic_secret_file:
        return _read_secret(Path(http3.quic_secret_file))
    if tls.certfile:
        return private_key_der(tls)
    return os.urandom(RANDOM_ROOT_SIZE)


def _read_secret(path: Path) -> bytes:
    try:
        # Stripped: an editor's newline on one of several hosts would make theirs another secret.
        secret = path.read_bytes().strip()
        mode = path.stat().st_mode
    except OSError as error:
        raise StartError.from_os_error(
            error, str(path), "check --quic-secret-file and who may read it"
        ) from None
    if mode & 0o077:
        logger.warning("%s can be read by others: chmod 600 %s", path, path)
    return secret
