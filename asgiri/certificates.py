"""Certificates: made on the spot for development, and checked before anything starts.

A self-signed pair lives in a folder of its own below the user's cache folder and is never changed
once it is there, so a process that reads it never sees a certificate without its key. Servers that
start at the same time take turns by a lock and then share what the first one made.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import ipaddress
import logging
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, NamedTuple

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from asgiri.config import Config, TlsConfig
from asgiri.errors import StartError

__all__ = [
    "SelfSigned",
    "cache_directory",
    "check_pair",
    "private_key_der",
    "provide_certificates",
    "self_signed",
]

logger = logging.getLogger("asgiri.master")

LOCAL_NAMES: Final = ("localhost", "127.0.0.1", "::1")
WILDCARDS: Final = frozenset({"", "0.0.0.0", "::"})  # noqa: S104 (compared, not bound)
LIFETIME: Final = timedelta(days=13)
"""Browsers accept a certificate by its hash (WebTransport's serverCertificateHashes) for at most
14 days of validity."""
RENEW_BEFORE: Final = timedelta(days=3)
"""A server that starts on Friday still has a valid certificate on Monday."""
KEEP_EXPIRED: Final = timedelta(days=30)
"""Another server may still run with it and start workers that read it."""
CLOCK_SKEW: Final = timedelta(minutes=10)
CERTIFICATE_NAME: Final = "certificate.pem"
KEY_NAME: Final = "key.pem"


class SelfSigned(NamedTuple):
    """A pair of PEM files, and the SHA-256 of the certificate as browsers and curl print it."""

    certfile: str
    keyfile: str
    fingerprint: str


def provide_certificates(config: Config) -> Config:
    """Check the certificates that were named, or make one where one is needed and none is named."""
    if config.needs_self_signed:
        return _with_self_signed(config)
    tls = config.tls
    for certfile, keyfile in zip(tls.certfile, tls.keyfile or tls.certfile, strict=True):
        for warning in check_pair(certfile, keyfile, tls.keyfile_password):
            logger.warning("%s", warning)
    return config


def _with_self_signed(config: Config) -> Config:
    addresses = [*config.listen.bind_addresses, *config.quic_addresses]
    hosts = {address.host for address in addresses if address.kind == "tcp"}
    pair = self_signed(hosts, cache_directory())
    logger.warning(
        "self-signed certificate %s (SHA-256 %s): clients will not trust it; "
        "name your own by --certfile and --keyfile",
        pair.certfile,
        pair.fingerprint,
    )
    tls = dataclasses.replace(
        config.tls, certfile=(pair.certfile,), keyfile=(pair.keyfile,), self_signed=False
    )
    return dataclasses.replace(config, tls=tls)


# Made on the spot


def cache_directory() -> Path:
    """Find the user's folder for what can be made again."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification says to ignore a relative path.
    folder = Path(base) if Path(base).is_absolute() else Path("~/.cache").expanduser()
    return folder / "asgiri"


def self_signed(
    hosts: Iterable[str], directory: Path, *, now: datetime | None = None
) -> SelfSigned:
    """Return a pair for `hosts` and localhost: a kept one while it is good, or else a new one."""
    now = datetime.now(UTC) if now is None else now
    names = _names(hosts)
    identity = hashlib.sha256("\n".join(names).encode()).hexdigest()[:12]
    try:
        with _locked(directory):
            _remove_expired(directory, now)
            return _kept(directory, identity, now) or _make(directory, identity, names, now)
    except OSError as error:
        raise StartError.from_os_error(
            error,
            f"cannot keep a self-signed certificate in {directory}",
            "set XDG_CACHE_HOME to a folder that can be written, or give --certfile and --keyfile",
        ) from None


def _names(hosts: Iterable[str]) -> list[str]:
    names = set(LOCAL_NAMES)
    for host in hosts:
        names.add(socket.gethostname().lower() if host in WILDCARDS else _plain(host))
    return sorted(names)


def _plain(host: str) -> str:
    """Spell a host in one way: without an interface (fe80::1%eth0), and in ASCII."""
    host = host.partition("%")[0]
    with contextlib.suppress(ValueError):
        return str(ipaddress.ip_address(host))
    try:
        return host.encode("idna").decode().lower()
    except UnicodeError:
        raise StartError(
            f"{host}: cannot stand in a certificate; give --certfile and --keyfile"
        ) from None


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    if directory.stat().st_mode & 0o077:
        directory.chmod(0o700)
    # The lock goes with the descriptor, also when this process is killed.
    descriptor = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _kept(directory: Path, identity: str, now: datetime) -> SelfSigned | None:
    found = []
    for folder in directory.glob(f"{identity}-*"):
        certificate = _read_certificate(folder)
        if certificate is not None and certificate.not_valid_after_utc > now + RENEW_BEFORE:
            found.append((certificate.not_valid_after_utc, folder, certificate))
    if not found:
        return None
    _, folder, certificate = max(found, key=lambda entry: (entry[0], entry[1]))
    return _describe(folder, certificate)


def _remove_expired(directory: Path, now: datetime) -> None:
    for folder in directory.glob("*-*"):
        certificate = _read_certificate(folder)
        if certificate is None or certificate.not_valid_after_utc + KEEP_EXPIRED < now:
            shutil.rmtree(folder, ignore_errors=True)


def _read_certificate(folder: Path) -> x509.Certificate | None:
    """Read what an earlier start kept; None when somebody damaged it."""
    try:
        check_pair(str(folder / CERTIFICATE_NAME), str(folder / KEY_NAME), "")
        return x509.load_pem_x509_certificate((folder / CERTIFICATE_NAME).read_bytes())
    except (OSError, ValueError, StartError):
        return None


def _describe(folder: Path, certificate: x509.Certificate) -> SelfSigned:
    fingerprint = certificate.fingerprint(hashes.SHA256()).hex(":").upper()
    return SelfSigned(str(folder / CERTIFICATE_NAME), str(folder / KEY_NAME), fingerprint)


def _make(directory: Path, identity: str, names: list[str], now: datetime) -> SelfSigned:
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = _sign(key, names, now)
    # Only a folder that is complete gets a name that is looked for.
    draft = Path(tempfile.mkdtemp(prefix="draft-", dir=directory))
    _write_private(
        draft / KEY_NAME,
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ),
    )
    _write_private(draft / CERTIFICATE_NAME, certificate.public_bytes(serialization.Encoding.PEM))
    folder = directory / f"{identity}-{certificate.serial_number & 0xFFFF_FFFF:08x}"
    draft.rename(folder)
    return _describe(folder, certificate)


