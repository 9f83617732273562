"""Who may ask. Loopback without a token, or a token from anywhere."""

from __future__ import annotations

import hmac
import stat
from pathlib import Path
from typing import Final

from aiohttp import web

from capture.settings_errors import SettingsError
from proxy.settings import Admin

#: Asked by load balancers and kubelets, which have no token.
OPEN: Final = frozenset({"/healthz", "/readyz"})
#: Bytes; a shorter token can be guessed.
SHORTEST_TOKEN: Final = 16
_LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})


def read_token(path: str) -> bytes:
    """The token in a file, empty for no path. Raises SettingsError: unreadable, too short, or others may read it."""
    if not path:
        return b""
    try:
        mode, token = Path(path).stat().st_mode, Path(path).read_bytes().strip()
    except OSError as error:
        raise SettingsError(f"admin.token_file: {path}: {error.strerror}") from None
    # Kubernetes mounts secrets for a group (fsGroup); nobody else may read one.
    if mode & (stat.S_IROTH | stat.S_IWOTH):
        raise SettingsError(f"admin.token_file: {path}: everybody may read it; chmod 600 {path}")
    if len(token) < SHORTEST_TOKEN:
        raise SettingsError(f"admin.token_file: {path}: a token has at least {SHORTEST_TOKEN} bytes")
    return token


class Gate:
    """Decides by the request alone. ``turned_away`` counts those without the right token or host."""

    def __init__(self, admin: Admin, host: str) -> None:
        """``host``: the one that is listened on. Raises SettingsError."""
        self._hosts = _LOOPBACK | {host}
        self.turned_away = 0
        self._token = b""
        self.reload(admin)

    def reload(self, admin: Admin) -> None:
        """Read the token again. Raises SettingsError, and keeps the old one."""
        self._token = read_token(admin.token_file)

    def check(self, request: web.Request) -> web.Response | None:
        """None lets it in."""
        if request.path in OPEN:
            return None
        if self._token:
            scheme, _, given = request.headers.get("Authorization", "").partition(" ")
            right = hmac.compare_digest(given.strip().encode("utf-8", "surrogateescape"), self._token)
            if scheme.lower() == "bearer" and right:
                return None
            self.turned_away += 1
            return web.json_response(
                {"error": "give the token: Authorization: Bearer ..."},
                status=401,
                headers={"WWW-Authenticate": 'Bearer realm="warmtap"'},
            )
        # A web page must reach it neither by a name of its own that resolves to loopback (DNS rebinding) nor by a form.
        host = request.host.rpartition(":")[0] if not request.host.endswith("]") else request.host
        host = (host or request.host).strip("[]")
        if host not in self._hosts or "Origin" in request.headers:
            self.turned_away += 1
            return web.json_response({"error": "ask for it by its own address"}, status=403)
        return None
