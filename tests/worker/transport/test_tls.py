"""Contexts for TLS on TCP, and what the `tls` extension tells of a connection."""

import asyncio
import datetime as dt
import re
import ssl

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from asgiri.config import HttpConfig, TlsConfig
from asgiri.worker.transport.tls import ServerTls, TlsError, alpn_protocols

AUTHORITY = trustme.CA()
DAY = dt.timedelta(days=1)


def issue(folder, *names, stem="server"):
    leaf = AUTHORITY.issue_cert(*names)
    paths = str(folder / f"{stem}.pem"), str(folder / f"{stem}.key")
    leaf.private_key_pem.write_to_path(paths[1])
    leaf.cert_chain_pems[0].write_to_path(paths[0])
    return paths


def make(certfile, keyfile, *, http=None, **options):
    return ServerTls(
        TlsConfig(certfile=(certfile,), keyfile=(keyfile,), **options), http or HttpConfig()
    )


def client_context(*, certificate=None, alpn=(), **settings):
    context = ssl.create_default_context()
    AUTHORITY.configure_trust(context)
    if certificate:
        context.load_cert_chain(*certificate)
    if alpn:
        context.set_alpn_protocols(list(alpn))
    for name, value in settings.items():
        setattr(context, name, value)
    return context


async def handshake(tls, context, name="localhost"):
    """The server's and the client's side of one connection."""
    done = asyncio.get_running_loop().create_future()

    def connected(reader, writer):
        done.set_result(writer)

    server = await asyncio.start_server(connected, "127.0.0.1", 0, ssl=tls.context)
    async with server:
        address = server.sockets[0].getsockname()
        _, client = await asyncio.open_connection(*address, ssl=context, server_hostname=name)
        try:
            writer = await asyncio.wait_for(done, 10)
            yield_ = writer.get_extra_info("ssl_object"), client.get_extra_info("ssl_object")
            return tls.extension(yield_[0]), yield_[1]
        finally:
            client.transport.abort()
            if done.done():
                done.result().transport.abort()


async def test_extension_tells_version_cipher_and_our_certificate(tmp_path):
    pair = issue(tmp_path, "localhost")
    extension, client = await handshake(make(*pair), client_context())
    assert extension["tls_version"] == 0x0304
    assert extension["cipher_suite"] in {0x1301, 0x1302, 0x1303}
    assert extension["server_cert"] == ssl.DER_cert_to_PEM_cert(client.getpeercert(True))
    assert extension["client_cert_chain"] == []
    assert extension["client_cert_name"] is None
    assert extension["client_cert_error"] is None


async def test_extension_tells_tls12(tmp_path):
    context = client_context(maximum_version=ssl.TLSVersion.TLSv1_2)
    extension, _ = await handshake(make(*issue(tmp_path, "localhost")), context)
    assert extension["tls_version"] == 0x0303
    assert 0xC000 <= extension["cipher_suite"] <= 0xCFFF


async def test_extension_tells_the_client_certificate(tmp_path):
    authority = tmp_path / "ca.pem"
    AUTHORITY.cert_pem.write_to_path(authority)
    tls = make(*issue(tmp_path, "localhost"), ca_certs=str(authority), cert_reqs="required")
    mine = issue(tmp_path, "someone@example.org", stem="client")
    extension, _ = await handshake(tls, client_context(certificate=mine))
    with open(mine[0]) as file:
        assert extension["client_cert_chain"][0].split() == file.read().split()
    assert "O=trustme" in extension["client_cert_name"]


async def test_required_client_certificate_is_required(tmp_path):
    authority = tmp_path / "ca.pem"
    AUTHORITY.cert_pem.write_to_path(authority)
    pair = issue(tmp_path, "localhost")
    tls = make(*pair, ca_certs=str(authority), cert_reqs="required", tls_min_version="1.2")
    context = client_context(maximum_version=ssl.TLSVersion.TLSv1_2)
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await handshake(tls, context)


