"""Certificates over QUIC as OpenSSL has them on TCP: ours chosen by the name that a client asks
for, those of clients asked for and verified. Sans-IO, but for reading the authorities.

aioquic's server knows one certificate. It can ask clients for theirs (for its tests) and checks
that they have the key, but does not look at whose certificate it is, and does not miss one that
does not come.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from aioquic import tls
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID
from OpenSSL import crypto

from asgiri.worker.protocol.server_names import ServerNames

if TYPE_CHECKING:
    from aioquic.buffer import Buffer  # type: ignore[attr-defined]
    from aioquic.quic.configuration import QuicConfiguration

PURPOSES: Final = frozenset(
    (ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE)
)
ALERTS: Final = {
    2: tls.AlertDescription.unknown_ca,
    9: tls.AlertDescription.bad_certificate,
    10: tls.AlertDescription.certificate_expired,
    18: tls.AlertDescription.unknown_ca,
    19: tls.AlertDescription.unknown_ca,
    20: tls.AlertDescription.unknown_ca,
    21: tls.AlertDescription.unknown_ca,
}
"""By OpenSSL's number of what is wrong (X509_V_ERR_...), as it does itself: no issuer, not valid
yet, expired, self-signed. All else is certificate_unknown."""


class ClientRefused(tls.Alert):
    """Ends the handshake with this alert (RFC 8446 §6.2)."""

    def __init__(self, description: tls.AlertDescription, reason: str) -> None:
        super().__init__(reason)
        self.description = description


class ClientAuthorities:
    """Who signs the certificates that clients show. Shared by the connections of a worker."""

    def __init__(self, ca_certs: str, *, required: bool) -> None:
        """Raises OSError or ValueError for a file that holds no certificates."""
        self.required: Final = required
        self._store = crypto.X509Store()
        for certificate in x509.load_pem_x509_certificates(Path(ca_certs).read_bytes()):
            self._store.add_cert(crypto.X509.from_cryptography(certificate))

    def verify(self, certificate: x509.Certificate, chain: list[x509.Certificate]) -> None:
        """Raise ClientRefused unless one of the authorities signed it for a client's use."""
        descriptions = tls.AlertDescription
        try:
            is_for_clients = _is_for_clients(certificate)
        except ValueError as error:  # extensions are parsed when they are looked at
            raise ClientRefused(descriptions.bad_certificate, str(error)) from error
        if not is_for_clients:
            raise ClientRefused(descriptions.unsupported_certificate, "not for clients")
        context = crypto.X509StoreContext(
            self._store,
            crypto.X509.from_cryptography(certificate),
            [crypto.X509.from_cryptography(member) for member in chain],
        )
        try:
            context.verify_certificate()
        except crypto.X509StoreContextError as error:
            number = error.errors[0]
            description = ALERTS.get(number, descriptions.certificate_unknown)
            raise ClientRefused(description, str(error)) from error


def prepare_handshake(
    context: tls.Context,
    names: ServerNames[QuicConfiguration] | None,
    authorities: ClientAuthorities | None,
) -> None:
    """Let a handshake that has not begun choose a certificate, ask for one, or both."""
    context.__class__ = _ServerContext
    assert isinstance(context, _ServerContext)
    context.prepare(names, authorities)


class _ServerContext(tls.Context):
    """A server's handshake with more than one certificate: of ours, or of both sides."""

    _names: ServerNames[QuicConfiguration] | None
    _authorities: ClientAuthorities | None

    def prepare(
        self, names: ServerNames[QuicConfiguration] | None, authorities: ClientAuthorities | None
    ) -> None:
        self._names = names
        self._authorities = authorities
        self._request_client_certificate = authorities is not None

    def _server_handle_hello(
        self, input_buf: Buffer, initial_buf: Buffer, handshake_buf: Buffer
    ) -> None:
        if self._names is not None:
            # Read twice, 30 us: aioquic asks for nothing between reading it and choosing a
            # signature algorithm for the certificate. What it refuses is refused here.
            hello = tls.pull_client_hello(input_buf)
            input_buf.seek(0)
            chosen = self._names.find_untrusted(hello.server_name or "")
            if chosen is not None:
                self.certificate = chosen.certificate
                self.certificate_chain = chosen.certificate_chain
                self.certificate_private_key = chosen.private_key
        super()._server_handle_hello(input_buf, initial_buf, handshake_buf)

    def _server_handle_certificate(self, input_buf: Buffer) -> None:
        super()._server_handle_certificate(input_buf)
        assert self._authorities is not None
        if self._peer_certificate is None and self._authorities.required:
            description = tls.AlertDescription.certificate_required
            raise ClientRefused(description, "the client shows no certificate")

    def _server_handle_certificate_verify(self, input_buf: Buffer) -> None:
        super()._server_handle_certificate_verify(input_buf)  # the client has the key
        assert self._authorities is not None
        assert self._peer_certificate is not None
        self._authorities.verify(self._peer_certificate, self._peer_certificate_chain)


def client_chain(context: tls.Context) -> list[x509.Certificate]:
    """Certificates that the client has shown, its own first."""
    if context._peer_certificate is None:
        return []
    return [context._peer_certificate, *context._peer_certificate_chain]


@functools.lru_cache(maxsize=64)
def _pem(certificate: x509.Certificate) -> str:
    """Spell a certificate of ours: 20 us of a handshake if it were done each time."""
    return certificate.public_bytes(Encoding.PEM).decode()


def tls_extension(context: tls.Context) -> dict[str, Any]:
    """Value of the `tls` extension of ASGI scopes, once the handshake is complete."""
    chain = client_chain(context)
    assert context.key_schedule is not None
    return {
        "server_cert": _pem(context.certificate),
        "client_cert_chain": [member.public_bytes(Encoding.PEM).decode() for member in chain],
        "client_cert_name": chain[0].subject.rfc4514_string() if chain else None,
        # The handshake ends when a certificate does not verify: whoever is here has no error.
        "client_cert_error": None,
        "tls_version": 0x0304,
        "cipher_suite": int(context.key_schedule.cipher_suite),
    }


def _is_for_clients(certificate: x509.Certificate) -> bool:
    """What OpenSSL asks of a client's certificate (purpose sslclient)."""
    extensions = certificate.extensions
    for extension in extensions:
        match extension.value:
            case x509.ExtendedKeyUsage() as usage if not PURPOSES.intersection(usage):
                return False
            case x509.KeyUsage() as usage if not (usage.digital_signature or usage.key_agreement):
                return False
    return True
