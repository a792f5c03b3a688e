"""Certificates made on the spot, and those that an operator names."""

import hashlib
import os
import ssl
import stat
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from asgiri import certificates
from asgiri.certificates import cache_directory, check_pair, provide_certificates, self_signed
from asgiri.config import Config
from asgiri.errors import StartError

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
PEM = serialization.Encoding.PEM


def load(pair):
    return x509.load_pem_x509_certificate(Path(pair.certfile).read_bytes())


def names_of(certificate):
    extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    return {str(name.value) for name in extension.value}


def mode_of(path):
    return stat.S_IMODE(Path(path).stat().st_mode)


# Made on the spot


def test_it_names_the_machine_itself_and_the_bound_addresses(tmp_path):
    pair = self_signed(["192.0.2.1", "Example.ORG", "2001:db8::0:1", "fe80::1%eth0"], tmp_path)
    expected = {
        "localhost",
        "127.0.0.1",
        "::1",
        "192.0.2.1",
        "example.org",
        "2001:db8::1",
        "fe80::1",
    }
    assert names_of(load(pair)) == expected


@pytest.mark.parametrize("wildcard", ["", "0.0.0.0", "::"])
def test_for_every_address_it_names_the_host(tmp_path, wildcard):
    host = os.uname().nodename.lower()
    assert host in names_of(load(self_signed([wildcard], tmp_path)))


def test_it_is_short_lived_and_for_servers_only_as_browsers_want_it(tmp_path):
    certificate = load(self_signed([], tmp_path, now=NOW))
    lifetime = certificate.not_valid_after_utc - certificate.not_valid_before_utc
    assert lifetime <= timedelta(days=13)
    assert certificate.not_valid_before_utc < NOW < certificate.not_valid_after_utc
    assert isinstance(certificate.public_key().curve, ec.SECP256R1)
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_its_fingerprint_is_the_hash_of_the_certificate(tmp_path):
    pair = self_signed([], tmp_path)
    der = ssl.PEM_cert_to_DER_cert(Path(pair.certfile).read_text())
    assert pair.fingerprint.replace(":", "").lower() == hashlib.sha256(der).hexdigest()


def test_openssl_takes_it_and_clients_that_trust_it_verify_its_names(tmp_path):
    pair = self_signed([], tmp_path)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(pair.certfile, pair.keyfile)
    client = ssl.create_default_context(cafile=pair.certfile)
    for name in ("localhost", "127.0.0.1", "::1"):
        handshake(server, client, name)


def handshake(server, client, name):
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(to_client, to_server, server_hostname=name),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    while ends:
        for end in list(ends):
            try:
                end.do_handshake()
                ends.remove(end)
            except ssl.SSLWantReadError:
                pass


def test_files_are_the_users_alone(tmp_path):
    folder = tmp_path / "cache"
    pair = self_signed([], folder)
    assert mode_of(folder) == 0o700
    assert mode_of(Path(pair.keyfile).parent) == 0o700
    assert mode_of(pair.keyfile) == mode_of(pair.certfile) == 0o600


def test_a_folder_that_others_may_enter_is_closed_to_them(tmp_path):
    tmp_path.chmod(0o755)
    self_signed([], tmp_path)
    assert mode_of(tmp_path) == 0o700


def test_it_is_kept_while_it_is_good(tmp_path):
    first = self_signed(["192.0.2.1"], tmp_path, now=NOW)
    assert self_signed(["192.0.2.1"], tmp_path, now=NOW + timedelta(days=9)) == first


def test_it_is_renewed_days_before_it_expires(tmp_path):
    first = self_signed([], tmp_path, now=NOW)
    second = self_signed([], tmp_path, now=NOW + timedelta(days=11))
    assert second != first
    assert load(second).not_valid_after_utc > NOW + timedelta(days=20)
    # A server that still runs may start workers that read it.
    assert Path(first.keyfile).exists()
    assert self_signed([], tmp_path, now=NOW + timedelta(days=12)) == second


def test_other_names_get_another_one(tmp_path):
    assert self_signed(["192.0.2.1"], tmp_path) != self_signed(["192.0.2.2"], tmp_path)
    assert self_signed(["192.0.2.1"], tmp_path) == self_signed(["192.0.2.1", "::1"], tmp_path)


def test_what_expired_long_ago_is_removed(tmp_path):
    first = self_signed([], tmp_path, now=NOW)
    self_signed(["192.0.2.1"], tmp_path, now=NOW + timedelta(days=50))
    assert not Path(first.certfile).parent.exists()


@pytest.mark.parametrize("victim", ["certfile", "keyfile"])
@pytest.mark.parametrize("damage", ["emptied", "removed"])
def test_a_damaged_pair_is_replaced(tmp_path, victim, damage):
    first = self_signed([], tmp_path)
    path = Path(getattr(first, victim))
    path.write_text("") if damage == "emptied" else path.unlink()
    second = self_signed([], tmp_path)
    assert second.fingerprint != first.fingerprint
    assert check_pair(second.certfile, second.keyfile, "") == []


