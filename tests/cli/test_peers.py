"""Who comes from another server: each of its options and keys is known here, or answered."""

import re
import shlex
from pathlib import Path

import pytest

from asgiri.cli.arguments import COMMANDS
from asgiri.cli.peers import ELSEWHERE, KEYS_ELSEWHERE, answer
from asgiri.cli.reading import UsageProblems
from asgiri.cli.sources import read_config
from asgiri.config import Config, all_options
from asgiri.hooks import HOOKS

# As --help of uvicorn 0.54, gunicorn 27, hypercorn 0.18 and granian 2.8 names them.
OPTIONS = {
    "uvicorn": """
        --host --port --uds --fd --reload --reload-dir --reload-include --reload-exclude
        --reload-delay --workers --loop --http --http2 --ws --ws-max-size --ws-max-queue
        --ws-ping-interval --ws-ping-timeout --ws-per-message-deflate --lifespan --interface
        --env-file --log-config --log-level --access-log --no-access-log --use-colors
        --no-use-colors --proxy-headers --no-proxy-headers --server-header --no-server-header
        --date-header --no-date-header --forwarded-allow-ips --root-path --limit-concurrency
        --backlog --limit-max-requests --limit-max-requests-jitter --timeout-keep-alive
        --timeout-graceful-shutdown --timeout-worker-healthcheck --ssl-keyfile --ssl-certfile
        --ssl-keyfile-password --ssl-version --ssl-cert-reqs --ssl-ca-certs --ssl-ciphers --header
        --version --app-dir --h11-max-incomplete-event-size --reset-contextvars --factory --help
    """,
    "gunicorn": """
        -h --help -v --version -c --config -b --bind --backlog -w --workers -k --worker-class
        --threads --worker-connections --max-requests --max-requests-jitter -t --timeout
        --graceful-timeout --keep-alive --limit-request-line --limit-request-fields
        --limit-request-field_size --reload --reload-engine --reload-extra-file --spew
        --check-config --print-config --preload --no-sendfile --reuse-port --chdir -D --daemon -e
        --env -p --pid --worker-tmp-dir -u --user -g --group -m --umask --initgroups
        --forwarded-allow-ips --access-logfile --disable-redirect-access-to-syslog
        --access-logformat --error-logfile --log-file --log-level --capture-output --logger-class
        --log-config --log-config-json --log-syslog-to --log-syslog --log-syslog-prefix
        --log-syslog-facility -R --enable-stdio-inheritance --statsd-host --dogstatsd-tags
        --statsd-prefix --enable-backlog-metric -n --name --pythonpath --paste --paster
        --proxy-protocol --proxy-allow-from --protocol --uwsgi-allow-from --keyfile --certfile
        --ssl-version --cert-reqs --ca-certs --suppress-ragged-eofs --do-handshake-on-connect
        --ciphers --http-protocols --http2-cleartext --http2-max-concurrent-streams
        --http2-initial-window-size --http2-max-frame-size --http2-max-header-list-size
        --paste-global --permit-obsolete-folding --strip-header-spaces
        --permit-unconventional-http-method --permit-unconventional-http-version
        --casefold-http-method --forwarder-headers --header-map --asgi-loop --asgi-lifespan
        --asgi-disconnect-grace-period --websocket-max-message-size --http-parser --root-path
        --dirty-app --dirty-workers --dirty-timeout --dirty-threads --dirty-graceful-timeout
        --control-socket --control-socket-mode --no-control-socket
    """,
    "hypercorn": """
        -h --help --access-log --access-logfile --access-logformat --backlog -b --bind --ca-certs
        --certfile --cert-reqs --ciphers -c --config -D --daemon --debug --error-log
        --error-logfile --log-file --graceful-timeout --read-timeout --max-requests
        --max-requests-jitter -g --group -k --worker-class --keep-alive --keyfile
        --keyfile-password --insecure-bind --log-config --log-level -p --pid --quic-bind --reload
        --root-path --server-name --statsd-host --statsd-prefix -m --umask -u --user --verify-mode
        --websocket-ping-interval -w --workers
    """,
    "granian": """
        --host --port --uds --uds-permissions --interface --http --ws --no-ws --workers
        --blocking-threads --blocking-threads-idle-timeout --runtime-threads
        --runtime-blocking-threads --runtime-mode --loop --task-impl --backlog --backpressure
        --http1-buffer-size --http1-header-read-timeout --http1-keep-alive --no-http1-keep-alive
        --http1-pipeline-flush --no-http1-pipeline-flush --http2-adaptive-window
        --no-http2-adaptive-window --http2-initial-connection-window-size
        --http2-initial-stream-window-size --http2-keep-alive-interval --http2-keep-alive-timeout
        --http2-max-concurrent-streams --http2-max-frame-size --http2-max-headers-size
        --http2-max-send-buffer-size --log --no-log --log-level --log-config --access-log
        --no-access-log --access-log-fmt --ssl-certificate --ssl-keyfile --ssl-keyfile-password
        --ssl-protocol-min --ssl-ca --ssl-crl --ssl-client-verify --no-ssl-client-verify
        --url-path-prefix --respawn-failed-workers --no-respawn-failed-workers --respawn-interval
        --rss-sample-interval --rss-samples --workers-lifetime --workers-max-rss
        --workers-kill-timeout --factory --no-factory --working-dir --env-files
        --static-path-route --static-path-mount --static-path-dir-to-file --static-path-expires
        --metrics --no-metrics --metrics-scrape-interval --metrics-address --metrics-port --reload
        --no-reload --reload-paths --reload-ignore-dirs --reload-ignore-patterns
        --reload-ignore-paths --reload-tick --reload-ignore-worker-failure
        --no-reload-ignore-worker-failure --process-name --pid-file --version --help
    """,
}
KEYS = {
    "gunicorn": """
        config wsgi_app bind backlog workers worker_class threads worker_connections max_requests
        max_requests_jitter timeout graceful_timeout keepalive limit_request_line
        limit_request_fields limit_request_field_size reload reload_engine reload_extra_files spew
        check_config print_config preload_app sendfile reuse_port chdir daemon raw_env pidfile
        worker_tmp_dir user group umask initgroups tmp_upload_dir secure_scheme_headers
        forwarded_allow_ips accesslog disable_redirect_access_to_syslog access_log_format errorlog
        loglevel capture_output logger_class logconfig logconfig_dict logconfig_json syslog_addr
        syslog syslog_prefix syslog_facility enable_stdio_inheritance statsd_host dogstatsd_tags
        statsd_prefix enable_backlog_metric proc_name default_proc_name pythonpath paste
        on_starting on_reload when_ready pre_fork post_fork post_worker_init worker_int
        worker_abort pre_exec pre_request post_request child_exit worker_exit nworkers_changed
        on_exit ssl_context proxy_protocol proxy_allow_ips protocol uwsgi_allow_ips keyfile
        certfile ssl_version cert_reqs ca_certs suppress_ragged_eofs do_handshake_on_connect
        ciphers http_protocols http2_cleartext http2_max_concurrent_streams
        http2_initial_window_size http2_max_frame_size http2_max_header_list_size
        raw_paste_global_conf permit_obsolete_folding strip_header_spaces
        permit_unconventional_http_method permit_unconventional_http_version
        casefold_http_method forwarder_headers header_map asgi_loop asgi_lifespan
        asgi_disconnect_grace_period websocket_max_message_size http_parser root_path dirty_apps
        dirty_workers dirty_timeout dirty_threads dirty_graceful_timeout on_dirty_starting
        dirty_post_fork dirty_worker_init dirty_worker_exit control_socket control_socket_mode
        control_socket_disable
    """,
    "hypercorn": """
        bind insecure_bind quic_bind root_path application_path access_log_format accesslog
        alpn_protocols alt_svc_headers backlog ca_certs certfile ciphers daemon debug
        dogstatsd_tags errorlog graceful_timeout read_timeout group h11_max_incomplete_size
        h11_pass_raw_headers h2_max_concurrent_streams h2_max_header_list_size
        h2_max_inbound_frame_size include_date_header include_server_header keep_alive_timeout
        keep_alive_max_requests keyfile keyfile_password logconfig logconfig_dict logger_class
        loglevel max_app_queue_size max_requests max_requests_jitter pid_path server_names
        shutdown_timeout ssl_handshake_timeout startup_timeout statsd_host statsd_prefix umask
        use_reloader user verify_flags verify_mode websocket_max_message_size
        websocket_ping_interval worker_class workers wsgi_max_body_size
    """,
}
KNOWN = {
    name
    for declared in all_options()
    for name in (*declared.flags, *declared.aliases)
} | {"--help", "-h", "--version"}  # fmt: skip
KNOWN |= {
    flag.replace("--", "--no-", 1)
    for declared in all_options()
    if declared.base is bool
    for flag in declared.flags
}
KNOWN_KEYS = {key for declared in all_options() for key in declared.keys}
KNOWN_KEYS |= {*HOOKS, "config", "logconfig_dict"}


