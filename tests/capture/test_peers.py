from __future__ import annotations

import pytest

from capture.peers import MAX_CLIENT, client


@pytest.mark.parametrize(
    ("sender", "name"),
    [
        ("grpc-python/1.80 10.1.2.0/24", "grpc-python"),
        ("grpc-java-netty/1.5 fd00::/64", "grpc-java-netty"),
        ("Mozilla/5.0 (X11; Linux) -", "Mozilla"),
        ("my client/2 unix", "my"),
        ("curl 10.0.0.0/24", "curl"),
        ("- 10.0.0.0/24", "-"),
        (" 10.0.0.0/24", "-"),
        ("x" * 100 + "/1 -", "x" * MAX_CLIENT),
        ("", "-"),
    ],
)
def test_a_client_is_its_program(sender: str, name: str) -> None:
    assert client(sender) == name
