"""Asking model servers which versions they serve, and for their SignatureDefs: in the supervisor, never on the path.

``GET /v1/models/M`` tells the state of every version, ``GET /v1/models/M/labels/L/metadata`` the version that a label
stands for, ``GET /v1/models/M/versions/V/metadata`` the SignatureDefs (tensorflow/serving g3doc/api_rest.md). Only
models that workers saw in traffic are asked for. Whatever a server answers, or does not, is counted and harms nothing:
what the polls say goes to the workers (:mod:`capture.status_board`), who wait for it for a bounded time.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Final
from urllib.parse import quote

import aiohttp
import msgspec
from yarl import URL

from capture.counters import Counters
from capture.metadata import MetadataError, read_metadata
from capture.serving import History, Poll
from capture.status_board import StatusBoard
from capture.status_messages import Answers, Ask, Metadata, Said
from proxy.settings import Settings

log = logging.getLogger("supervisor")

#: Models that are asked for at a time, over all servers, and labels of each: names come from traffic.
MAX_MODELS: Final = 64
MAX_LABELS: Final = 8
#: Versions that a status may tell of, and bytes of one answer.
MAX_VERSIONS: Final = 1000
MAX_STATUS_BYTES: Final = 1 << 20
MAX_METADATA_BYTES: Final = 2 << 20
#: Metadata that is kept for workers that are started anew.
MAX_METADATA: Final = 128
MAX_KEPT_BYTES: Final = 32 << 20
#: Seconds for one answer.
ANSWER_SECONDS: Final = 2.0
#: A server that fails is left alone for the interval, doubling up to this many seconds.
LONGEST_WAIT: Final = 60.0
#: Attempts to get the metadata of one version, until it is loaded anew.
MAX_ATTEMPTS: Final = 5


class StatusFailure(Exception):
    """No usable answer. The text says why; it holds nothing of what was answered. ``silent``: the server did not answer
    at all."""

    def __init__(self, why: str, *, silent: bool = False) -> None:
        super().__init__(why)
        self.silent = silent


class _Version(msgspec.Struct):
    version: str
    state: str


class _Status(msgspec.Struct):
    model_version_status: list[_Version]


class _Patience:
    """When to ask again what has failed."""

    def __init__(self) -> None:
        self._wait = 0.0
        self._next_at = 0.0
        self.failing = False

    def due(self, now: float) -> bool:
        """Whether to ask."""
        return now >= self._next_at

    def failed(self, now: float, interval: float) -> bool:
        """True for the first time in a row."""
        self._wait = min(max(2 * self._wait, interval), LONGEST_WAIT)
        self._next_at = now + self._wait
        first, self.failing = not self.failing, True
        return first

    def succeeded(self) -> bool:
        """True after a failure."""
        failing = self.failing
        self._wait, self._next_at, self.failing = 0.0, 0.0, False
        return failing


class _Model:
    """What is known of one model behind one server."""

    def __init__(self) -> None:
        self.histories: dict[str, History] = {"": History()}
        self.metadata: dict[str, Metadata] = {}
        self.attempts: dict[str, int] = {}
        self.patience = _Patience()

    def said(self, status: str, model: str) -> Iterable[Said]:
        """For the workers."""
        for label, history in self.histories.items():
            yield Said(status, model, label, history.ongoing, tuple(history.spans))


class StatusPoller:
    """Polls until it is cancelled."""

    def __init__(self, settings: Callable[[], Settings], boards: Sequence[StatusBoard], counters: Counters) -> None:
        """``settings`` in effect at the time, one board for each worker."""
        self._settings = settings
        self._boards = boards
        self._counters = counters
        #: By status address and name, in the order in which they were asked for last.
        self._models: dict[tuple[str, str], _Model] = {}
        self._asks: list[tuple[Ask, ...]] = [()] * len(boards)
        self._taken: list[frozenset[str]] = [frozenset()] * len(boards)
        self._servers: dict[str, _Patience] = {}
        self._number = 0

    async def run(self) -> None:
        """For as long as the sidecar lives; without an address in the settings nothing is asked."""
        timeout = aiohttp.ClientTimeout(total=ANSWER_SECONDS)
        async with aiohttp.ClientSession(timeout=timeout, auto_decompress=False) as session:
            while True:
                settings = self._settings()
                interval = settings.capture.status_interval
                addresses = {listener.status for listener in settings.listeners if listener.status}
                wanted = self._wanted(addresses)
                if wanted:
                    await asyncio.gather(*(self._ask_server(session, one, wanted[one], interval) for one in wanted))
                    self._answer()
                await asyncio.sleep(interval)

    def _wanted(self, addresses: set[str]) -> dict[str, list[Ask]]:
        """What to ask each server for. A worker's page holds names from traffic: only servers of the settings are
        asked."""
        for number, board in enumerate(self._boards):
            asked = board.asked()
            if asked is not None:
                self._asks[number] = asked.models
                self._taken[number] = frozenset(asked.taken)
        labels: dict[tuple[str, str], set[str]] = {}
        for ask in (ask for asks in self._asks for ask in asks):
            if ask.status in addresses and (len(labels) < MAX_MODELS or (ask.status, ask.model) in labels):
                labels.setdefault((ask.status, ask.model), set()).update(ask.labels)
        self._models = {key: self._models.get(key) or _Model() for key in labels}
        wanted: dict[str, list[Ask]] = {}
        for (status, model), names in labels.items():
            wanted.setdefault(status, []).append(Ask(status, model, tuple(sorted(names)[:MAX_LABELS])))
        return wanted

    async def _ask_server(
        self, session: aiohttp.ClientSession, address: str, asks: Sequence[Ask], interval: float
    ) -> None:
        server, now = self._servers.setdefault(address, _Patience()), time.monotonic()
        if not server.due(now):
            return
        for place, ask in enumerate(asks):
            model = self._models[ask.status, ask.model]
            if not model.patience.due(now):
                continue
            try:
                await self._poll(session, ask, model)
            except StatusFailure as failure:
                self._counters.add("status_failures")
                # A server that is silent would cost as long for each of the others.
                for other in asks[place:] if failure.silent else [ask]:
                    self._failed(other)
                patience, fields = (server, {}) if failure.silent else (model.patience, {"model": ask.model})
                if patience.failed(now, interval):
                    fields = {"server": address, **fields, "why": str(failure)}
                    log.warning("model versions not known", extra={"fields": fields})
                if failure.silent:
                    return
            else:
                model.patience.succeeded()
        if server.succeeded():
            log.info("model versions known again", extra={"fields": {"server": address}})

    def _failed(self, ask: Ask) -> None:
        now = time.monotonic()
        for history in self._models[ask.status, ask.model].histories.values():
            history.add(Poll(now, now, None))

    async def _poll(self, session: aiohttp.ClientSession, ask: Ask, known: _Model) -> None:
        """Look at one model, its labels, and the metadata of versions that are new. Raises StatusFailure."""
        base = f"{ask.status}/v1/models/{quote(ask.model, safe='')}"
        asked = time.monotonic()
        states = _states(await self._get(session, base, MAX_STATUS_BYTES))
        labels = {}
        for label in ask.labels:
            known.histories.setdefault(label, History(label))
            url = f"{base}/labels/{quote(label, safe='')}/metadata"
            try:
                labels[label] = _read(await self._get(session, url, MAX_METADATA_BYTES), ask.model)[0]
            except StatusFailure as failure:
                if failure.silent:
                    raise
                # Such as a label that is assigned to nothing.
                self._counters.add("status_failures")
        poll = Poll(asked, time.monotonic(), states, labels)
        for history in known.histories.values():
            history.add(poll)
        try:
            await self._fetch(session, base, ask.model, known, states)
        except StatusFailure:
            # What serves is known for all that.
            self._counters.add("status_failures")

    async def _fetch(
        self, session: aiohttp.ClientSession, base: str, model: str, known: _Model, states: dict[str, str]
    ) -> None:
        """The SignatureDefs of versions that can answer and have not yet. Raises StatusFailure."""
        available = {version for version, state in states.items() if state == "AVAILABLE"}
        for version in (known.metadata.keys() | known.attempts.keys()) - available:
            known.metadata.pop(version, None)
            known.attempts.pop(version, None)
        for version in sorted(available - known.metadata.keys(), key=int, reverse=True):
            if known.attempts.get(version, 0) >= MAX_ATTEMPTS or not self._room():
                continue
            known.attempts[version] = known.attempts.get(version, 0) + 1
            body = await self._get(session, f"{base}/versions/{version}/metadata", MAX_METADATA_BYTES)
            told, text = _read(body, model)
            if told != version:
                raise StatusFailure("metadata of another version than the one asked for")
            self._number += 1
            known.metadata[version] = Metadata(f"{self._number}", model, version, time.time(), text)

    def _room(self) -> bool:
        kept = [one for known in self._models.values() for one in known.metadata.values()]
        return len(kept) < MAX_METADATA and sum(len(one.body) for one in kept) < MAX_KEPT_BYTES

    async def _get(self, session: aiohttp.ClientSession, url: str, most: int) -> bytes:
        """The body of a 200. Raises StatusFailure."""
        self._counters.add("status_polls")
        try:
            # The path is encoded already.
            target = URL(url, encoded=True)
            async with session.get(target, allow_redirects=False, headers={"Accept-Encoding": "identity"}) as response:
                if response.status != 200:
                    raise StatusFailure(f"HTTP {response.status}")
                body = bytearray()
                async for piece in response.content.iter_any():
                    body += piece
                    if len(body) > most:
                        raise StatusFailure(f"an answer of more than {most} bytes")
                return bytes(body)
        except TimeoutError:
            raise StatusFailure(f"no answer within {ANSWER_SECONDS:g} s", silent=True) from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise StatusFailure(type(error).__name__, silent=True) from None

    def _answer(self) -> None:
        """Tell the workers."""
        said = tuple(one for (status, model), known in self._models.items() for one in known.said(status, model))
        metadata = [one for known in self._models.values() for one in known.metadata.values()]
        for board, taken in zip(self._boards, self._taken, strict=True):
            board.answer(Answers(said, tuple(one for one in metadata if one.id not in taken)))


def _read(body: bytes, model: str) -> tuple[str, bytes]:
    """(version, the document without its white space) of metadata. Raises StatusFailure."""
    try:
        metadata = read_metadata(body)
        text = msgspec.json.format(body, indent=-1)
    except (MetadataError, msgspec.MsgspecError, RecursionError):
        raise StatusFailure("its metadata cannot be read") from None
    if metadata.model != model:
        raise StatusFailure("metadata of another model than the one asked for")
    return metadata.version, text


def _states(body: bytes) -> dict[str, str]:
    """State by version. Raises StatusFailure."""
    try:
        found = msgspec.json.decode(body, type=_Status).model_version_status
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise StatusFailure("its status cannot be read") from None
    if len(found) > MAX_VERSIONS:
        raise StatusFailure(f"a status of more than {MAX_VERSIONS} versions")
    if any(not one.version.isascii() or not one.version.isdigit() or len(one.version) > 19 for one in found):
        raise StatusFailure("its status names a version that is no number")
    return {one.version: one.state for one in found}