@pytest.mark.parametrize("server", OPTIONS)
def test_each_option_of_another_server_is_known_or_answered(server):
    names = OPTIONS[server].split()
    assert [name for name in names if name not in KNOWN and name not in ELSEWHERE] == []


@pytest.mark.parametrize("server", KEYS)
def test_each_key_of_another_servers_file_is_known_or_answered(server):
    keys = KEYS[server].split()
    assert [key for key in keys if key not in KNOWN_KEYS and not answer(key)] == []


def test_nothing_is_answered_that_nobody_has():
    everybodys = {name for names in OPTIONS.values() for name in names.split()}
    assert ELSEWHERE.keys() - everybodys == set()
    assert KEYS_ELSEWHERE.keys() - {key for keys in KEYS.values() for key in keys.split()} == set()


def test_what_is_ours_is_not_answered():
    assert not KNOWN & ELSEWHERE.keys()
    assert not KNOWN_KEYS & KEYS_ELSEWHERE.keys()


@pytest.mark.parametrize("name", [*ELSEWHERE, *KEYS_ELSEWHERE])
def test_an_answer_names_what_there_is(name):
    text = ELSEWHERE.get(name) or KEYS_ELSEWHERE[name]
    assert re.match(r"is (written|not needed|not offered)|comes with a later version", text)
    for option in re.findall(r"--[a-z0-9-]+", text):
        assert option in KNOWN
    written = re.match(r"is written ([a-z0-9_]+)(?:,| = |$)", text)
    assert written is None or written[1] in {*KNOWN_KEYS, "reload"}
    command = re.search(r"asgiri (config [a-z]+)", text)
    assert command is None or command[1] in COMMANDS


