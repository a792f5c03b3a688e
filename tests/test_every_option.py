"""Each option of --help has a test that it does what it says, and this says which."""

from __future__ import annotations

import ast
import functools
from pathlib import Path
from typing import Final

import pytest

from asgiri.cli.listing import offered_options

TESTS: Final = Path(__file__).parent

TESTED_BY: Final = {
    # Application
    "--factory": "system/test_options.py::test_applications_of_every_shape_are_served",
    "--app-dir": "system/test_options.py::test_an_application_is_found_in_app_dir",
    "--interface": "worker/asgi/test_loader.py::test_interface_option_overrides_the_signature",
    "--wsgi-threads": "system/test_options.py::test_wsgi_threads_bound_the_calls_at_once",
    "--lifespan": "system/test_options.py::test_lifespan_can_be_switched_off",
    "--root-path": "system/test_options.py::test_root_path_is_put_before_the_path",
    "--loop": "system/test_options.py::test_event_loops",
    # Configuration
    "--config": "system/test_hooks.py::test_hooks_are_called_where_they_can_hold_up_nobody",
    "--env-file": (
        "system/test_sources.py"
        "::test_variables_of_a_file_reach_the_application_and_change_with_a_reload"
    ),
    # Listening
    "--host": "system/test_listeners.py::test_host_and_port_name_an_address",
    "--port": "system/test_listeners.py::test_host_and_port_name_an_address",
    "--uds": "system/test_listeners.py::test_a_unix_socket",
    "--fd": "master/test_runtime.py::test_an_open_descriptor_is_served",
    "--bind": "system/test_listeners.py::test_several_binds_share_the_workers",
    "--insecure-bind": "system/test_https.py::test_http_clients_are_sent_to_https",
    "--quic-bind": "system/test_listeners.py::test_http_3_may_have_a_port_of_its_own",
    "--backlog": "master/test_listeners.py::test_backlog_is_the_length_of_the_queue",
    "--proxy-protocol": "system/test_proxies.py::test_connections_say_whose_they_are",
    "--proxy-protocol-allow-ips": "system/test_proxies.py::test_who_is_no_proxy_is_closed",
    # TLS
    "--certfile": ("system/test_https.py::test_certificates_are_chosen_by_name_over_tcp_and_quic"),
    "--keyfile": "system/test_https.py::test_certificates_are_chosen_by_name_over_tcp_and_quic",
    "--keyfile-password": "system/test_options.py::test_a_key_may_have_a_password",
    "--self-signed": "system/test_options.py::test_a_certificate_is_made_on_the_spot",
    "--ca-certs": "system/test_client_certificates.py::test_client_certificates",
    "--cert-reqs": "system/test_client_certificates.py::test_client_certificates",
    "--ciphers": "worker/transport/test_tls.py::test_ciphers_can_be_chosen",
    "--tls-min-version": "worker/transport/test_tls.py::test_oldest_version_can_be_raised",
    "--tls-handshake-timeout": (
        "worker/transport/test_tcp.py::test_handshake_that_takes_too_long_is_given_up"
    ),
    # HTTP
    "--http1": "system/test_options.py::test_http_2_can_be_all_there_is",
    "--http2": "system/test_options.py::test_http_3_can_be_all_there_is",
    "--http3": "system/test_options.py::test_http_3_can_be_all_there_is",
    "--h2c-upgrade": "worker/transport/test_http2.py::test_upgrade_can_be_allowed_to_everybody",
    "--server-header": (
        "system/test_options.py::test_headers_of_the_server_can_be_left_out_and_added"
    ),
    "--date-header": (
        "system/test_options.py::test_headers_of_the_server_can_be_left_out_and_added"
    ),
    "--redirect-https": "system/test_https.py::test_http_clients_are_sent_to_https",
    "--hsts": "system/test_https.py::test_http_clients_are_sent_to_https",
    "--header": "system/test_options.py::test_headers_of_the_server_can_be_left_out_and_added",
    "--alt-svc": "worker/test_runtime.py::test_http_3_is_announced_as_the_options_say",
    "--alt-svc-max-age": "worker/test_runtime.py::test_http_3_is_announced_as_the_options_say",
    "--forwarded-allow-ips": (
        "system/test_proxies.py::test_claims_of_a_proxy_are_believed_and_those_of_others_ignored"
    ),
    "--proxy-headers": "system/test_proxies.py::test_claims_can_be_switched_off",
    "--proxy-headers-from": ("system/test_proxies.py::test_forwarded_in_the_place_of_the_others"),
    "--limit-concurrency": (
        "system/test_balance.py"
        "::test_beyond_the_limit_requests_wait_and_are_refused_when_that_takes_too_long"
    ),
    "--request-timeout": (
        "worker/asgi/test_limits.py"
        "::test_a_response_that_is_not_begun_in_time_is_504_and_the_call_cancelled"
    ),
    "--queue-timeout": (
        "worker/asgi/test_limits.py"
        "::test_who_waits_for_too_long_is_refused_and_the_connection_goes_on"
    ),
    # HTTP/1.1
    "--http1-parser": "worker/transport/test_http1.py::test_h11_parser_serves_as_well",
    "--h1-max-request-line": (
        "worker/protocol/test_http1.py"
        "::test_the_same_fields_behind_a_longer_request_line_count_against_the_limit"
    ),
    "--h1-max-head-size": "worker/protocol/test_http1_head.py::test_field_section_has_a_limit",
    "--h1-max-header-fields": "worker/protocol/test_http1_head.py::test_fields_have_a_limit",
    "--header-timeout": "system/test_timeouts.py::test_timeouts",
    "--keep-alive": "system/test_timeouts.py::test_timeouts",
    "--body-timeout": "system/test_timeouts.py::test_timeouts",
    # HTTP/2
    "--h2-max-concurrent-streams": (
        "worker/protocol/test_http2.py::test_streams_beyond_the_limit_are_refused_alone"
    ),
    "--h2-max-header-list-size": (
        "worker/protocol/test_http2.py::test_too_large_a_field_section_is_answered_with_431"
    ),
    "--h2-stream-window": (
        "worker/protocol/test_http2.py::test_windows_open_only_as_the_application_reads"
    ),
    "--h2-connection-window": (
        "worker/protocol/test_http2.py::test_windows_open_only_as_the_application_reads"
    ),
    "--h2-idle-timeout": (
        "worker/transport/test_http2.py::test_idle_connection_is_closed_in_order"
    ),
    "--h2-ping-interval": (
        "worker/transport/test_http2.py::test_client_is_asked_whether_it_is_there"
    ),
    "--h2-max-resets": "worker/protocol/test_http2.py::test_rapid_resets_are_ended",
    # HTTP/3 and QUIC
    "--quic-retry": "system/test_quic.py::test_retry_costs_a_round_trip_and_nothing_else",
    "--quic-secret-file": (
        "master/test_quic_secrets.py"
        "::test_a_secret_file_comes_first_and_an_editors_newline_does_not_matter"
    ),
    "--quic-server-id": "master/test_quic_secrets.py::test_the_server_id_can_be_given",
    "--quic-max-datagram-size": (
        "worker/protocol/test_quic.py::test_datagrams_are_as_large_as_the_option_says"
    ),
    "--quic-idle-timeout": (
        "worker/transport/test_quic.py::test_an_idle_connection_ends_without_a_word"
    ),
    "--quic-handshake-timeout": (
        "worker/transport/test_quic.py::test_half_open_connections_are_bounded_and_given_up"
    ),
    "--quic-max-half-open": (
        "worker/transport/test_quic.py::test_half_open_connections_are_bounded_and_given_up"
    ),
    "--h3-max-streams": (
        "worker/protocol/test_http3.py::test_streams_beyond_the_limit_are_quics_to_refuse"
    ),
    "--h3-max-header-list-size": (
        "worker/protocol/test_http3.py::test_the_limit_is_announced_and_counts_as_the_rfc_says"
    ),
    "--h3-stream-window": (
        "worker/protocol/test_http3.py::test_an_upload_stops_at_the_window_until_it_is_taken"
    ),
    "--h3-connection-window": (
        "worker/protocol/test_http3.py::test_bodies_that_nobody_reads_do_not_use_the_connection_up"
    ),
    # WebSockets
    "--ws-max-size": ("worker/asgi/test_websocket.py::test_violation_is_closed_with_its_code"),
    "--ws-ping-interval": ("worker/asgi/test_websocket.py::test_silent_client_is_asked_and_closed"),
    "--ws-ping-timeout": (
        "worker/asgi/test_websocket.py::test_without_a_timeout_pings_go_on_for_ever"
    ),
    "--ws-per-message-deflate": (
        "worker/asgi/test_websocket.py::test_compression_can_be_switched_off"
    ),
    "--ws-max-queue": (
        "worker/asgi/test_websocket.py::test_messages_that_wait_are_bounded_in_number_and_size"
    ),
    "--ws-close-timeout": (
        "worker/asgi/test_websocket.py::test_client_that_does_not_answer_a_close_is_given_up"
    ),
    "--ws-drain": "worker/asgi/test_websocket.py::test_drain_keeps_what_it_is_told_to_keep",
    # Flow control
    "--flow-high-water": (
        "worker/protocol/test_http2.py::test_a_paused_stream_is_resumed_below_the_low_mark"
    ),
    "--flow-low-water": (
        "worker/protocol/test_http2.py::test_a_paused_stream_is_resumed_below_the_low_mark"
    ),
    # Workers
    "--workers": "system/test_signals.py::test_processes_say_what_they_are",
    "--boot-timeout": (
        "master/test_fleet.py::test_a_hanging_first_worker_is_killed_at_the_boot_timeout"
    ),
    "--graceful-timeout": "system/test_signals.py::test_graceful_timeout_bounds_a_stop",
    "--timeout": "system/test_hung_workers.py::test_a_stopped_worker_is_killed_and_replaced",
    "--max-requests": "system/test_reload.py::test_recycling_loses_nothing",
    "--max-requests-jitter": (
        "master/test_supervisor.py"
        "::test_jitter_spreads_the_requests_after_which_workers_are_recycled"
    ),
    "--max-worker-rss": (
        "master/test_supervisor.py"
        "::test_worker_that_grows_beyond_its_memory_is_recycled_but_not_at_once"
    ),
    "--max-worker-lifetime": (
        "master/test_supervisor.py::test_worker_is_recycled_at_the_end_of_its_lifetime"
    ),
    "--reload-surge": (
        "master/test_supervisor.py::test_surge_limits_the_processes_during_a_reload"
    ),
    "--balance": (
        "system/test_balance.py::test_requests_on_idle_connections_do_not_wait_for_a_blocked_worker"
    ),
    "--balance-policy": (
        "system/test_balance.py::test_clients_of_one_address_stay_with_one_worker"
    ),
    "--app-thread": (
        "system/test_app_thread.py::test_nobody_waits_for_an_application_that_computes"
    ),
    "--preload": "system/test_preload.py::test_workers_share_nothing_that_belongs_to_one",
    "--cpu-affinity": ("system/test_balance.py::test_workers_are_pinned_to_different_processors"),
    # Development
    "--reload": "system/test_development.py::test_code_is_waited_for_until_it_works",
    "--reload-dir": "test_watch.py::test_folders_are_watched_once_and_excluded_ones_not",
    "--reload-include": "test_watch.py::test_files_that_matter",
    "--reload-exclude": "test_watch.py::test_files_that_matter",
    "--reload-delay": "test_watch.py::test_changes_in_quick_succession_are_told_together",
    # Datagram rings
    "--ring-size": "system/test_admin.py::test_the_stream_channel_has_a_board_as_well",
    "--ring-channel": "system/test_quic.py::test_the_stream_channel_carries_the_same",
    # Logging
    "--log-level": "logs/test_logs.py::test_messages_below_the_level_are_not_written",
    "--log-format": ("logs/test_logs.py::test_json_has_one_object_per_line_with_stable_keys"),
    "--log-color": "logs/test_logs.py::test_colours_are_for_terminals_only",
    "--error-logfile": (
        "system/test_sources.py::test_a_daemon_is_ready_when_its_command_exits_and_has_no_terminal"
    ),
    "--access-log": ("system/test_options.py::test_the_access_log_has_one_line_for_each_request"),
    "--access-logfile": (
        "system/test_options.py::test_the_access_log_has_one_line_for_each_request"
    ),
    "--access-logformat": (
        "system/test_options.py::test_lines_of_one_connection_share_its_id_over_every_version"
    ),
    "--access-log-sampling": (
        "system/test_options.py::test_a_sampled_access_log_counts_what_it_leaves_out"
    ),
    "--log-config": ("system/test_hooks.py::test_a_logging_configuration_holds_for_every_process"),
    # Processes
    "--pid": ("master/test_runtime.py::test_pid_file_and_unix_socket_are_there_while_it_runs"),
    "--name": ("system/test_control.py::test_the_status_is_the_same_for_people_and_machines"),
    "--user": "master/test_runtime.py::test_user_and_group_are_given_up_after_binding",
    "--group": "master/test_runtime.py::test_user_and_group_are_given_up_after_binding",
    "--umask": ("master/test_runtime.py::test_pid_file_and_unix_socket_are_there_while_it_runs"),
    "--chdir": (
        "system/test_sources.py::test_chdir_follows_a_link_anew_at_each_reload_and_upgrade"
    ),
    "--daemon": (
        "system/test_sources.py::test_a_daemon_is_ready_when_its_command_exits_and_has_no_terminal"
    ),
    # Administration
    "--admin": ("system/test_admin.py::test_it_answers_while_every_worker_stands_in_a_handler"),
    "--control-socket": (
        "system/test_control.py::test_the_status_is_the_same_for_people_and_machines"
    ),
    "--statsd-host": "system/test_admin.py::test_statsd_needs_no_address_of_ours",
    "--statsd-prefix": "system/test_admin.py::test_statsd_needs_no_address_of_ours",
}


def test_each_option_has_a_test():
    offered = {declared.flags[0] for declared in offered_options() if declared.flags}
    assert offered - TESTED_BY.keys() == set()
    assert TESTED_BY.keys() - offered == set()


@functools.cache
def names_in(path: str) -> frozenset[str]:
    tree = ast.parse((TESTS / path).read_text())
    return frozenset(
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )


@pytest.mark.parametrize("option", TESTED_BY)
def test_that_test_is_there(option: str):
    path, _, name = TESTED_BY[option].partition("::")
    assert name in names_in(path)
