"""Options as declared: that each is sound, documented, unique, and obeyed by some code."""

import ast
import dataclasses
import math
import os
import re
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

import asgiri
from asgiri.config import (
    SECTIONS,
    AppConfig,
    BindAddress,
    Config,
    ListenShorthand,
    SourceOptions,
    all_options,
    cgroup_cpu_quota,
    parse_bind,
    resolve_workers,
)
from asgiri.errors import ConfigError

PACKAGE = Path(asgiri.__file__).parent
OPTIONS = list(all_options())


def build(**sections):
    return Config.from_values({"app": {"target": "main:app"}, **sections})


# Declarations


@pytest.mark.parametrize("declared", OPTIONS, ids=lambda declared: declared.name)
def test_every_option_says_what_it_does_in_one_sentence(declared):
    assert re.fullmatch(r"[A-Z].*\.", declared.help)


def test_no_flag_alias_or_variable_names_two_options():
    names = [
        name
        for declared in OPTIONS
        for name in (*declared.flags, *declared.aliases, *declared.environment)
    ]
    assert len(names) == len(set(names))


def test_every_default_is_valid():
    build()
    ListenShorthand()


def attributes_read():
    """Pairs (base, attribute) of every `base.attribute` in the package but for its front."""
    for path in PACKAGE.rglob("*.py"):
        if path.name == "options.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case (
                    ast.Attribute(value=ast.Name(id=base), attr=attribute)
                    | ast.Attribute(value=ast.Attribute(attr=base), attr=attribute)
                ):
                    yield base.strip("_"), attribute


def test_an_option_is_offered_when_and_only_when_some_code_obeys_it():
    read = set(attributes_read())
    wrong = []
    for declared in OPTIONS:
        if declared.owner in {ListenShorthand, SourceOptions}:
            continue
        bases = {declared.section, "config", "policy"}
        obeyed = any((base, declared.field) in read for base in bases)
        if obeyed == declared.pending:
            wrong.append(f"{declared.name} is {'' if obeyed else 'not '}obeyed")
    assert wrong == []


# The whole


def test_a_configuration_survives_json_exactly():
    config = build(
        listen={"bind": ("127.0.0.1:0", "unix:/run/a.sock")},
        http={"headers": ("x-a:b",), "h2c_upgrade": False},
        http3={"quic_server_id": 7},
    )
    assert Config.from_json(orjson.loads(orjson.dumps(config.to_json()))) == config


@given(st.floats(0.1, 1e6), st.integers(0, 10**9), st.booleans(), st.text(max_size=20))
def test_values_of_every_type_survive_json(seconds, size, flag, text):
    config = build(
        http1={"header_timeout": seconds},
        workers={"max_worker_rss": size},
        http={"http3": flag},
        app={"target": "main:app", "root_path": text},
    )
    assert Config.from_json(orjson.loads(orjson.dumps(config.to_json()))) == config


def test_json_with_an_unknown_option_is_refused():
    document = build().to_json()
    document["ring"]["colour"] = 1
    document["sound"] = {"volume": 11}
    with pytest.raises(ConfigError) as caught:
        Config.from_json(document)
    assert [problem.option for problem in caught.value.problems()] == [
        "ring.colour",
        "sound.volume",
    ]


def test_problems_of_all_sections_are_reported_together():
    with pytest.raises(ConfigError) as caught:
        build(ring={"size": 3 << 17}, workers={"count": 0}, http={"headers": ("broken",)})
    options = {problem.option for problem in caught.value.problems()}
    assert options == {"ring.size", "workers.count", "http.headers"}


def test_the_password_of_a_key_is_not_in_the_representation():
    config = build(tls={"certfile": ("a.pem",), "keyfile_password": "hunter2"})
    assert "hunter2" not in repr(config)


@pytest.mark.parametrize("section", SECTIONS.values(), ids=lambda section: section.SECTION)
def test_a_section_cannot_be_changed(section):
    instance = AppConfig(target="main:app") if section is AppConfig else section()
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(instance, dataclasses.fields(instance)[0].name, None)