# What their documentation tells newcomers to type

RUN = [
    # uvicorn
    "uvicorn main:app",
    "uvicorn example:app --port 5000 --log-level info",
    "uvicorn main:app --host 0.0.0.0 --port 80",
    "uvicorn --factory main:create_app",
    "uvicorn main:app --workers 4",
    "uvicorn main:app --uds /tmp/uvicorn.sock",
    "uvicorn main:app --fd 3",
    "uvicorn main:app --ssl-keyfile=./key.pem --ssl-certfile=./cert.pem",
    "uvicorn main:app --http h11 --loop asyncio --lifespan off --app-dir src",
    "uvicorn main:app --env-file /dev/null --no-access-log --root-path /api",
    "uvicorn main:app --limit-concurrency 100 --backlog 2048 --timeout-keep-alive 5",
    # gunicorn
    "gunicorn app:app",
    "gunicorn myapp:app --workers 4",
    "gunicorn -w 4 myapp:app",
    "gunicorn myapp:app --worker-class asgi",
    "gunicorn app:app --worker-class asgi --bind 0.0.0.0:8080",
    "gunicorn main:app --worker-class asgi --asgi-loop uvloop",
    "gunicorn -k uvicorn.workers.UvicornWorker -w 4 -b :8000 main:app",
    "gunicorn main:app -k uvicorn_worker.UvicornWorker --access-logfile - --error-logfile -",
    "gunicorn --bind unix:/run/app.sock --timeout 120 --graceful-timeout 30 -u www-data main:app",
    "gunicorn myproject.asgi:application -k uvicorn.workers.UvicornWorker",
    # hypercorn
    "hypercorn module:app",
    "hypercorn -b 127.0.0.1:5000 -w 4 myapp:app",
    "hypercorn main:app --bind 0.0.0.0:80",
    "hypercorn --config /dev/null module:app",
    "hypercorn --certfile cert.pem --keyfile key.pem --bind localhost:4433 module:app",
    "hypercorn --keyfile key.pem --certfile c.pem --insecure-bind localhost:8080 module:app",
    "hypercorn -k uvloop --access-logfile - --debug module:app".replace("--debug ", ""),
    "hypercorn --certfile c.pem --verify-mode CERT_REQUIRED --ca-certs ca.pem module:app",
    # granian
    "granian --interface asgi main:app",
    "granian --interface wsgi main:app",
    "granian myproject.asgi:application --interface asgi",
    "granian --interface asgi --host 0.0.0.0 --port 80 --workers 4 --backpressure 16 main:app",
    "granian --interface asgi --ssl-certificate c.pem --ssl-keyfile k.pem main:app",
    "granian --interface asgi --ssl-protocol-min tls1.3 --log-level warn --loop uvloop main:app",
]
ANSWERED = {
    "gunicorn myproject.wsgi": "APP myproject.wsgi: must be module:attribute, such as myproject.wsg"
    "i:application",
    "gunicorn 'app:create_app()'": "APP app:create_app(): is written --factory app:create_app",
    "gunicorn --check-config app:app": "--check-config: is written `asgiri config check`, before t",
    "gunicorn -k gevent app:app": "--loop gevent: is no event loop; leave it out, every work",
    "hypercorn -k trio module:app": "--loop trio: is no event loop; leave it out, every work",
    "hypercorn --quic-bind localhost:4433 module:app": "--quic-bind localhost:4433: needs --http3",
    "hypercorn --debug module:app": "--debug: is written --log-level debug",
    "granian --interface rsgi main:app": "--interface rsgi: must be one of auto, asgi3, asgi2, w",
    "granian --interface asginl main:app": "--interface asginl: is written --interface asgi3 --lif",
    "granian --interface asgi --http 2 main:app": "--http1-parser 2: is written --no-http1",
    "granian --interface asgi --respawn-failed-workers main:app": "--respawn-failed-workers: is no",
}


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("command", RUN)
def test_a_command_of_their_documentation_is_understood_with_one_word_changed(command):
    assert isinstance(read_config(shlex.split(command)[1:], {}), Config)