def test_what_a_killed_server_left_half_written_is_removed(tmp_path):
    draft = tmp_path / "draft-abc"
    draft.mkdir()
    (draft / "key.pem").write_text("half")
    self_signed([], tmp_path)
    assert not draft.exists()


WHEN_TOLD = """
import sys
from pathlib import Path
from asgiri.certificates import self_signed
print("here", flush=True)
sys.stdin.read()
print(self_signed(["192.0.2.9"], Path(sys.argv[1])).fingerprint)
"""


@pytest.mark.slow
def test_servers_that_start_at_once_share_one(tmp_path):
    command = [sys.executable, "-c", WHEN_TOLD, str(tmp_path)]
    servers = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    assert [server.stdout.readline() for server in servers] == ["here\n"] * 4
    for server in servers:
        server.stdin.close()
    fingerprints = set()
    for server in servers:
        with server:
            fingerprints.add(server.stdout.read())
        assert server.returncode == 0
    assert len(fingerprints) == 1


def test_a_folder_that_cannot_be_made_is_one_line_with_the_remedy(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StartError, match=r"cannot keep .*file/asgiri: .*; set XDG_CACHE_HOME"):
        self_signed([], tmp_path / "file" / "asgiri")


def test_a_host_that_no_certificate_can_name_is_one_line_with_the_remedy(tmp_path):
    with pytest.raises(StartError, match="give --certfile and --keyfile"):
        self_signed(["x" * 64 + "." + "é"], tmp_path)


@pytest.mark.parametrize(
    ("value", "folder"), [("/srv/cache", "/srv/cache/asgiri"), ("relative", None), (None, None)]
)
def test_the_cache_folder_follows_the_xdg_specification(monkeypatch, value, folder):
    if value is None:
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    else:
        monkeypatch.setenv("XDG_CACHE_HOME", value)
    monkeypatch.setenv("HOME", "/home/someone")
    assert cache_directory() == Path(folder or "/home/someone/.cache/asgiri")


# Named by the operator


class Issuer:
    """Writes PEM files below a folder."""

    def __init__(self, folder):
        self.folder = folder

    def write(self, name, content):
        path = self.folder / name
        path.write_bytes(content)
        return str(path)

    def key(self, name, key, password=None):
        encryption = (
            serialization.BestAvailableEncryption(password.encode())
            if password
            else serialization.NoEncryption()
        )
        return self.write(name, self.key_pem(key, encryption))

    def key_pem(self, key, encryption, form=serialization.PrivateFormat.PKCS8):
        return key.private_bytes(PEM, form, encryption)

    def certificate(self, name, *keys, begin=-1, days=30):
        """A chain of self-signed certificates, one for each key."""
        return self.write(name, b"".join(self.certificate_pem(key, begin, days) for key in keys))

    def certificate_pem(self, key, begin=-1, days=30):
        now = datetime.now(UTC)
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "example.org")])
        algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + timedelta(days=begin))
            .not_valid_after(now + timedelta(days=begin + days))
            .sign(key, algorithm)
            .public_bytes(PEM)
        )


@pytest.fixture
def issuer(tmp_path):
    return Issuer(tmp_path)


@pytest.fixture(scope="session")
def keys():
    return [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)]


@pytest.mark.parametrize("kind", ["ec", "rsa", "ed25519"])
def test_every_kind_of_key_that_tls_uses_is_accepted(issuer, keys, kind):
    key = {
        "ec": lambda: keys[0],
        "rsa": lambda: rsa.generate_private_key(65537, 2048),
        "ed25519": ed25519.Ed25519PrivateKey.generate,
    }[kind]()
    assert check_pair(issuer.certificate("c.pem", key), issuer.key("k.pem", key), "") == []


def test_the_key_may_stand_in_the_certificates_file(issuer, keys):
    pem = issuer.key_pem(keys[0], serialization.NoEncryption())
    both = issuer.write("both.pem", pem + issuer.certificate_pem(keys[0]))
    assert check_pair(both, "", "") == []
    assert check_pair(both, both, "") == []


@pytest.mark.parametrize("form", [serialization.PrivateFormat.TraditionalOpenSSL])
def test_an_old_form_of_key_is_accepted_also_encrypted(issuer, keys, form):
    certfile = issuer.certificate("c.pem", keys[0])
    for password, encryption in [
        ("", serialization.NoEncryption()),
        ("secret", serialization.BestAvailableEncryption(b"secret")),
    ]:
        keyfile = issuer.write("old.pem", issuer.key_pem(keys[0], encryption, form))
        assert check_pair(certfile, keyfile, password) == []


def test_an_encrypted_key_opens_by_its_password(issuer, keys):
    certfile = issuer.certificate("c.pem", keys[0])
    assert check_pair(certfile, issuer.key("k.pem", keys[0], "secret"), "secret") == []


def test_a_password_for_a_key_that_needs_none_is_no_mistake(issuer, keys):
    certfile = issuer.certificate("c.pem", keys[0])
    assert check_pair(certfile, issuer.key("k.pem", keys[0]), "secret") == []


