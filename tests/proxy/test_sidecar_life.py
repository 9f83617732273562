"""What a sidecar does with signals, with a stuck relay, with a model server that goes away, and with its successor."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import signal
import socket
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.support.net_http import Echo, Load, echo_server, http_socket
from tests.support.net_relay import receive_until_end
from tests.support.net_sidecar import Sidecar, gone
from tests.support.ports import free_port
from tests.support.waiting import PATIENCE, until

pytestmark = pytest.mark.server
DOUBLE = "tests.support.net_sidecar_main"


@pytest.fixture
def model() -> Iterator[str]:
    with echo_server() as address:
        yield address


def settings(tmp_path: Path, upstream: str, *, name: str = "settings.yaml", **more: Any) -> str:
    """A settings file with one listener on any port; ``more`` replaces or adds."""
    plain: dict[str, Any] = {
        "listeners": [{"listen": "127.0.0.1:0", "upstream": upstream}],
        "relay": {"drain_delay": 0, "drain_quiet": 0.2, "shutdown_timeout": 5},
        "admin": {"listen": ""},
    }
    path = tmp_path / name
    path.write_bytes(msgspec.yaml.encode(plain | more))
    return str(path)


def ask(port: int) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    with contextlib.closing(connection):
        connection.request("POST", "/", b"x")
        return connection.getresponse().status


# --- several pairs ----------------------------------------------------------------------------------------------------


def test_several_pairs_share_the_clients_and_each_has_its_own_counters(tmp_path: Path, model: str) -> None:
    with Sidecar("--config", settings(tmp_path, model, workers=2), cwd=tmp_path, module=DOUBLE) as sidecar:
        (port,) = sidecar.ready()
        counters = sidecar.counters()
        pairs = [counters.of(0), counters.of(1)]
        with Load(port) as load:
            # The kernel wakes whichever relay is first: not an even share, but neither is left out for ever.
            until(lambda: load.failures or all(pair.snapshot()["flows_opened"] for pair in pairs), "flows in both")
            load.more(50)
        assert not load.failures
        total = counters.total()
        assert total["flows_opened"] == sum(pair.snapshot()["flows_opened"] for pair in pairs)
        assert total["relay_starts"] == total["worker_starts"] == 2
    assert any("capture summary" in line and "relay_starts" not in line for line in sidecar.lines)


def test_one_of_two_relays_is_killed_and_no_connection_is_refused(tmp_path: Path, model: str) -> None:
    with Sidecar("--config", settings(tmp_path, model, workers=2), cwd=tmp_path, module=DOUBLE) as sidecar:
        (port,) = sidecar.ready()
        os.kill(sidecar.pid("relay"), signal.SIGKILL)
        for _ in range(50):
            assert ask(port) == 200
        sidecar.wait_for("relay died")


# --- stopping ---------------------------------------------------------------------------------------------------------


def test_sigterm_goes_on_accepting_for_the_delay_and_a_second_one_ends_it(tmp_path: Path, model: str) -> None:
    config = settings(tmp_path, model, relay={"drain_delay": 3600, "drain_quiet": 0.2})
    with Sidecar("--config", config, cwd=tmp_path, module=DOUBLE) as sidecar:
        (port,) = sidecar.ready()
        sidecar.process.send_signal(signal.SIGTERM)
        sidecar.wait_for("msg=stopping accepting_for_seconds=3600")
        assert ask(port) == 200
        sidecar.process.send_signal(signal.SIGTERM)
        assert sidecar.process.wait(PATIENCE) == 0


def test_a_signal_to_the_whole_group_stops_neither_relay_nor_worker(tmp_path: Path, model: str) -> None:
    """systemd and Ctrl-C signal every process: they end when the supervisor says so, and see all until then."""
    with Sidecar("--config", settings(tmp_path, model), cwd=tmp_path) as sidecar:
        (port,) = sidecar.ready()
        sidecar.wait_for("msg=reading")
        for signum in (signal.SIGTERM, signal.SIGINT):
            for child in ("relay", "worker"):
                os.kill(sidecar.pid(child), signum)
        assert ask(port) == 200
        counters = sidecar.counters()
        until(lambda: counters.snapshot()["requests_observed"] == 1)
    starts = [line for line in sidecar.lines if "relay started" in line or "worker started" in line]
    assert len(starts) == 2, sidecar.lines


def test_a_stop_closes_idle_connections_and_waits_for_busy_ones(tmp_path: Path) -> None:
    answer = threading.Event()

    class Slow(Echo):
        def do_GET(self) -> None:
            answer.wait(PATIENCE)
            self.do_POST()

    with echo_server(Slow) as model:
        config = settings(tmp_path, model, relay={"drain_delay": 0, "drain_quiet": 0.05, "shutdown_timeout": 3600})
        with Sidecar("--config", config, cwd=tmp_path, module=DOUBLE) as sidecar:
            (port,) = sidecar.ready()
            idle, unused, busy = (http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE) for _ in range(3))
            idle.request("POST", "/", b"x")
            idle.getresponse().read()
            unused.connect()
            busy.request("GET", "/", b"y" * 1000)
            counters = sidecar.counters()
            until(lambda: counters.snapshot()["client_bytes"] > 1000)
            sidecar.process.send_signal(signal.SIGTERM)
            # A clean end (FIN), not a reset.
            assert http_socket(idle).recv(1) == b""
            assert http_socket(unused).recv(1) == b""
            until(lambda: counters.snapshot()["flows_closed_drained"] == 2)
            answer.set()
            assert busy.getresponse().status == 200
            # Now it is idle as well.
            assert sidecar.process.wait(PATIENCE) == 0
            for connection in (idle, unused, busy):
                connection.close()
            assert counters.snapshot()["flows_closed_drained"] == 3
            assert counters.snapshot()["flows_closed_shutdown"] == 0


def test_after_a_stop_the_kernel_refuses(tmp_path: Path, model: str) -> None:
    config = settings(tmp_path, model, relay={"drain_delay": 0, "shutdown_timeout": 3600})
    with Sidecar("--config", config, cwd=tmp_path, module=DOUBLE) as sidecar:
        (port,) = sidecar.ready()
        with socket.create_connection(("127.0.0.1", port)) as busy:
            busy.sendall(b"POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\n")
            counters = sidecar.counters()
            until(lambda: counters.snapshot()["client_bytes"])
            sidecar.process.send_signal(signal.SIGTERM)

            def refused() -> bool:
                try:
                    socket.create_connection(("127.0.0.1", port)).close()
                except ConnectionRefusedError:
                    return True
                return False

            until(refused, "refusal")
            busy.sendall(b"hello")
            assert b" 200 " in busy.recv(4096)
        assert sidecar.process.wait(PATIENCE) == 0


# --- a stuck relay ----------------------------------------------------------------------------------------------------


def test_a_relay_without_heartbeat_is_replaced_and_waiting_clients_are_served(tmp_path: Path, model: str) -> None:
    config = settings(tmp_path, model, relay={"heartbeat_timeout": 1})
    with Sidecar("--config", config, cwd=tmp_path, module=DOUBLE) as sidecar:
        (port,) = sidecar.ready()
        stuck = sidecar.pid("relay")
        os.kill(stuck, signal.SIGSTOP)
        assert ask(port) == 200
        sidecar.wait_for(f"relay is stuck: no heartbeat; it is killed.*pid={stuck}")
        assert gone(stuck)


def test_a_supervisor_that_was_stopped_kills_no_relay(tmp_path: Path, model: str) -> None:
    config = settings(tmp_path, model, relay={"heartbeat_timeout": 1})
    with Sidecar("--config", config, cwd=tmp_path, module=DOUBLE) as sidecar:
        (port,) = sidecar.ready()
        counters = sidecar.counters()
        beats = counters.snapshot()["relay_beats"]
        os.kill(sidecar.process.pid, signal.SIGSTOP)
        until(lambda: counters.snapshot()["relay_beats"] > beats + 12, "three seconds of beats")
        os.kill(sidecar.process.pid, signal.SIGCONT)
        until(lambda: counters.snapshot()["relay_beats"] > beats + 20)
        assert ask(port) == 200
    assert not any("stuck" in line for line in sidecar.lines)


# --- the kill switch --------------------------------------------------------------------------------------------------


def test_pause_detaches_the_tap_and_touches_no_connection(tmp_path: Path, model: str) -> None:
    with Sidecar("--config", settings(tmp_path, model), cwd=tmp_path) as sidecar:
        (port,) = sidecar.ready()
        sidecar.wait_for("msg=reading")
        counters = sidecar.counters()
        with Load(port) as load:
            load.more(20)
            sidecar.process.send_signal(signal.SIGUSR1)
            sidecar.wait_for("capture is paused")
            sidecar.wait_for("worker ended.*status=0")
            until(lambda: counters.total()["tap_attached"] == 0)
            load.more(50)
            assert counters.snapshot()["worker_starts"] == 1
            sidecar.process.send_signal(signal.SIGUSR2)
            sidecar.wait_for("msg=reading", 2)
            seen = counters.snapshot()["requests_observed"]
            until(lambda: counters.snapshot()["requests_observed"] > seen + 20 or load.failures)
            load.more(20)
        # Paused is paused, whatever else happens.
        sidecar.process.send_signal(signal.SIGUSR1)
        sidecar.wait_for("worker ended.*status=0", 2)
        os.kill(sidecar.pid("relay"), signal.SIGKILL)
        sidecar.wait_for("relay started", 2)
        assert ask(port) == 200
        assert counters.total()["tap_attached"] == 0
        assert counters.snapshot()["worker_starts"] == 2
    assert not any("capture is not running" in line for line in sidecar.lines)


# --- reload -----------------------------------------------------------------------------------------------------------


def test_sighup_changes_what_it_can_and_names_the_rest(tmp_path: Path, model: str) -> None:
    config = settings(tmp_path, model)
    with Sidecar("--config", config, cwd=tmp_path) as sidecar:
        (port,) = sidecar.ready()
        sidecar.wait_for("msg=reading")
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as before:
            settings(
                tmp_path, model, relay={"idle_timeout": 0.3, "drain_delay": 0}, workers=2, capture={"retention": 5}
            )
            sidecar.process.send_signal(signal.SIGHUP)
            sidecar.wait_for('"settings reloaded" need_a_restart=workers$')
            # New limits of the capture need a new worker; flows go on.
            sidecar.wait_for("msg=reading", 2)
            with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as idle:
                assert receive_until_end(idle) == (b"", False)  # a reset
            before.sendall(b"POST / HTTP/1.1\r\nContent-Length: 1\r\n\r\nx")
            assert b" 200 " in before.recv(4096)
            counters = sidecar.counters().snapshot()
            assert counters["flows_closed_idle_timeout"] == 1
            assert counters["relay_starts"] == 1
        Path(config).write_text("listeners: 3\n")
        sidecar.process.send_signal(signal.SIGHUP)
        sidecar.wait_for("settings not reloaded.*listeners")
        assert ask(port) == 200


def test_a_reload_without_a_file_says_so(tmp_path: Path, model: str) -> None:
    with Sidecar("--listen", ":0", "--upstream", model, cwd=tmp_path, module=DOUBLE) as sidecar:
        sidecar.ready()
        sidecar.process.send_signal(signal.SIGHUP)
        sidecar.wait_for("nothing to reload: the sidecar was started without --config")


# --- Unix listeners ---------------------------------------------------------------------------------------------------


def test_a_unix_listener_replaces_a_stale_name_and_takes_its_own_away(tmp_path: Path, model: str) -> None:
    path = tmp_path / "in.sock"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    listener = {"listen": f"unix:{path}", "upstream": model, "socket_mode": "0640"}
    config = settings(tmp_path, model, listeners=[listener])
    with Sidecar("--config", config, cwd=tmp_path, module=DOUBLE) as sidecar:
        sidecar.wait_for(f"ready listeners=unix:{path}")
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(PATIENCE)
            client.connect(str(path))
            client.sendall(b"POST / HTTP/1.1\r\nContent-Length: 1\r\n\r\nx")
            assert b" 200 " in client.recv(4096)
        with Sidecar("--config", config, cwd=tmp_path, module=DOUBLE) as second:
            assert second.process.wait(PATIENCE) == 1
        assert second.lines == [f"capture proxy: cannot listen on unix:{path}: another process listens there"]
    assert not path.exists()


def test_a_file_in_the_place_of_a_unix_listener_is_left_alone(tmp_path: Path, model: str) -> None:
    path = tmp_path / "file"
    path.write_text("precious")
    with Sidecar("--listen", f"unix:{path}", "--upstream", model, cwd=tmp_path) as sidecar:
        assert sidecar.process.wait(PATIENCE) == 1
    message = f"capture proxy: cannot listen on unix:{path}: there is a file of that name that is no socket"
    assert (sidecar.lines, path.read_text()) == ([message], "precious")


# --- follow_upstream --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_clients_are_refused_while_the_model_server_refuses(tmp_path: Path, kind: str) -> None:
    port, path = free_port(), tmp_path / "in.sock"
    listen = f"127.0.0.1:{port}" if kind == "tcp" else f"unix:{path}"
    upstream = free_port()

    def connect() -> socket.socket:
        if kind == "tcp":
            return socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(PATIENCE)
        try:
            sock.connect(str(path))
        except OSError:
            sock.close()
            raise
        return sock

    def refused() -> bool:
        try:
            connect().close()
        except (ConnectionRefusedError, FileNotFoundError):
            return True
        return False

    listener = {"listen": listen, "upstream": f"127.0.0.1:{upstream}", "follow_upstream": True}
    config = settings(tmp_path, "", listeners=[listener], workers=2)
    with Sidecar("--config", config, cwd=tmp_path, module=DOUBLE) as sidecar:
        sidecar.wait_for("msg=ready")
        for turn in range(2):
            sidecar.wait_for("refusing clients while the model server refuses", turn + 1)
            until(refused, "refusal")
            with echo_server(port=upstream):
                sidecar.wait_for("accepting clients again", turn + 1)
                with connect() as client:
                    client.sendall(b"POST / HTTP/1.1\r\nContent-Length: 1\r\n\r\nx")
                    assert b" 200 " in client.recv(4096)


# --- take-over --------------------------------------------------------------------------------------------------------


def test_a_running_sidecar_is_replaced_under_load_twice(tmp_path: Path, model: str) -> None:
    config = settings(tmp_path, model, takeover_socket=str(tmp_path / "takeover"))
    with contextlib.ExitStack() as stack:
        running = stack.enter_context(Sidecar("--config", config, cwd=tmp_path))
        (port,) = running.ready()
        # The port is written down: the successor asks for the same address.
        config = settings(
            tmp_path,
            model,
            listeners=[{"listen": f"127.0.0.1:{port}", "upstream": model}],
            takeover_socket=str(tmp_path / "takeover"),
        )
        with Load(port, keep_alive=False) as load:
            for _ in range(2):
                load.more(100)
                until((tmp_path / "takeover").exists, "takeover socket")
                successor = stack.enter_context(Sidecar("--config", config, "--take-over", cwd=tmp_path))
                assert successor.ready() == [port]
                successor.wait_for("taken over")
                assert running.process.wait(PATIENCE) == 0
                assert any("a successor has taken over" in line for line in running.lines)
                running = successor
                load.more(100)
        assert not load.failures
        assert load.answered > 300


def test_a_successor_that_dies_before_it_is_ready_changes_nothing(tmp_path: Path, model: str) -> None:
    config = settings(tmp_path, model, takeover_socket=str(tmp_path / "takeover"))
    with Sidecar("--config", config, cwd=tmp_path, module=DOUBLE) as running:
        (port,) = running.ready()
        until((tmp_path / "takeover").exists)
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as link:
            link.settimeout(PATIENCE)
            link.connect(str(tmp_path / "takeover"))
            message, fds, _, _ = socket.recv_fds(link, 65536, 16)
            assert msgspec.json.decode(message)["listeners"] == [["127.0.0.1:0", f"127.0.0.1:{port}"]]
            for fd in fds:
                os.close(fd)
        running.wait_for("the successor did not become ready; serving on")
        assert ask(port) == 200


def test_nobody_to_take_over_from_is_one_line(tmp_path: Path, model: str) -> None:
    config = settings(tmp_path, model, takeover_socket=str(tmp_path / "takeover"))
    with Sidecar("--config", config, "--take-over", cwd=tmp_path) as sidecar:
        assert sidecar.process.wait(PATIENCE) == 1
    (line,) = sidecar.lines
    assert re.match(r"capture proxy: takeover_socket .*: No such file or directory; is the sidecar .* running", line)


# --- workers elsewhere ------------------------------------------------------------------------------------------------


def test_a_worker_of_another_container_connects_reads_and_is_replaced(tmp_path: Path, model: str) -> None:
    path = tmp_path / "worker.sock"
    config = settings(tmp_path, model, capture={"worker_socket": str(path), "store": str(tmp_path / "s.sqlite")})
    with Sidecar("--config", config, cwd=tmp_path) as sidecar:
        (port,) = sidecar.ready()
        counters = sidecar.counters()
        assert ask(port) == 200
        with Load(port) as load:
            for turn in range(2):
                worker = Sidecar("worker", "--connect", f"unix:{path}", cwd=tmp_path, module="capture")
                sidecar.wait_for("worker connected", turn + 1)
                worker.wait_for("msg=reading")
                seen = counters.snapshot()["requests_observed"]
                until(lambda seen=seen: load.failures or counters.snapshot()["requests_observed"] > seen + 20)
                if turn:
                    assert worker.stop(signal.SIGTERM) == 0
                else:
                    assert worker.stop(signal.SIGKILL) == -signal.SIGKILL
                sidecar.wait_for("worker disconnected", turn + 1)
                load.more(20)
        assert not load.failures
    assert not path.exists()