def _sign(key: ec.EllipticCurvePrivateKey, names: list[str], now: datetime) -> x509.Certificate:
    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "asgiri (self-signed, for development)"),
            x509.NameAttribute(NameOID.COMMON_NAME, "localhost"),
        ]
    )
    usage = x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now - CLOCK_SKEW + LIFETIME)
        .add_extension(x509.SubjectAlternativeName(map(_general_name, names)), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(key, hashes.SHA256())
    )


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _write_private(path: Path, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as file:
        file.write(content)


# Named by the operator

KEY_BLOCK: Final = re.compile(
    rb"-----BEGIN ((?:[A-Z]+ )?PRIVATE KEY)-----.*?-----END \1-----", re.DOTALL
)


def check_pair(certfile: str, keyfile: str, password: str) -> list[str]:
    """Raise StartError when TLS could not start with this pair; return what deserves a warning.

    `keyfile` may be the certificate's own file, or empty for the same.
    """
    chain = _load_chain(certfile)
    public_key = _load_public_key(keyfile or certfile, password)
    matching = [index for index, link in enumerate(chain) if _spki(link.public_key()) == public_key]
    if not matching:
        raise StartError(
            f"{keyfile or certfile}: is not the private key of {certfile}; "
            "name the files that were issued together"
        )
    if matching[0] != 0:
        raise StartError(
            f"{certfile}: must begin with the server's own certificate, which is number "
            f"{matching[0] + 1}; put it first"
        )
    return list(_date_warnings(certfile, chain[0], datetime.now(UTC)))


def _load_chain(certfile: str) -> list[x509.Certificate]:
    content = _read(certfile, "--certfile")
    try:
        return x509.load_pem_x509_certificates(content)
    except ValueError:
        raise StartError(
            f"{certfile}: holds no certificate in PEM form; "
            f"if it is in DER form, convert it by: openssl x509 -inform der -in {certfile}"
        ) from None


def _load_public_key(keyfile: str, password: str) -> bytes:
    return _spki(_load_private_key(keyfile, password).public_key())


def private_key_der(tls: TlsConfig) -> bytes:
    """Return the first private key without its password: what other secrets may be derived from."""
    keyfile = (tls.keyfile or tls.certfile)[0]
    return _load_private_key(keyfile, tls.keyfile_password).private_bytes(
        serialization.Encoding.DER,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _load_private_key(keyfile: str, password: str) -> PrivateKeyTypes:
    block = KEY_BLOCK.search(_read(keyfile, "--keyfile"))
    if block is None:
        raise StartError(f"{keyfile}: holds no private key in PEM form; name it by --keyfile")
    pem = block[0]
    encrypted = b"ENCRYPTED" in pem
    if encrypted and not password:
        raise StartError(f"{keyfile}: is encrypted; give its password by ASGIRI_KEYFILE_PASSWORD")
    try:
        # A password for a key that needs none is no mistake: OpenSSL ignores it, too.
        secret = password.encode() if encrypted else None
        return serialization.load_pem_private_key(pem, secret)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        reason = "the password does not open it" if encrypted else "the private key is damaged"
        raise StartError(f"{keyfile}: {reason}; check --keyfile-password and the file") from None


def _spki(public_key: object) -> bytes:
    assert hasattr(public_key, "public_bytes")
    spki = public_key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    assert isinstance(spki, bytes)
    return spki


def _read(path: str, flag: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        remedy = f"check {flag} and who may read the file"
        raise StartError.from_os_error(error, path, remedy) from None


def _date_warnings(certfile: str, certificate: x509.Certificate, now: datetime) -> Iterator[str]:
    if certificate.not_valid_after_utc < now:
        yield f"{certfile}: expired on {certificate.not_valid_after_utc:%Y-%m-%d}; renew it"
    if certificate.not_valid_before_utc > now:
        date = f"{certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC"
        yield f"{certfile}: is valid only from {date}; check the clock"