@pytest.mark.parametrize(
    ("sections", "option", "remedy"),
    [
        ({"ring": {"size": 3 << 17}}, "ring.size", "must be a power of two"),
        (
            {"flow": {"low_water": 65536}},
            "flow.low_water",
            "must be smaller than --flow-high-water",
        ),
        ({"tls": {"keyfile": ("k",)}}, "tls.keyfile", "needs --certfile"),
        (
            {"tls": {"certfile": ("a", "b"), "keyfile": ("k",)}},
            "tls.keyfile",
            "must be given once for each of the 2 certificates",
        ),
        (
            {"tls": {"certfile": ("a",), "self_signed": True}},
            "tls.self_signed",
            "cannot go with --certfile",
        ),
        ({"tls": {"cert_reqs": "required"}}, "tls.cert_reqs", "needs --ca-certs"),
        ({"http": {"http1": False, "http2": False}}, "http.http1", "leaves no version of HTTP"),
        ({"http": {"headers": ("x y: z",)}}, "http.headers", "must be NAME:VALUE"),
        ({"http": {"headers": ("x:a\nb",)}}, "http.headers", "printable ASCII"),
        (
            {"http": {"forwarded_allow_ips": ("10.0.0.0/33",)}},
            "http.forwarded_allow_ips",
            "must be an address, a network such as 10.0.0.0/8, or *",
        ),
        ({"listen": {"bind": ()}}, "listen.bind", "at least one address"),
        ({"listen": {"bind": ("8000",)}}, "listen.bind", "such as 127.0.0.1:8000 or :8000"),
        ({"listen": {"quic_bind": (":1",)}}, "listen.quic_bind", "needs --http3"),
        (
            {"listen": {"quic_bind": ("unix:/x",)}, "http": {"http3": True}},
            "listen.quic_bind",
            "QUIC runs over UDP",
        ),
        (
            {"listen": {"bind": ("unix:/x",)}, "http": {"http3": True}},
            "listen.bind",
            "has no address for HTTP/3; add --quic-bind",
        ),
        (
            {"http2": {"connection_window": 1 << 19}},
            "http2.connection_window",
            "must not be smaller than --h2-stream-window",
        ),
        (
            {"http3": {"connection_window": 1 << 19}},
            "http3.connection_window",
            "must not be smaller than --h3-stream-window",
        ),
        ({"app": {"target": "main"}}, "app.target", "must be module:attribute, such as main:app"),
        ({"app": {"target": "src/main.py"}}, "app.target", "such as main:app"),
        ({"app": {"target": ":app"}}, "app.target", "must be module:attribute"),
    ],
)
def test_what_cannot_go_together_is_refused_with_a_remedy(sections, option, remedy):
    with pytest.raises(ConfigError) as caught:
        build(**sections)
    (problem,) = caught.value.problems()
    assert problem.option == option
    assert remedy in problem.remedy


def test_tls_is_spoken_with_a_certificate_for_http3_or_on_request():
    assert not build().speaks_tls
    assert build(tls={"certfile": ("a",)}).speaks_tls
    assert build(tls={"self_signed": True}).needs_self_signed
    assert build(http={"http3": True}).needs_self_signed
    assert not build(tls={"certfile": ("a",)}, http={"http3": True}).needs_self_signed


def test_quic_listens_where_tcp_does_unless_told_otherwise():
    http3 = {"http3": True}
    addresses = build(http=http3, listen={"bind": (":1", "unix:/x", "fd://3")}).quic_addresses
    assert [str(address) for address in addresses] == [":1"]
    own = build(http=http3, listen={"quic_bind": ("[::1]:2", "fd://4")}).quic_addresses
    assert [str(address) for address in own] == ["[::1]:2", "fd://4"]


# Addresses


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:80", BindAddress(kind="tcp", host="127.0.0.1", port=80)),
        ("example.org:0", BindAddress(kind="tcp", host="example.org", port=0)),
        ("localhost", BindAddress(kind="tcp", host="localhost", port=8000)),
        (":8000", BindAddress(kind="tcp", host="", port=8000)),
        ("[::1]:443", BindAddress(kind="tcp", host="::1", port=443)),
        ("[fe80::1%eth0]", BindAddress(kind="tcp", host="fe80::1%eth0", port=8000)),
        ("unix:/run/a.sock", BindAddress(kind="unix", path="/run/a.sock")),
        ("unix:///run/a.sock", BindAddress(kind="unix", path="/run/a.sock")),
        ("unix:a:b", BindAddress(kind="unix", path="a:b")),
        ("fd://3", BindAddress(kind="fd", fd=3)),
    ],
)
def test_addresses_are_read_in_all_their_forms(text, address):
    assert parse_bind(text) == address
    assert parse_bind(str(address)) == address


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("::1", "such as [::1]:8000"),
        ("[::1", "such as [::1]:8000"),
        ("host:65536", "between 0 and 65535"),
        ("host:", "between 0 and 65535"),
        ("host:http", "between 0 and 65535"),
        ("unix:", "must name a path"),
        ("fd://", "number of an open socket"),
        ("fd://x", "number of an open socket"),
        ("/run/a.sock", "or unix: and the path"),
        ("http://localhost:80", "must be HOST:PORT"),
        ("8000", ":8000"),
    ],
)
def test_what_is_no_address_is_refused_with_the_form_that_was_meant(text, remedy):
    with pytest.raises(ValueError, match=re.escape(remedy)):
        parse_bind(text)