async def test_oldest_version_can_be_raised(tmp_path):
    tls = make(*issue(tmp_path, "localhost"), tls_min_version="1.3")
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await handshake(tls, client_context(maximum_version=ssl.TLSVersion.TLSv1_2))


async def test_certificate_is_chosen_by_the_name_the_client_asks_for(tmp_path):
    pairs = [
        issue(tmp_path, "a.example", stem="a"),
        issue(tmp_path, "b.example", "a.example", stem="b"),
        issue(tmp_path, "*.c.example", stem="c"),
    ]
    config = TlsConfig(
        certfile=tuple(pair[0] for pair in pairs), keyfile=tuple(pair[1] for pair in pairs)
    )
    tls = ServerTls(config, HttpConfig())
    for name, expected in [
        ("a.example", "a.example"),
        ("B.example", "b.example"),
        ("www.c.example", "*.c.example"),
    ]:
        _, client = await handshake(tls, client_context(), name)
        names = [value for _, value in client.getpeercert()["subjectAltName"]]
        assert names[0] == expected
    unknown = client_context(check_hostname=False, verify_mode=ssl.CERT_NONE)
    for name in ("unknown.example", ""):
        extension, client = await handshake(tls, unknown, name)
        with open(pairs[0][0]) as file:
            assert extension["server_cert"].split() == file.read().split()


@pytest.mark.parametrize(
    ("http", "protocols"),
    [
        (HttpConfig(), ["h2", "http/1.1", "http/1.0"]),
        (HttpConfig(http2=False), ["http/1.1", "http/1.0"]),
        (HttpConfig(http1=False), ["h2"]),
        (HttpConfig(http1=False, http2=False, http3=True), []),
    ],
)
async def test_alpn_offers_the_versions_that_are_on_best_first(tmp_path, http, protocols):
    assert alpn_protocols(http) == protocols
    tls = make(*issue(tmp_path, "localhost"), http=http)
    _, client = await handshake(tls, client_context(alpn=["http/1.1", "h2"]))
    assert client.selected_alpn_protocol() == (protocols[0] if protocols else None)


def weak_pair(folder):
    """Read by OpenSSL and refused for its short key."""
    key = rsa.generate_private_key(65537, 1024)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = dt.datetime.now(dt.UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + DAY)
    paths = folder / "weak.pem", folder / "weak.key"
    paths[0].write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM))
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    paths[1].write_bytes(secret)
    return str(paths[0]), str(paths[1])


def refusal(*pair, **options):
    with pytest.raises(TlsError) as caught:
        make(*pair, **options)
    assert "\n" not in str(caught.value)
    assert "_ssl.c" not in str(caught.value)
    return str(caught.value)


def test_what_openssl_does_not_take_is_told_in_one_line_with_the_remedy(tmp_path):
    pair = issue(tmp_path, "localhost")
    other = issue(tmp_path, "localhost", stem="other")
    missing = str(tmp_path / "missing.pem")
    assert re.search(r"server\.pem: .*match.*; check --certfile", refusal(pair[0], other[1]))
    assert re.search("missing.pem: No such file", refusal(missing, pair[1]))
    assert re.search(r"weak\.pem: .*key too small; check", refusal(*weak_pair(tmp_path)))
    told = refusal(*pair, ciphers="NONE")
    assert told.startswith("--ciphers NONE: No cipher can be selected; list")
    told = refusal(*pair, cert_reqs="required", ca_certs=missing)
    assert told.startswith(f"--ca-certs {missing}: No such file or directory; name a file")
    told = refusal(*pair, cert_reqs="required", ca_certs=pair[1])
    assert told.startswith(f"--ca-certs {pair[1]}: no certificate or crl found; name a file")


def test_ciphers_can_be_chosen(tmp_path):
    tls = make(*issue(tmp_path, "localhost"), ciphers="ECDHE-ECDSA-AES128-GCM-SHA256")
    tls12 = {c["name"] for c in tls.context.get_ciphers() if c["protocol"] == "TLSv1.2"}
    assert tls12 == {"ECDHE-ECDSA-AES128-GCM-SHA256"}