def refusal(certfile, keyfile, password=""):
    with pytest.raises(StartError) as caught:
        check_pair(certfile, keyfile, password)
    (line,) = str(caught.value).splitlines()
    return line


def test_a_missing_file_is_named(issuer, keys):
    certfile = issuer.certificate("c.pem", keys[0])
    assert refusal("/missing.pem", "").startswith("/missing.pem: No such file or directory; ")
    assert "--keyfile" in refusal(certfile, "/missing.pem")


def test_a_file_that_may_not_be_read_is_named(issuer, keys, tmp_path):
    assert refusal(str(tmp_path), "").startswith(f"{tmp_path}: Is a directory; check --certfile")
    if os.geteuid() != 0:  # nothing is forbidden to root
        certfile = issuer.certificate("c.pem", keys[0])
        Path(certfile).chmod(0)
        assert "Permission denied" in refusal(certfile, "")


def test_a_file_that_holds_something_else_is_named(issuer, keys):
    certfile = issuer.certificate("c.pem", keys[0])
    assert "no certificate in PEM form" in refusal(issuer.write("text", b"hello"), "")
    assert "no private key in PEM form" in refusal(certfile, issuer.write("text", b"hello"))
    assert "name it by --keyfile" in refusal(certfile, "")


def test_a_certificate_in_der_form_is_answered_with_the_conversion(issuer, keys):
    der = ssl.PEM_cert_to_DER_cert(issuer.certificate_pem(keys[0]).decode())
    assert "openssl x509 -inform der" in refusal(issuer.write("c.der", der), "")


def test_a_damaged_key_is_named(issuer, keys):
    certfile = issuer.certificate("c.pem", keys[0])
    broken = issuer.write("k", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")
    assert "the private key is damaged" in refusal(certfile, broken)


def test_a_key_of_another_certificate_is_told(issuer, keys):
    certfile = issuer.certificate("c.pem", keys[0])
    keyfile = issuer.key("k.pem", keys[1])
    assert refusal(certfile, keyfile).startswith(f"{keyfile}: is not the private key of {certfile}")


def test_a_chain_in_the_wrong_order_is_told(issuer, keys):
    certfile = issuer.certificate("c.pem", keys[1], keys[0])
    assert "which is number 2; put it first" in refusal(certfile, issuer.key("k.pem", keys[0]))


def test_an_encrypted_key_without_its_password_names_the_variable(issuer, keys):
    certfile = issuer.certificate("c.pem", keys[0])
    keyfile = issuer.key("k.pem", keys[0], "secret")
    assert "ASGIRI_KEYFILE_PASSWORD" in refusal(certfile, keyfile)


def test_a_wrong_password_is_told_and_not_shown(issuer, keys):
    certfile = issuer.certificate("c.pem", keys[0])
    line = refusal(certfile, issuer.key("k.pem", keys[0], "secret"), "guess")
    assert "the password does not open it" in line
    assert "guess" not in line


@pytest.mark.parametrize(
    ("begin", "days", "warning"),
    [(-30, 20, "expired on"), (5, 20, "is valid only from"), (-1, 20, None)],
)
def test_dates_are_warned_of_but_do_not_stop_the_start(issuer, keys, begin, days, warning):
    certfile = issuer.certificate("c.pem", keys[0], begin=begin, days=days)
    warnings = check_pair(certfile, issuer.key("k.pem", keys[0]), "")
    assert [warning in line for line in warnings] == ([True] if warning else [])


# For a configuration


def build(**sections):
    return Config.from_values({"app": {"target": "main:app"}, **sections})


def test_http3_without_a_certificate_gets_one_and_says_so(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    config = provide_certificates(build(http={"http3": True}, listen={"bind": ("192.0.2.1:443",)}))
    (certfile,), (keyfile,) = config.tls.certfile, config.tls.keyfile
    assert check_pair(certfile, keyfile, "") == []
    (message,) = caplog.messages
    assert certfile in message
    assert "SHA-256" in message
    assert Config.from_json(config.to_json()) == config


def test_without_tls_nothing_is_made(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    config = build()
    assert provide_certificates(config) is config
    assert list(tmp_path.iterdir()) == []


def test_named_certificates_are_checked_and_warned_of(issuer, keys, caplog):
    certfile = issuer.certificate("c.pem", keys[0], begin=-30, days=20)
    keyfile = issuer.key("k.pem", keys[0])
    tls = {"certfile": (certfile,), "keyfile": (keyfile,)}
    provide_certificates(build(tls=tls))
    assert ["expired on" in message for message in caplog.messages] == [True]
    with pytest.raises(StartError):
        provide_certificates(build(tls={"certfile": (certfile,)}))


def test_a_certificate_is_valid_by_now_when_nobody_says_what_time_it_is(tmp_path):
    certificate = load(self_signed([], tmp_path))
    assert certificate.not_valid_before_utc < datetime.now(UTC) - certificates.CLOCK_SKEW / 2
