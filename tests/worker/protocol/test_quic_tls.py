"""Client certificates over QUIC: who is let in, and which alert tells the others why."""

import datetime as dt
import ssl

import pytest
import trustme
from aioquic.tls import AlertDescription
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import given
from hypothesis import strategies as st

from asgiri.config import TlsConfig
from asgiri.ipc.scoreboard import Refusal
from asgiri.worker.protocol.events import PeerViolation
from asgiri.worker.protocol.quic_tls import ClientAuthorities
from asgiri.worker.protocol.server_names import ServerNames
from tests.support.certificates import certificates
from tests.support.quic_pair import GET, Pair, make_server

AUTHORITY = trustme.CA()
INTERMEDIATE = AUTHORITY.create_child_ca()
NOW = dt.datetime.now(dt.UTC)
DAY = dt.timedelta(days=1)
USAGES = ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment")
USAGES += ("key_agreement", "key_cert_sign", "crl_sign", "encipher_only", "decipher_only")


def issue(authority=AUTHORITY, *, begin=-DAY, end=DAY, extensions=()):
    """Certificate, its issuers and key, as QuicConfiguration takes them."""
    key = ec.generate_private_key(ec.SECP256R1())
    issuer = x509.load_pem_x509_certificate(authority.cert_pem.bytes())
    names = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Example, Inc.")]
    names.append(x509.NameAttribute(NameOID.COMMON_NAME, "client"))
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name(names))
        .issuer_name(issuer.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW + begin)
        .not_valid_after(NOW + end)
    )
    for extension in extensions:
        builder = builder.add_extension(extension, critical=True)
    certificate = builder.sign(authority._private_key, SHA256())
    chain = [issuer] if authority is INTERMEDIATE else []
    return {"certificate": certificate, "certificate_chain": chain, "private_key": key}


def for_purposes(*purposes):
    return issue(extensions=[x509.ExtendedKeyUsage(purposes)])


def for_usage(usage):
    return issue(extensions=[x509.KeyUsage(**{name: name == usage for name in USAGES})])


@pytest.fixture(scope="module")
def ca_certs(tmp_path_factory):
    path = tmp_path_factory.mktemp("authority") / "ca.pem"
    AUTHORITY.cert_pem.write_to_path(path)
    return str(path)


def shake_hands(ca_certs, client, *, cert_reqs="required"):
    pair = Pair(tls={"ca_certs": ca_certs, "cert_reqs": cert_reqs}, client=client, connect=False)
    pair.client.connect(("192.0.2.1", 443), now=pair.now)
    pair.run()
    return pair


@pytest.mark.parametrize(
    "client",
    [
        issue(),
        issue(INTERMEDIATE),
        for_purposes(ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH),
        for_purposes(ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE),
        for_usage("digital_signature"),
    ],
    ids=["plain", "with its issuer", "for clients", "for all", "to sign"],
)
def test_client_of_the_authority_is_let_in_and_told_of(ca_certs, client):
    pair = shake_hands(ca_certs, client)
    assert pair.engine.handshake_complete
    assert pair.closed is None
    extension = pair.engine.tls_extension()
    shown = [client["certificate"], *client["certificate_chain"]]
    expected = [certificate.public_bytes(Encoding.PEM).decode() for certificate in shown]
    assert extension["client_cert_chain"] == expected
    assert extension["client_cert_name"] == "CN=client,O=Example\\, Inc."
    assert extension["client_cert_error"] is None
    assert extension["server_cert"] == certificates().certfile.read_text()
    pair.request()
    pair.run()
    assert [event.headers for event in pair.take_events()] == [[(b"host", b"a.test")]]


@pytest.mark.parametrize(
    ("client", "alert"),
    [
        ({}, AlertDescription.certificate_required),
        (issue(trustme.CA()), AlertDescription.unknown_ca),
        (issue(end=-DAY / 2), AlertDescription.certificate_expired),
        (issue(begin=DAY / 2), AlertDescription.bad_certificate),
        (
            for_purposes(ExtendedKeyUsageOID.SERVER_AUTH),
            AlertDescription.unsupported_certificate,
        ),
        (for_usage("key_cert_sign"), AlertDescription.unsupported_certificate),
        ({**issue(INTERMEDIATE), "certificate_chain": []}, AlertDescription.unknown_ca),
        ({**issue(), "private_key": issue()["private_key"]}, AlertDescription.decrypt_error),
    ],
    ids=["none", "stranger", "late", "early", "server's", "authority's", "no issuer", "no key"],
)
@pytest.mark.parametrize("cert_reqs", ["required", "optional"])
def test_others_are_told_why_they_are_not(ca_certs, client, alert, cert_reqs):
    pair = shake_hands(ca_certs, client, cert_reqs=cert_reqs)
    if not client and cert_reqs == "optional":
        assert pair.engine.handshake_complete
        assert pair.engine.tls_extension()["client_cert_chain"] == []
        assert pair.engine.tls_extension()["client_cert_name"] is None
        return
    assert not pair.engine.handshake_complete
    assert pair.closed.error_code == 0x100 + alert
    violation, _ = pair.take_events()
    assert isinstance(violation, PeerViolation)
    assert violation.reason is Refusal.QUIC_HANDSHAKE_FAILED


