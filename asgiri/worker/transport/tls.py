"""TLS on TCP: contexts from the configuration, ALPN, and what the `tls` extension of ASGI tells."""

from __future__ import annotations

import contextlib
import re
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from asgiri.config import HttpConfig, TlsConfig
from asgiri.worker.protocol.server_names import ServerNames

VERIFY_MODES: Final = {
    "none": ssl.CERT_NONE,
    "optional": ssl.CERT_OPTIONAL,
    "required": ssl.CERT_REQUIRED,
}
TLS_VERSIONS: Final = {"TLSv1.2": 0x0303, "TLSv1.3": 0x0304}


class TlsError(Exception):
    """A certificate, a key or an option that OpenSSL does not take. One line."""


class ServerTls:
    """What all TLS connections of a worker share. Built anew when certificates are reloaded."""

    def __init__(self, tls: TlsConfig, http: HttpConfig) -> None:
        keyfiles = tls.keyfile or tls.certfile
        contexts = [
            _create_context(tls, http, certfile, keyfile)
            for certfile, keyfile in zip(tls.certfile, keyfiles, strict=True)
        ]
        self.context: Final = contexts[0]
        self.protocols: Final = frozenset(name.encode() for name in alpn_protocols(http))
        """What it offers by ALPN."""
        self._certificates = {
            id(context): _read_leaf(certfile)
            for context, certfile in zip(contexts, tls.certfile, strict=True)
        }
        self._names = ServerNames([(self._certificates[id(each)], each) for each in contexts])
        self._cipher_suites = {
            cipher["name"]: cipher["id"] & 0xFFFF for cipher in self.context.get_ciphers()
        }
        if len(contexts) > 1:
            self.context.sni_callback = self._choose_context

    def _choose_context(
        self, connection: ssl.SSLObject, name: str | None, _context: ssl.SSLContext
    ) -> None:
        """Answer with the certificate for the name the client asks for; else the first."""
        if name is None:
            return
        chosen = self._names.find_untrusted(name)
        if chosen is not None:
            connection.context = chosen

    def extension(self, connection: ssl.SSLObject) -> dict[str, Any]:
        """Value of `scope["extensions"]["tls"]` for a connection whose handshake is complete."""
        leaf = self._certificates.get(id(connection.context))
        cipher = connection.cipher()
        chain = _client_chain(connection)
        return {
            "server_cert": leaf.public_bytes(Encoding.PEM).decode() if leaf is not None else None,
            "client_cert_chain": [ssl.DER_cert_to_PEM_cert(der) for der in chain],
            "client_cert_name": (
                x509.load_der_x509_certificate(chain[0]).subject.rfc4514_string() if chain else None
            ),
            # OpenSSL ends the handshake when a certificate does not verify: whoever is here has no
            # error.
            "client_cert_error": None,
            "tls_version": TLS_VERSIONS.get(connection.version() or ""),
            "cipher_suite": self._cipher_suites.get(cipher[0]) if cipher else None,
        }


def _create_context(
    tls: TlsConfig, http: HttpConfig, certfile: str, keyfile: str
) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = (
        ssl.TLSVersion.TLSv1_3 if tls.tls_min_version == "1.3" else ssl.TLSVersion.TLSv1_2
    )
    # A peer could make us renegotiate for ever (CVE-2009-3555, CVE-2011-1473); HTTP/2 forbids it
    # anyhow.
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    with _told_as(certfile, "check --certfile and --keyfile"):
        context.load_cert_chain(certfile, keyfile, tls.keyfile_password)
    if tls.ciphers:
        with _told_as(f"--ciphers {tls.ciphers}", "list what there is by: openssl ciphers -tls1_2"):
            context.set_ciphers(tls.ciphers)
    if tls.cert_reqs != "none":
        context.verify_mode = VERIFY_MODES[tls.cert_reqs]
        with _told_as(f"--ca-certs {tls.ca_certs}", "name a file of certificates in PEM form"):
            context.load_verify_locations(tls.ca_certs)
    protocols = alpn_protocols(http)
    if protocols:
        context.set_alpn_protocols(protocols)
    return context


@contextlib.contextmanager
def _told_as(subject: str, remedy: str) -> Iterator[None]:
    """Make one line of what OpenSSL does not take, or of a file that cannot be read."""
    try:
        yield
    except OSError as error:  # ssl.SSLError among them; some have nothing but arguments
        reason = error.strerror or ", ".join(str(argument) for argument in error.args)
        # "[SSL: EE_KEY_TOO_SMALL] ee key too small (_ssl.c:3916)": the middle says it.
        reason = re.sub(r"^\[[^]]*\] | \(_ssl\.c:\d+\)$", "", reason).rstrip(".")
        raise TlsError(f"{subject}: {reason}; {remedy}") from error


def alpn_protocols(http: HttpConfig) -> list[str]:
    """What TLS on TCP offers, best first."""
    http1 = ["http/1.1", "http/1.0"] if http.http1 else []
    return ["h2", *http1] if http.http2 else http1


def _read_leaf(certfile: str) -> x509.Certificate:
    return x509.load_pem_x509_certificates(Path(certfile).read_bytes())[0]


def _client_chain(connection: ssl.SSLObject) -> list[bytes]:
    """Certificates that the client sent, its own first; before Python 3.13 only that one."""
    if (chain := getattr(connection, "get_unverified_chain", None)) is not None:
        return chain() or []
    leaf = connection.getpeercert(binary_form=True)
    return [leaf] if leaf else []
