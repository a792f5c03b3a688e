"""curl over each version, 100 MiB each way."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator

import pytest

from tests.support.apps import pattern
from tests.support.server import Server, ServerOptions
from tests.support.tools import require, run

pytestmark = pytest.mark.slow

SIZE = 100 << 20
PART = 1 << 20
VERSIONS = {"1.1": "--http1.1", "2": "--http2", "3": "--http3-only"}


@pytest.fixture(params=VERSIONS)
def version(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def curl(version: str) -> list[str]:
    if version == "3":
        command = require("CURL_HTTP3", "curl", shows="HTTP3")
    else:
        command = require("CURL", "curl", shows="HTTP2")
    # A curl in a chroot does not see our certificate authority; trust is not what is tested here.
    return [*command, "--silent", "--show-error", "--insecure", VERSIONS[version]]


async def test_hello(server: Server, curl: list[str], version: str):
    written = "\n%{http_code} %{http_version}"
    output = await run([*curl, "--write-out", written, f"{server.url}/hello"])
    assert output.decode() == f"Hello, world!\n200 {version}"


async def test_several_requests_on_a_connection(server: Server, curl: list[str]):
    output = await run([*curl, *[f"{server.url}/pid"] * 5, "--write-out", " %{num_connects}\n"])
    lines = [line.split() for line in output.decode().splitlines()]
    assert len({pid for pid, _ in lines}) == 1
    assert [connects for _, connects in lines] == ["1", "0", "0", "0", "0"]


async def test_head(server: Server, curl: list[str]):
    output = (await run([*curl, "--head", f"{server.url}/hello"])).decode().lower()
    assert "content-length: 13" in output


async def test_alt_svc_leads_to_http_3(server: Server, curl: list[str]):
    output = (await run([*curl, "--head", f"{server.url}/hello"])).decode().lower()
    assert f'h3=":{server.port}"' in output


async def test_a_download_of_100_mib(server: Server, curl: list[str]):
    output = await run([*curl, f"{server.url}/bytes?size={SIZE}&part={PART}"])
    expected = hashlib.sha256(pattern(PART) * (SIZE // PART))
    assert hashlib.sha256(output).hexdigest() == expected.hexdigest()


async def test_an_upload_of_100_mib(server: Server, curl: list[str]):
    content = pattern(PART) * (SIZE // PART)
    output = await run([*curl, "--upload-file", "-", f"{server.url}/hash"], standard_input=content)
    told = json.loads(output)
    assert (told["size"], told["sha256"]) == (SIZE, hashlib.sha256(content).hexdigest())


@pytest.fixture(scope="module")
def plain() -> Iterator[Server]:
    server = Server.start(ServerOptions(workers=2))
    yield server
    server.stop()


@pytest.mark.parametrize(
    ("option", "version"),
    [
        ("--http1.0", "1.1"),  # the version of the answer (RFC 9110 §6.2)
        ("--http1.1", "1.1"),
        ("--http2", "2"),  # by an upgrade
        ("--http2-prior-knowledge", "2"),
    ],
)
async def test_one_cleartext_port_speaks_every_version(plain: Server, option: str, version: str):
    curl = [*require("CURL", "curl", shows="HTTP2"), "--silent", "--show-error", option]
    content = pattern(100_000)
    told = "\n%{http_code} %{http_version}"
    output = await run([*curl, "--write-out", told, f"{plain.url}/hello"])
    assert output.decode() == f"Hello, world!\n200 {version}"
    upload = [*curl, "--data-binary", "@-", f"{plain.url}/echo"]
    assert await run(upload, standard_input=content) == content
    # An upgraded connection goes on; one of prior knowledge curl 7.88 cannot use again.
    count = 1 if option == "--http2-prior-knowledge" else 3
    output = await run([*curl, *[f"{plain.url}/scope"] * count])
    spoken = {"--http1.0": "1.0", "--http1.1": "1.1"}.get(option, "2")
    assert output.decode().count(f'"http_version": "{spoken}"') == count


async def test_early_hints_come_before_the_page(server: Server, curl: list[str], version: str):
    output = (await run([*curl, "--include", f"{server.url}/early-hint"])).decode().lower()
    status, name = output.split()[1], "/1.1" if version == "1.1" else f"/{version}"
    assert (output[4:].split()[0], status) == (name, "103")
    assert "link: </style.css>; rel=preload; as=style" in output
    assert output.endswith("hinted")
