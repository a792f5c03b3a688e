"""Which of several certificates a client is shown: over TCP and QUIC by the same rule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, TypeVar

from cryptography import x509

T = TypeVar("T")


class ServerNames(Generic[T]):
    """What belongs to each certificate, found by the name that a client asks for (RFC 6066 §3)."""

    def __init__(self, certificates: Sequence[tuple[x509.Certificate, T]]) -> None:
        self._by_name = {
            name: belongings
            # Reversed: of two certificates for one name, the first given counts.
            for certificate, belongings in reversed(certificates)
            for name in _names(certificate)
        }

    def find_untrusted(self, name: str) -> T | None:
        """Return what belongs to the name itself, or to `*` in place of its first label."""
        name = name.lower()
        exact = self._by_name.get(name)
        return self._by_name.get(f"*.{name.partition('.')[2]}") if exact is None else exact


def _names(certificate: x509.Certificate) -> list[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return []
    return [name.lower() for name in names.value.get_values_for_type(x509.DNSName)]