def test_requests_of_a_client_that_is_not_let_in_are_not_heard(ca_certs):
    pair = Pair(tls={"ca_certs": ca_certs, "cert_reqs": "required"}, connect=False)
    pair.client.connect(("192.0.2.1", 443), now=pair.now)
    while not pair.handshake_complete:
        pair.step()
    pair.request(GET)
    pair.run()
    assert [type(event).__name__ for event in pair.take_events()] == [
        "PeerViolation",
        "ConnectionEnded",
    ]


def test_certificate_whose_extensions_cannot_be_parsed_is_refused(ca_certs):
    strange = x509.UnrecognizedExtension(x509.ExtensionOID.KEY_USAGE, b"\xff")
    pair = shake_hands(ca_certs, issue(extensions=[strange]))
    assert pair.closed.error_code == 0x100 + AlertDescription.bad_certificate


@pytest.mark.parametrize("content", [None, b"", b"no certificate"])
def test_file_without_certificates_is_refused(tmp_path, content):
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises((OSError, ValueError)):
        ClientAuthorities(str(path), required=True)


# Several certificates of ours


@pytest.fixture(scope="module")
def named(tmp_path_factory):
    """Options with three certificates, of different kinds of keys, and the certificates in PEM."""
    folder = tmp_path_factory.mktemp("named")
    files, shown = [], []
    for number, (names, kind) in enumerate(
        [
            (("a.example",), trustme.KeyType.ECDSA),
            (("b.example", "A.example"), trustme.KeyType.RSA),
            (("*.c.example",), trustme.KeyType.ECDSA),
        ]
    ):
        leaf = AUTHORITY.issue_cert(*names, key_type=kind)
        files.append((folder / f"{number}.pem", folder / f"{number}.key"))
        leaf.cert_chain_pems[0].write_to_path(files[-1][0])
        leaf.private_key_pem.write_to_path(files[-1][1])
        shown.append(leaf.cert_chain_pems[0].bytes().decode())
    options = {
        "certfile": tuple(str(certfile) for certfile, _ in files),
        "keyfile": tuple(str(keyfile) for _, keyfile in files),
    }
    return options, shown


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("a.example", 0),
        ("B.Example", 1),
        ("www.c.example", 2),
        ("c.example", 0),
        ("x.www.c.example", 0),
        ("unknown.example", 0),
        (None, 0),
    ],
)
@pytest.mark.parametrize("asking", [False, True])
def test_a_certificate_is_chosen_by_the_name_that_is_asked_for(
    named, ca_certs, name, number, asking
):
    options, shown = named
    if asking:
        options = {**options, "ca_certs": ca_certs, "cert_reqs": "required"}
    # The client does not trust it, but checks that the server has its key.
    client = {"server_name": name, "verify_mode": ssl.CERT_NONE, **(issue() if asking else {})}
    pair = shake_hands_with(options, client)
    assert pair.engine.handshake_complete, pair.closed
    extension = pair.engine.tls_extension()
    assert extension["server_cert"] == shown[number]
    assert bool(extension["client_cert_chain"]) == asking
    seen = pair.client.tls._peer_certificate
    assert seen.public_bytes(Encoding.PEM).decode() == shown[number]


def shake_hands_with(options, client):
    pair = Pair(tls=options, client=client, connect=False)
    pair.client.connect(("192.0.2.1", 443), now=pair.now)
    pair.run()
    return pair


def test_certificates_are_exchanged_together(named):
    options, shown = named
    server = make_server()
    server.load_certificate(TlsConfig(**options))
    assert names_shown(server, "b.example") == shown[1]
    server.load_certificate(TlsConfig(**{key: value[::-1] for key, value in options.items()}))
    assert names_shown(server, "b.example") == shown[1]
    assert names_shown(server, "unknown.example") == shown[2]


def names_shown(server, name):
    pair = Pair(
        client={"server_name": name, "verify_mode": ssl.CERT_NONE},
        engine_of=lambda client: server.accept(client.original_destination_connection_id),
    )
    return pair.engine.tls_extension()["server_cert"]


NAMELESS = ServerNames([(issue()["certificate"], "mine")])


@given(st.text(max_size=40))
def test_no_name_that_a_client_makes_up_raises(name):
    assert NAMELESS.find_untrusted(name) is None
