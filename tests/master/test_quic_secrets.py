"""Where the root secret comes from, with real keys and files."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from asgiri.config import Http3Config, TlsConfig
from asgiri.errors import ConfigError, StartError
from asgiri.master.quic_secrets import load_quic_secrets


def write_key(path, key, password: bytes = b"") -> str:
    encryption = (
        serialization.BestAvailableEncryption(password)
        if password
        else serialization.NoEncryption()
    )
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
    )
    return str(path)


def tls(keyfile: str, **options) -> TlsConfig:
    return TlsConfig(certfile=("cert.pem",), keyfile=(keyfile,), **options)


def test_the_private_key_gives_the_same_secrets_after_a_restart(tmp_path):
    key = ec.generate_private_key(ec.SECP256R1())
    plain = write_key(tmp_path / "plain.pem", key)
    first = load_quic_secrets(Http3Config(), tls(plain))
    assert load_quic_secrets(Http3Config(), tls(plain)) == first
    # Neither its password nor the form of its file matters.
    sealed = write_key(tmp_path / "sealed.pem", key, b"secret")
    assert load_quic_secrets(Http3Config(), tls(sealed, keyfile_password="secret")) == first
    other = write_key(tmp_path / "other.pem", ec.generate_private_key(ec.SECP256R1()))
    assert load_quic_secrets(Http3Config(), tls(other)) != first


def test_a_key_that_is_in_the_certificates_file_is_found(tmp_path):
    key = ec.generate_private_key(ec.SECP256R1())
    alone = write_key(tmp_path / "key.pem", key)
    both = tmp_path / "both.pem"
    both.write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    with both.open("ab") as file:
        file.write((tmp_path / "key.pem").read_bytes())
    assert load_quic_secrets(Http3Config(), TlsConfig(certfile=(str(both),))) == (
        load_quic_secrets(Http3Config(), tls(alone))
    )


def test_a_secret_file_comes_first_and_an_editors_newline_does_not_matter(tmp_path):
    path = tmp_path / "secret"
    path.write_text("a secret of several hosts")
    path.chmod(0o600)
    http3 = Http3Config(quic_secret_file=str(path))
    first = load_quic_secrets(http3, tls("missing.pem"))
    path.write_text("a secret of several hosts\n")
    assert load_quic_secrets(http3, TlsConfig()) == first


def test_the_server_id_can_be_given(tmp_path):
    path = tmp_path / "secret"
    path.write_text("a secret of several hosts")
    http3 = Http3Config(quic_secret_file=str(path), quic_server_id=7)
    assert load_quic_secrets(http3, TlsConfig()).server_id == 7


def test_without_key_and_file_it_is_random():
    assert load_quic_secrets(Http3Config(), TlsConfig()) != (
        load_quic_secrets(Http3Config(), TlsConfig())
    )


def test_a_secret_that_others_can_read_is_said(tmp_path, caplog):
    path = tmp_path / "secret"
    path.write_text("a secret of several hosts")
    path.chmod(0o644)
    load_quic_secrets(Http3Config(quic_secret_file=str(path)), TlsConfig())
    assert f"chmod 600 {path}" in caplog.text


def test_a_secret_file_that_is_missing_or_short_is_one_line(tmp_path):
    http3 = Http3Config(quic_secret_file=str(tmp_path / "missing"))
    with pytest.raises(StartError, match="check --quic-secret-file and who may read it"):
        load_quic_secrets(http3, TlsConfig())
    path = tmp_path / "short"
    path.write_text("short\n")
    with pytest.raises(ConfigError, match="at least 16 bytes"):
        load_quic_secrets(Http3Config(quic_secret_file=str(path)), TlsConfig())


def test_a_key_that_cannot_be_read_is_one_line(tmp_path):
    with pytest.raises(StartError, match=r"missing\.pem: No such file or directory"):
        load_quic_secrets(Http3Config(), tls(str(tmp_path / "missing.pem")))
