"""Every setting is documented, reaches the process that it is for, and has a test that shows what it does."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from capture.config import ListenerConfig
from proxy.configs import relay_config, worker_config
from proxy.settings import Settings, from_data
from proxy.settings_docs import markdown, rows

ROOT = Path(__file__).parents[2]
#: Where settings are read by name, beside the configurations that relay and worker are given.
READERS = [
    path
    for path in (ROOT / "proxy").rglob("*.py")
    if path.name not in ("settings.py", "settings_capture.py", "reload.py")
]
#: Every group present, so that each setting has a place.
ALL: dict[str, Any] = {
    "listeners": [
        {
            "listen": "127.0.0.1:1",
            "upstream": "127.0.0.1:2",
            "services": {},
            "tls": {"certificate": "c", "key": "k"},
            "upstream_tls": {},
        }
    ],
    "sink": {},
    "relay": {},
    "tap": {},
    "capture": {"limits": {}},
    "admin": {},
}

#: File -> setting -> the test that shows its effect.
SHOWN_BY = {
    "proxy/test_sidecar_life.py": {
        "workers": "test_several_pairs_share_the_clients_and_each_has_its_own_counters",
        "takeover_socket": "test_a_running_sidecar_is_replaced_under_load_twice",
        "listeners[].socket_mode": "test_a_unix_listener_replaces_a_stale_name_and_takes_its_own_away",
        "listeners[].follow_upstream": "test_clients_are_refused_while_the_model_server_refuses",
        "relay.idle_timeout": "test_sighup_changes_what_it_can_and_names_the_rest",
        "relay.drain_delay": "test_sigterm_goes_on_accepting_for_the_delay_and_a_second_one_ends_it",
        "relay.drain_quiet": "test_a_stop_closes_idle_connections_and_waits_for_busy_ones",
        "relay.heartbeat_timeout": "test_a_relay_without_heartbeat_is_replaced_and_waiting_clients_are_served",
        "capture.worker_socket": "test_a_worker_of_another_container_connects_reads_and_is_replaced",
    },
    "proxy/test_sink.py": {
        "listeners[].mode": "test_a_copy_is_captured_as_unproven_and_relayed_traffic_is_judged_as_ever",
        "sink.max_connections": "test_one_connection_too_many_costs_the_one_that_was_answered_least_recently",
        "sink.request_timeout": "test_a_request_that_does_not_end_in_time_ends_its_connection_and_an_idle_one_stays",
    },
    "e2e/test_versions.py": {
        "listeners[].status": "test_a_server_that_moves_to_another_version_under_traffic",
        "capture.status_interval": "test_a_server_that_moves_to_another_version_under_traffic",
    },
    "e2e/test_tls.py": {
        "listeners[].tls.certificate": "test_certificates_are_renewed_under_a_connection_that_stays",
        "listeners[].tls.key": "test_certificates_are_renewed_under_a_connection_that_stays",
        "listeners[].upstream_tls.ca": "test_grpc_through_two_sidecars_is_read_by_both",
        "listeners[].upstream_tls.alpn": "test_a_plaintext_grpc_client_of_a_model_server_that_speaks_tls",
        "relay.tls_handshake_timeout": "test_a_handshake_that_does_not_end_is_reset_and_told",
    },
    "proxy/test_tls.py": {
        "listeners[].tls.client_ca": "test_a_certificate_of_the_client",
        "listeners[].tls.alpn": "test_the_server_is_offered_what_the_client_negotiated",
        "listeners[].upstream_tls.server_name": "test_a_server_that_is_not_what_it_should_be_is_a_reset",
        "listeners[].upstream_tls.verify": "test_any_certificate_where_none_is_verified",
        "listeners[].upstream_tls.certificate": "test_a_certificate_of_the_client",
        "listeners[].upstream_tls.key": "test_a_certificate_of_the_client",
    },
    "proxy/test_config_command.py": {
        "log_level": "test_a_sidecar_that_debugs_logs_its_effective_settings_first",
    },
    "proxy/test_supervisor.py": {
        "listeners[].listen": "test_several_listeners_a_ready_line_and_a_clean_stop",
        "relay.shutdown_timeout": "test_a_stop_lets_flows_finish_and_resets_the_rest",
    },
    "proxy/test_relay.py": {
        "listeners[].upstream": "test_names_and_unix_sockets",
        "relay.connect_timeout": "test_a_silent_upstream_meets_the_connect_deadline",
        "relay.first_byte_timeout": "test_the_first_byte_deadline",
        "relay.half_closed_timeout": "test_a_half_closed_flow_that_is_quiet_ends",
        "relay.closing_timeout": "test_closing_with_unsent_data_ends",
        "relay.keepalive_idle": "test_keep_alive_is_on_at_both_sides",
        "relay.keepalive_interval": "test_keep_alive_is_on_at_both_sides",
        "relay.tcp_user_timeout": "test_keep_alive_is_on_at_both_sides",
        "relay.max_connections": "test_over_the_limit_a_client_is_accepted_and_reset",
    },
    "proxy/test_settings_take_effect.py": {
        "listeners[].name": "test_the_worker_is_told_how_to_read_each_listener",
    },
    "capture/dialects/test_eas_tensorflow.py": {
        "listeners[].dialect": "test_the_settings_name_the_service_of_a_custom_url",
        "listeners[].service": "test_the_settings_name_the_service_of_a_custom_url",
    },
    "capture/dialects/test_eas_kinds.py": {
        "listeners[].services": "test_a_listener_of_several_services_maps_them_to_their_dialects",
    },
    "capture/test_pipeline.py": {
        "listeners[].version": "test_an_eas_call",
        "capture.limits.request_bytes": "test_a_body_over_the_limit",
        "capture.limits.open_bytes": "test_the_byte_budget_gives_up_the_largest_open_body",
    },
    "capture/test_tap.py": {
        "tap.buffer_bytes": "test_a_stopped_worker_bounds_the_queue_and_gets_the_exact_gap",
        "tap.buffer_frames": "test_the_bound_counts_frames_too",
    },
    "e2e/test_scrub_at_capture.py": {
        "capture.scrub": "test_what_users_sent_is_nowhere",
        "capture.scrub_rules": "test_what_users_sent_is_nowhere",
    },
    "e2e/test_store_is_private.py": {
        "capture.store": "test_a_store_that_others_may_read_costs_the_capture_and_no_request",
        "capture.allow_shared_store": "test_a_store_that_others_may_read_costs_the_capture_and_no_request",
    },
    "capture/test_admission.py": {
        "capture.refresh_after": "test_a_sample_is_replaced_after_refresh_after",
        "capture.limits.signatures_per_version": "test_eviction_takes_fewest_hours_then_fewest_hits_then_oldest",
        "capture.limits.new_signatures_per_hour": "test_a_flood_of_new_signatures_evicts_nothing",
        "capture.limits.store_bytes": "test_the_store_stays_within_its_bytes",
        "capture.limits.held_out_requests": "test_the_reservoir_keeps_its_count_and_its_bytes",
        "capture.limits.held_out_bytes": "test_the_reservoir_keeps_its_count_and_its_bytes",
        "capture.limits.held_out_seconds": "test_held_out_requests_expire",
    },
    "capture/test_levels.py": {
        "capture.level": "test_each_shape_class_has_a_sample_of_its_own",
        "capture.levels": "test_a_model_has_its_own_level",
    },
    "capture/store/test_store.py": {
        "capture.retention": "test_what_was_not_seen_for_long_is_deleted_with_all_it_has",
    },
    "capture/test_store_pace.py": {
        "capture.shared_flush_interval": "test_a_fleets_store_is_written_less_often_and_never_in_step",
    },
    "capture/test_worker.py": {
        "capture.flush_interval": "test_hits_of_a_known_signature_wait_for_the_flush_interval",
    },
    "proxy/test_upstream.py": {
        "relay.resolve_interval": "test_a_name_that_moves_is_followed_after_the_interval",
    },
    "capture/test_worker_limits.py": {
        "capture.memory_bytes": "test_near_its_limit_it_writes_what_it_has_and_ends",
    },
    "capture/test_worker_behind.py": {
        "capture.shed_lag": "test_it_sheds_exchanges_and_the_tap_loses_nothing",
    },
    "proxy/admin/test_admin.py": {
        "admin.listen": "test_without_a_token_only_this_machine_by_its_own_name",
        "admin.token_file": "test_a_token_is_asked_for_and_read_again",
    },
}


def test_the_page_is_up_to_date() -> None:
    assert (ROOT / "docs" / "settings.md").read_text() == markdown(), "run `make docs`"


def leaves(value: Any, place: str = "") -> Iterator[str]:
    """Every setting in plain data, by the names that the documentation uses."""
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from leaves(inner, f"{place}.{name}".lstrip("."))
    elif isinstance(value, (list, tuple)) and value and isinstance(value[0], dict):
        yield from leaves(value[0], f"{place}[]")
    else:
        yield place


def test_every_setting_is_documented() -> None:
    documented = [row.place for row in rows()]
    assert len(documented) == len(set(documented))
    assert set(leaves(msgspec.to_builtins(from_data(ALL)))) == set(documented)
    page = markdown()
    for row in rows():
        assert row.help
        group, _, name = row.place.rpartition(".")
        section = page.partition(f"\n## `{group}`\n" if group else "\n## At the top\n")[2].partition("\n## ")[0]
        assert f"| `{name}` |" in section, row.place


def test_every_setting_has_its_test() -> None:
    shown = [place for tests in SHOWN_BY.values() for place in tests]
    assert sorted(shown) == sorted(row.place for row in rows())


@pytest.mark.parametrize("file", SHOWN_BY)
def test_the_tests_are_there(file: str) -> None:
    tree = ast.parse((ROOT / "tests" / file).read_text())
    there = {node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))}
    assert set(SHOWN_BY[file].values()) - there == set()


def other(value: Any, place: str) -> Any:
    """Another value that is as good."""
    if place == "log_level":
        return "debug"
    if place.endswith(".mode"):
        return "sink"
    if place.endswith(".dialect"):
        return "eas-tensorflow"
    if place.endswith(".socket_mode"):
        return "0660"
    if place == "capture.level":
        return "shapes"
    if place == "capture.levels":
        return {"rank": "values(k)"}
    if place.endswith(".services"):
        return {"rank": "eas-onnx"}
    if place.endswith(".status"):
        return "http://127.0.0.1:9"
    if place == "capture.scrub":
        return "at_capture"
    if place == "capture.scrub_rules":
        return ["m:x=zero"]
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + 1
    if isinstance(value, (list, tuple)):
        return [*value, "other"]
    return "127.0.0.1:9" if place.endswith(("listen", "upstream")) else f"{value}other"


def changed(place: str) -> tuple[Settings, Settings]:
    """Settings that differ in this one (and in the key that goes with a certificate)."""
    before = msgspec.to_builtins(from_data(ALL))
    after = msgspec.to_builtins(from_data(ALL))
    if place.startswith("listeners[].upstream_tls."):
        for one in (before, after):
            one["listeners"][0]["upstream_tls"].update(certificate="c", key="k")
    at = after
    *path, name = place.replace("[]", ".0").split(".")
    for step in path:
        at = at[int(step)] if step.isdigit() else at[step]
    if place == "capture.scrub_rules":
        before["capture"]["scrub"] = at["scrub"] = "at_capture"
    at[name] = other(at[name], place)
    if place == "listeners[].mode":
        at.update(upstream="", upstream_tls=None)
    return from_data(before), from_data(after)


@pytest.mark.parametrize("place", [row.place for row in rows()])
def test_a_setting_reaches_its_process(place: str) -> None:
    before, after = changed(place)
    assert before != after
    told = relay_config(before) != relay_config(after) or worker_config(before, "r") != worker_config(after, "r")
    read = re.compile(rf"\b\w+\.{place.rpartition('.')[2]}\b")
    readers = [path.name for path in READERS if read.search(path.read_text())]
    assert told or readers, "nobody is told"


def test_the_worker_is_told_how_to_read_each_listener() -> None:
    named = {"name": "n", "dialect": "eas-onnx", "service": "s", "version": "v", "services": {"a": "eas-string"}}
    settings = from_data(
        {"listeners": [{"listen": ":1", "upstream": ":2", **named}, {"listen": ":3", "upstream": ":4"}]}
    )
    first, second = worker_config(settings, "r").listeners
    assert (first.name, first.dialect, first.service, first.version) == ("n", "eas-onnx", "s", "v")
    assert first.services == {"a": "eas-string"}
    assert second == ListenerConfig(":3", "auto", "", "", {})
