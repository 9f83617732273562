"""A lock over machines: one holder at a time, until it gives it back or its time is over."""

from __future__ import annotations

from capture.store.redis_link import Link


class RedisLock:
    """Take it with :meth:`acquire`, call :meth:`renew` well within ``seconds`` for as long as the work takes, and end
    with :meth:`release`. Whoever could not renew in time must take it that another one works by now. Every method
    raises StoreError when the server does not answer."""

    def __init__(self, link: Link, key: str, token: str, seconds: float) -> None:
        self._link = link
        self._key = key
        self._token = token
        self._milliseconds = max(1, round(1000 * seconds))

    def _ask(self, milliseconds: int, *, renew: bool) -> bool:
        message = {"token": self._token, "milliseconds": milliseconds, "renew": renew}
        with self._link.errors():
            return bool(self._link.run("lock", self._key, message))

    def acquire(self) -> bool:
        """Whether it is this one's now; at once, nothing is waited for."""
        return self._ask(self._milliseconds, renew=False)

    def renew(self) -> bool:
        """Have it for its time again; False where it was lost."""
        return self._ask(self._milliseconds, renew=True)

    def release(self) -> bool:
        """Give it back; False where it was another's, which keeps it."""
        return self._ask(0, renew=False)
