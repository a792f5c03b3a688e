"""Makes the HTTP/3 connections of a worker. Sans-IO, but for reading the certificate."""

from __future__ import annotations

from typing import Any

from asgiri.config import FlowConfig, Http3Config, TlsConfig
from asgiri.ipc.connection_id import ConnectionIdMint
from asgiri.ipc.tokens import ResetTokens
from asgiri.worker.protocol.http3 import Http3Connection
from asgiri.worker.protocol.quic import SteeredQuicConnection, quic_configuration
from asgiri.worker.protocol.quic_tls import ClientAuthorities
from asgiri.worker.protocol.server_names import ServerNames


class Http3Server:
    """What the HTTP/3 connections of a worker have in common."""

    def __init__(
        self,
        *,
        config: Http3Config,
        flow: FlowConfig,
        tls: TlsConfig,
        mint: ConnectionIdMint,
        reset_tokens: ResetTokens,
    ) -> None:
        self._config = config
        self._flow = flow
        self._mint = mint
        self._reset_tokens = reset_tokens
        self.load_certificate(tls)

    def load_certificate(self, tls: TlsConfig) -> None:
        """Use these certificates from now on: the first, unless another one has the name that is
        asked for.
        """
        configurations = [
            quic_configuration(
                self._config, certfile=certfile, keyfile=keyfile, password=tls.keyfile_password
            )
            for certfile, keyfile in zip(
                tls.certfile, tls.keyfile or [None] * len(tls.certfile), strict=True
            )
        ]
        self._configuration = configurations[0]
        self._names = (
            None
            if len(configurations) == 1
            else ServerNames([(each.certificate, each) for each in configurations])
        )
        self._authorities = (
            None
            if tls.cert_reqs == "none"
            else ClientAuthorities(tls.ca_certs, required=tls.cert_reqs == "required")
        )

    def accept(
        self,
        original_destination_cid: bytes,
        *,
        retried_from: bytes | None = None,
        trusted_address: Any = None,
    ) -> Http3Connection:
        """Begin a connection. After a Retry: its connection ID, and the address that it proved."""
        quic = SteeredQuicConnection(
            configuration=self._configuration,
            mint=self._mint,
            reset_tokens=self._reset_tokens,
            max_streams=self._config.max_streams,
            original_destination_connection_id=original_destination_cid,
            retry_source_connection_id=retried_from,
            names=self._names,
            authorities=self._authorities,
        )
        if trusted_address is not None:
            quic.trust_path(trusted_address)
        return Http3Connection(quic, config=self._config, flow=self._flow)

    def tls_extension(self, connection: Http3Connection) -> dict[str, Any]:
        """Value of the `tls` extension of ASGI scopes."""
        return connection.tls_extension()
