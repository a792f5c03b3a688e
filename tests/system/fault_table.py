"""Each way to fail, and the tests that show what follows from it."""

from __future__ import annotations

from typing import Final

FAULTS: Final[dict[str, tuple[str, ...]]] = {
    "a worker is killed": (
        "system/test_worker_death.py::test_requests_begun_after_a_kill_never_fail",
        "system/test_worker_death.py::test_connections_queued_for_a_killed_worker_are_served_by_others",
        "system/test_hung_workers.py::test_quic_clients_of_a_killed_worker_are_reset_at_once_and_served_again",
        "ipc/test_channel.py::test_connections_of_a_dead_or_stopped_worker_are_served_by_another",
        "ipc/test_processes.py::test_a_new_incarnation_never_sees_what_its_predecessor_left",
    ),
    "a worker is killed while it boots": (
        "system/test_faults.py::test_a_candidate_that_is_killed_ends_its_reload_and_nothing_else",
    ),
    "a worker is killed while it drains": (
        "system/test_faults.py::test_a_worker_that_is_killed_while_it_drains_takes_only_its_own_along",
    ),
    "a worker is killed while the server stops": (
        "system/test_faults.py::test_a_worker_that_is_killed_while_the_server_stops_does_not_hold_it_up",
    ),
    "the admin worker is killed": (
        "system/test_admin.py::test_it_is_replaced_when_it_dies_and_nobody_else_notices",
    ),
    "the mold is killed": (
        "master/test_foundry.py::test_a_killed_mold_is_missed_only_by_the_next_worker",
        "master/test_molds.py::test_a_mold_that_dies_takes_along_who_was_being_forked",
    ),
    "the attendant is killed": (
        "master/test_attendant.py::test_one_that_dies_is_replaced_and_the_log_goes_on",
    ),
    "somebody is stopped and goes on, at any step": (
        "system/test_faults.py::test_whoever_is_stopped_for_a_moment_at_any_step_costs_nothing_but_time",
        "ipc/test_processes.py::test_a_stopped_reader_costs_an_exact_number_of_drops_and_then_goes_on",
    ),
    "a worker's loop is blocked for a moment": (
        "system/test_hung_workers.py::test_a_sleeping_handler_holds_up_nobody_else",
        "system/test_worker_death.py::test_connections_queued_for_a_blocked_worker_are_served_by_others",
    ),
    "a worker's loop is blocked for too long": (
        "system/test_hung_workers.py::test_a_worker_stuck_in_c_code_is_replaced_and_says_where",
        "system/test_hung_workers.py::test_a_stopped_worker_is_killed_and_replaced",
    ),
    "a ring is full": (
        "system/test_faults.py::test_a_full_ring_costs_the_clients_of_its_worker_and_nobody_else",
        "ipc/test_ring.py::test_a_full_ring_refuses_the_newest_and_takes_again_what_fits",
        "master/test_receiver.py::test_a_full_channel_drops_the_newest_counts_and_goes_on",
    ),
    "a producer is killed while it writes": (
        "ipc/test_processes.py::test_a_producer_killed_at_any_moment_leaves_no_torn_record",
    ),
    "a channel is full": (
        "ipc/test_channel.py::test_a_full_channel_refuses_and_takes_again_once_read",
        "master/test_acceptor.py::test_a_channel_that_is_full_makes_connections_wait_in_the_master",
        "master/test_processes.py::test_a_worker_that_reads_no_messages_is_found_out",
    ),
    "the master is killed": (
        "system/test_signals.py::test_workers_do_not_outlive_a_killed_master",
        "system/test_signals.py::test_workers_blocked_when_the_master_dies_go_as_well",
        "system/test_faults.py::test_a_master_that_is_killed_during_a_reload_leaves_nobody_behind",
        "system/test_service.py::test_sockets_that_the_manager_keeps_outlive_a_crash",
    ),
    "the master stands still": (
        "system/test_admin.py::test_it_answers_while_the_master_stands_still",
        "master/test_notify.py::test_the_watchdog_is_fed_twice_per_limit",
    ),
    "a new generation fails": (
        "system/test_reload.py::test_a_new_generation_that_fails_changes_nothing",
    ),
    "many reloads at once": (
        "system/test_reload.py::test_reloads_asked_for_at_once_are_two",
        "master/test_supervisor.py::test_reload_during_a_reload_is_remembered_once",
    ),
    "new code of the master is broken": (
        "system/test_takeover.py::test_a_broken_new_version_is_refused",
    ),
    "the master cannot be exchanged": (
        "system/test_takeover.py::test_a_program_that_cannot_be_executed_changes_nothing",
        "system/test_takeover.py::test_an_unreadable_state_means_a_cold_start",
    ),
    "forged connection IDs": ("master/test_steering.py::test_forged_connection_ids_get_silence",),
    "a real connection ID from another address": (
        "worker/protocol/test_quic.py::test_an_address_that_packets_are_replayed_from_is_asked_and_not_flooded",
    ),
    "connection IDs of a dead worker": (
        "master/test_steering.py::test_one_address_gets_one_reset_a_second",
        "master/test_steering.py::test_all_addresses_together_get_a_hundred_resets_a_second",
    ),
    "Initials from addresses that nobody has": (
        "master/test_steering.py::test_auto_validates_addresses_while_a_worker_is_under_pressure",
        "master/test_admission.py::test_auto_goes_on_asking_as_long_as_the_flood_goes_on",
    ),
    "Initials from real addresses": (
        "master/test_admission.py::test_beyond_the_workers_budget_each_network_has_its_share",
    ),
    "the map of begun connections is full": (
        "master/test_steering.py::test_full_map_keeps_what_it_has_and_decides_the_rest_by_hash",
    ),
    "a beginning that a reload splits": (
        "master/test_steering.py::test_beginning_stays_with_a_worker_that_drains",
    ),
    "a retired connection ID comes late": (
        "worker/transport/test_quic_ids.py::test_a_buried_connection_id_is_remembered_for_a_while",
    ),
    "no descriptors are left (EMFILE)": (
        "system/test_service.py::test_few_descriptors_slow_it_down_but_never_wedge_it",
        "master/test_acceptor.py::test_out_of_descriptors_slows_and_never_wedges",
        "ipc/test_channel.py::test_a_process_out_of_descriptors_loses_and_leaks_none",
    ),
    "no room on the disk (ENOSPC)": (
        "logs/test_logs.py::test_a_full_disk_costs_lines_but_no_exception",
        "ipc/test_segment.py::test_a_failure_half_way_leaves_nothing_open",
    ),
    "too many descriptors under way": (
        "ipc/test_channel.py::test_too_many_descriptors_under_way_count_as_a_full_channel",
        "master/test_dispatcher.py::test_worker_that_leaves_too_much_unread_gets_no_more",
    ),
    "the kernel drops datagrams": (
        "master/test_receiver.py::test_what_the_kernel_drops_is_counted_and_said_once",
    ),
    "a UDP socket takes no more (EAGAIN)": (
        "worker/transport/test_udp.py::test_what_a_full_socket_does_not_take_waits_in_order",
        "worker/transport/test_udp.py::test_beyond_the_bound_datagrams_are_dropped_and_counted",
    ),
    "a UDP socket refuses (EPERM, ENOBUFS, EMSGSIZE)": (
        "worker/transport/test_udp.py::test_what_the_system_refuses_is_lost_and_counted",
        "master/test_receiver.py::test_an_answer_that_cannot_be_sent_is_counted",
        "master/test_receiver.py::test_an_error_of_the_socket_is_counted_and_the_rest_published",
    ),
    "segmentation offload is refused": (
        "worker/transport/test_udp.py::test_where_nobody_cuts_trains_they_go_singly_from_then_on",
    ),
    "memfd or pidfd are refused": (
        "ipc/test_segment.py::test_refused_memory_means_the_stream_channel_and_pages_in_a_file",
        "master/test_processes.py::test_without_memfd_records_go_through_a_stream",
        "master/test_fleet.py::test_without_pidfds_sigchld_does",
    ),
    "a worker writes rubbish": (
        "system/test_faults.py::test_a_worker_that_writes_rubbish_to_the_master_hurts_nobody_else",
        "master/test_processes.py::test_rubbish_from_a_worker_is_counted_and_the_rest_heard",
        "ipc/test_ring.py::test_a_reader_that_claims_to_have_read_more_than_there_was_gains_nothing",
    ),
    "a worker tries to make the master wait": (
        "system/test_faults.py::test_a_worker_that_wants_the_master_to_wait_hurts_nobody_else",
        "ipc/test_counter.py::test_the_other_process_can_neither_make_it_wait_nor_see_its_flags",
        "ipc/test_channel.py::test_closing_what_came_with_rubbish_waits_for_nobody",
        "master/test_receiver.py::test_a_worker_cannot_make_a_udp_socket_wait",
        "master/test_processes.py::test_what_is_handed_back_cannot_make_its_next_owner_wait",
    ),
    "a record is corrupt": (
        "ipc/test_ring.py::test_a_corrupt_record_costs_the_rest_of_its_batch_and_nothing_more",
        "ipc/test_ring.py::test_random_flips_never_raise_and_the_next_batch_is_whole",
    ),
    "shared memory is shrunk": ("ipc/test_segment.py::test_nobody_can_change_the_size",),
    "the clock jumps, or the machine was suspended": (
        "master/test_supervisor.py::test_time_in_which_the_master_stood_still_is_not_held_against_workers",
        "master/test_dispatcher.py::test_beats_that_stopped_while_the_master_was_away_are_given_one_period",
    ),
    "an address of several is asked": (
        "master/test_receiver.py::test_answers_of_steering_leave_from_the_address_that_was_asked",
        "worker/transport/test_udp.py::test_a_reply_leaves_from_the_address_that_was_asked",
    ),
    "datagrams are lost, repeated and reordered": (
        "system/test_network.py::test_http3_loses_nothing_in_a_storm",
        "system/test_network.py::test_http3_goes_on_after_a_gap",
    ),
    "a network ends": (
        "system/test_network.py::test_an_http3_client_whose_network_ends_leaves_nothing_behind",
        "system/test_network.py::test_a_cut_is_told_to_the_application_and_hurts_nobody_else",
    ),
}