@given(st.text(alphabet="[]:/.unixfd%0123456789ahost", max_size=20))
def test_an_address_that_is_read_is_spelled_so_that_it_is_read_the_same(text):
    try:
        address = parse_bind(text)
    except ValueError:
        return
    if address.kind != "tcp" or not re.search(r"[\[\]]", address.host):
        assert parse_bind(str(address)) == address


@pytest.mark.parametrize(
    ("shorthand", "bind"),
    [
        ({}, ()),
        ({"port": 80}, ("127.0.0.1:80",)),
        ({"host": "::1"}, ("[::1]:8000",)),
        ({"host": "", "port": 0}, (":0",)),
        ({"uds": "/run/a"}, ("unix:/run/a",)),
        ({"fd": 3}, ("fd://3",)),
    ],
)
def test_shorthands_are_spelled_as_bind(shorthand, bind):
    assert ListenShorthand(**shorthand).bind() == bind


# Workers


def test_a_number_of_workers_is_itself():
    assert resolve_workers("3") == resolve_workers(3) == 3


@pytest.mark.parametrize("text", ["", "many", "-1", "2.5", "1_0"])
def test_another_word_than_auto_is_no_number_of_workers(text):
    with pytest.raises(ValueError, match="or auto"):
        resolve_workers(text)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="Linux pins processes")
def test_auto_is_one_worker_for_each_processor_of_the_affinity():
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert resolve_workers("auto") == 1
    finally:
        os.sched_setaffinity(0, allowed)
    assert 1 <= resolve_workers("auto") <= len(allowed)


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize(
    ("limit", "quota"),
    [("150000 100000", 1.5), ("max 100000", None), ("50000 100000", 0.5), ("", None)],
)
def test_the_quota_of_cgroup_v2_is_read(tmp_path, limit, quota):
    write(tmp_path / "membership", "0::/app.slice/web\n")
    write(tmp_path / "mount/app.slice/web/cpu.max", limit)
    assert cgroup_cpu_quota(tmp_path / "membership", tmp_path / "mount") == quota


def test_the_tightest_quota_above_a_group_binds(tmp_path):
    write(tmp_path / "membership", "0::/a/b\n")
    write(tmp_path / "mount/a/cpu.max", "200000 100000")
    write(tmp_path / "mount/a/b/cpu.max", "max 100000")
    assert cgroup_cpu_quota(tmp_path / "membership", tmp_path / "mount") == 2


@pytest.mark.parametrize("folder", ["cpu,cpuacct", "cpu"])
def test_the_quota_of_cgroup_v1_is_read(tmp_path, folder):
    write(tmp_path / "membership", "5:memory:/docker/x\n4:cpu,cpuacct:/docker/x\n")
    # Inside a container the host's path does not exist below the mount.
    write(tmp_path / "mount" / folder / "cpu.cfs_quota_us", "250000\n")
    write(tmp_path / "mount" / folder / "cpu.cfs_period_us", "100000\n")
    quota = cgroup_cpu_quota(tmp_path / "membership", tmp_path / "mount")
    assert quota == 2.5
    assert math.ceil(quota) == 3


def test_minus_one_is_no_quota_in_cgroup_v1(tmp_path):
    write(tmp_path / "membership", "4:cpu:/x\n")
    write(tmp_path / "mount/cpu/x/cpu.cfs_quota_us", "-1\n")
    write(tmp_path / "mount/cpu/x/cpu.cfs_period_us", "100000\n")
    assert cgroup_cpu_quota(tmp_path / "membership", tmp_path / "mount") is None


def test_a_system_without_control_groups_has_no_quota(tmp_path):
    assert cgroup_cpu_quota(tmp_path / "missing", tmp_path) is None