@pytest.mark.parametrize(("command", "line"), ANSWERED.items())
def test_a_command_that_is_not_says_what_to_write(command, line):
    with pytest.raises(UsageProblems) as caught:
        read_config(shlex.split(command)[1:], {})
    (found,) = caught.value.lines
    assert found.startswith(line)


GUNICORN_FILE = """
import multiprocessing
bind = "127.0.0.1:8000"
workers = multiprocessing.cpu_count() * 2 + 1
worker_class = "uvicorn.workers.UvicornWorker"
keepalive = 5
timeout = 120
accesslog = "-"
errorlog = "-"
loglevel = "INFO"
proc_name = "myapp"
umask = 0o007
user = None
cert_reqs = 0
"""
HYPERCORN_FILE = """
bind = ["0.0.0.0:8000"]
workers = 4
keep_alive_timeout = 10
accesslog = "-"
loglevel = "INFO"
include_server_header = false
h11_max_incomplete_size = 32768
"""


@pytest.mark.slow
def test_their_configuration_files_are_read_as_they_are():
    Path("gunicorn.conf.py").write_text(GUNICORN_FILE)
    config = read_config(["main:app", "-c", "gunicorn.conf.py"], {})
    assert (config.http1.keep_alive, config.workers.timeout, config.app.loop) == (5, 120, "auto")
    assert (config.log.access_log_file, config.process.name) == ("-", "myapp")
    assert config.process.umask == 0o007
    Path("hypercorn.toml").write_text(HYPERCORN_FILE)
    config = read_config(["main:app", "-c", "hypercorn.toml"], {})
    assert (config.http1.keep_alive, config.workers.count) == (10, 4)
    assert not config.http.server_header
