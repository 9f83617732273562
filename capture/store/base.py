"""What a store keeps, and what every store can do. ``open_store`` is the only place that knows the kinds.

A store never decides: ``admission.py`` does, and hands over a :class:`Batch`, which a store applies as one transaction
(all of it or nothing) and additively (two writers may share a store).
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple, Protocol

from capture.counters import LOSSES
from capture.errors import UserError
from capture.peers import client
from capture.signature import WireSignature

#: Distinct input shapes and senders kept per signature; the rest is counted as "other".
MAX_SHAPES = 16
MAX_SENDERS = 16
#: Blocks of one signature in one batch: that many clients, or hours while the store is away.
MAX_BLOCKS = 64
OTHER = "(other)"

#: Model versions whose SignatureDefs are kept; beyond it those fetched first are deleted.
MAX_METADATA = 500
#: Seconds. Calls and losses are kept by hours since the epoch.
HOUR: Final = 3600.0
#: Counters that are kept by the hour: the losses, and what they are a share of.
COUNTED: Final = (*LOSSES, "requests_proven", "requests_unproven", "tap_client_bytes", "flows_opened")

#: Schemes of URLs that mean a server.
SERVERS: Final = ("redis", "rediss", "redis+cluster", "rediss+cluster", "unix")

#: The model version where the server did not tell it. A normal source, never dropped.
UNKNOWN_VERSION = "unknown"


class StoreError(UserError):
    """The store cannot be opened, read or written; the text names it and the remedy."""


class StoreGone(StoreError):
    """The store is not any more where it was opened: deleted, moved or replaced. Opening it again is the only way."""


class ModelVersion(NamedTuple):
    """What a record belongs to. ``version`` is the number as text, or ``unknown``."""

    family: str
    model: str
    version: str

    def __str__(self) -> str:
        return f"{self.model}/{self.version}"


class RecordKey(NamedTuple):
    """Identity of a record in the store."""

    owner: ModelVersion
    digest: str


@dataclass(slots=True)
class Sample:
    """One real request: ``body`` as the model server reads it, ``wire_body`` the bytes as sent where they differ
    (compression), ``headers`` the allowed few. ``captured_at`` is seconds since the epoch."""

    body: bytes
    wire_body: bytes | None
    headers: dict[str, str]
    path: str
    shapes: str
    outcome: str
    captured_at: float

    @property
    def size(self) -> int:
        """Bytes that count against the store's bound."""
        return len(self.body) + len(self.wire_body or b"")


@dataclass(slots=True)
class HeldOut:
    """A request that is never exported. ``draw`` is its random number in [0, 1) while it is part of the uniform
    reservoir, None otherwise; ``for_signature`` while it is its signature's further sample."""

    id: str
    sample: Sample
    draw: float | None
    for_signature: bool


@dataclass(slots=True)
class SignatureDelta:
    """What was seen of one signature since the last batch. ``unproven`` is negative where calls that failed before it
    succeeded since, when they were tried again."""

    signature: WireSignature
    first_seen: float
    last_seen: float
    proven: int = 0
    unproven: int = 0
    hours: int = 0
    shapes: Counter[str] = field(default_factory=Counter)
    senders: Counter[str] = field(default_factory=Counter)
    #: Calls by hour since the epoch and client (:func:`capture.peers.client`).
    blocks: Counter[tuple[int, str]] = field(default_factory=Counter)


class StoredMetadata(NamedTuple):
    """What a model server said of one version: the answer to ``GET /v1/models/M/versions/V/metadata``, to be read with
    :func:`capture.metadata.read_metadata`. ``fetched_at`` is Unix time."""

    owner: ModelVersion
    fetched_at: float
    body: bytes


@dataclass(slots=True)
class Move:
    """Calls that were counted under one version and turn out to be of another one: ``delta`` goes from ``source`` to
    ``target``, with a copy of the sample if ``sample``. ``held`` maps ids of held-out requests that go there to the
    roles that they keep. ``evicted`` and ``released`` as in a batch: what makes room for it."""

    source: RecordKey
    target: RecordKey
    delta: SignatureDelta
    sample: bool
    held: dict[str, tuple[float | None, bool]]
    evicted: tuple[RecordKey, ...] = ()
    released: dict[str, tuple[float | None, bool]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a store holds at most, where many write it and none of them knows what all of them store: the store itself
    then evicts, draws and expires, and what one writer decided of that (``evicted``, ``released``) is not asked.
    Names as in :class:`capture.config.Limits`, ``refresh_after`` as in :class:`capture.config.WorkerConfig`."""

    signatures_per_version: int
    new_signatures_per_hour: int
    store_bytes: int
    held_out_requests: int
    held_out_bytes: int
    held_out_seconds: float
    refresh_after: float


class SampleTold(NamedTuple):
    """The sample that a store has in place of one that came later; ``at`` is None where it has none."""

    at: float | None
    size: int
    shapes: str
    outcome: str


@dataclass(slots=True)
class Told:
    """What a store that others write too says of a batch: samples that it did not take, with those that it has;
    held-out requests that it did not take; signatures that it evicted or turned away (with their calls); and below
    which draw a request enters the reservoir of a model version."""

    samples: dict[RecordKey, SampleTold] = field(default_factory=dict)
    refused: dict[str, RecordKey] = field(default_factory=dict)
    evicted: list[RecordKey] = field(default_factory=list)
    turned_away: dict[RecordKey, int] = field(default_factory=dict)
    cuts: dict[ModelVersion, float] = field(default_factory=dict)
    #: Signatures of which the store has (no sample, no further sample), whoever had one stored.
    lacking: dict[RecordKey, tuple[bool, bool]] = field(default_factory=dict)
    #: What somebody should know, one line each.
    warnings: list[str] = field(default_factory=list)
    #: Samples and further samples that it took.
    taken: int = 0
    #: Runs that wrote lately, this one included; 0: not told.
    writers: int = 0


@dataclass(slots=True)
class Batch:
    """Everything that changed, applied as one transaction: moves first, each with its evictions; later evictions come
    before samples.

    ``released`` maps held-out ids to the roles that they keep, (draw, for_signature); one without a role is deleted.
    ``refusals`` counts (family, model, outcome, reason), ``ignored`` what was no call. ``counters`` are absolute values
    of the run ``run``.
    """

    run: str
    moves: list[Move] = field(default_factory=list)
    seen: dict[RecordKey, SignatureDelta] = field(default_factory=dict)
    samples: dict[RecordKey, Sample] = field(default_factory=dict)
    held_out: dict[str, tuple[RecordKey, HeldOut]] = field(default_factory=dict)
    released: dict[str, tuple[float | None, bool]] = field(default_factory=dict)
    evicted: set[RecordKey] = field(default_factory=set)
    refusals: Counter[tuple[str, str, str, str]] = field(default_factory=Counter)
    ignored: Counter[str] = field(default_factory=Counter)
    metadata: dict[ModelVersion, StoredMetadata] = field(default_factory=dict)
    counters: dict[str, int] = field(default_factory=dict)
    #: Counts by (hour since the epoch, name), where they are known: in place of what ``counters`` have grown by.
    counted: dict[tuple[int, str], int] | None = None
    updated_at: float = 0.0
    #: Delete signatures last seen before this time; 0 deletes nothing.
    forget_before: float = 0.0
    #: Set for a store that others write too: see :class:`Bounds`.
    bounds: Bounds | None = None

    @property
    def payload_bytes(self) -> int:
        """Bytes of requests in this batch."""
        return sum(sample.size for sample in self.samples.values()) + sum(
            held.sample.size for _, held in self.held_out.values()
        )


@dataclass(slots=True)
class StoredSignature:
    """One signature of one model version as the store knows it. The sample itself is read with ``Store.sample``;
    ``sample_at`` is None where it was evicted or never kept."""

    key: RecordKey
    signature: WireSignature
    proven: int
    unproven: int
    first_seen: float
    last_seen: float
    hours: int
    shapes: dict[str, int]
    senders: dict[str, int]
    evicted: bool
    sample_at: float | None
    sample_size: int
    sample_shapes: str
    sample_outcome: str

    @property
    def hits(self) -> int:
        """Calls that carried this signature and reached the model, or may have."""
        return self.proven + self.unproven


class StoredHeldOut(NamedTuple):
    """A held-out request with what it belongs to, without its body."""

    key: RecordKey
    id: str
    draw: float | None
    for_signature: bool
    size: int
    captured_at: float


class StoredBlock(NamedTuple):
    """Calls of one signature by one client in one hour since the epoch."""

    key: RecordKey
    hour: int
    client: str
    calls: int


class StoredTotal(NamedTuple):
    """What is stored of one model version, in numbers: signatures, and bytes of requests (samples and held out)."""

    owner: ModelVersion
    signatures: int
    payload_bytes: int


class StoredRun(NamedTuple):
    """The counters of one run as it wrote them last, at ``updated_at`` (Unix time)."""

    updated_at: float
    counters: dict[str, int]


class Store(Protocol):
    """A place for records. Every method raises StoreError when the store does not answer."""

    #: Many sidecars write it: it needs ``Batch.bounds``, and has something to tell of each batch.
    shared: bool

    def apply(self, batch: Batch) -> Told | None:
        """Write a batch: all of it or nothing (a shared store: of each model version all or nothing, and what is
        written is not written again when the same batch comes again after an error). Raises StoreGone where nobody
        would find what is written."""

    def signatures(self, model: str | None = None) -> list[StoredSignature]:
        """All signatures, most hits first; of one model if given."""

    def totals(self) -> list[StoredTotal]:
        """What is stored of each model version, without reading it."""

    def sample(self, key: RecordKey) -> Sample | None:
        """The stored request of a signature."""

    def held_out_index(self) -> list[StoredHeldOut]:
        """Every held-out request, without bodies."""

    def held_out(self, model: str | None = None) -> Iterator[tuple[RecordKey, HeldOut]]:
        """Every held-out request with its body, one at a time."""

    def refusals(self) -> list[tuple[str, str, str, str, int]]:
        """(family, model, outcome, reason, count), most first."""

    def ignored(self) -> list[tuple[str, int]]:
        """(what, count) of requests that were no model call, most first."""

    def metadata(self, model: str | None = None) -> list[StoredMetadata]:
        """What model servers said of their versions, newest first; of one model if given."""

    def blocks(self, model: str | None = None, since_hour: int = 0) -> list[StoredBlock]:
        """Who called what, from this hour since the epoch on, oldest first; of one model if given."""

    def counted(self, since_hour: int = 0) -> dict[str, int]:
        """By how much the counters in ``COUNTED`` have grown from this hour on, over all runs and models."""

    def counted_by_hour(self) -> dict[tuple[int, str], int]:
        """The same by (hour since the epoch, name)."""

    def counters(self) -> dict[str, int]:
        """The counters of all runs, summed."""

    def runs(self) -> dict[str, StoredRun]:
        """All runs that wrote counters, by name."""

    def close(self) -> None:
        """Give the store back."""


def bump(counts: Counter[str], name: str, most: int, times: int) -> None:
    """Count ``name``, with at most ``most`` names: a store that is away for hours must not fill the memory."""
    counts[name if name in counts or len(counts) < most else OTHER] += times


def count_sender(
    senders: Counter[str], blocks: Counter[tuple[int, str]], sender: str, now: float, times: int
) -> None:  # fmt: skip
    """Count calls of a sender as in :class:`SignatureDelta`; bounded likewise."""
    bump(senders, sender, MAX_SENDERS, times)
    block = (int(now // HOUR), client(sender))
    blocks[block if block in blocks or len(blocks) < MAX_BLOCKS else (block[0], OTHER)] += times


def shown_store(url: str) -> str:
    """``url`` without its password, for eyes and logs."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        return url
    # The last @, wherever it is: a password that was not quoted must not show either.
    userinfo, at, host = rest.rpartition("@")
    user, colon, _ = userinfo.partition(":")
    # An option of that name is refused, but shown first.
    host = re.sub(r"(?i)([?&][^=&]*pass[^=&]*=)[^&]*", r"\1***", host)
    return f"{scheme}://{user}{':***' if colon else ''}{at}{host}"


def store_path(url: str) -> Path:
    """The file that ``url`` means: a path, or ``sqlite:PATH``."""
    scheme, separator, rest = url.partition(":")
    return Path(rest if separator and scheme == "sqlite" else url)


def open_store(url: str, *, create: bool = False, allow_shared: bool = False) -> Store:
    """The store at ``url``: a path, ``sqlite:PATH``, or a server (:mod:`capture.store.redis_url`). Without ``create``
    it must exist. A file that others than its owner may read or write is refused unless ``allow_shared``. Raises
    StoreError."""
    scheme, separator, _ = url.partition("://")
    if separator:
        if scheme not in SERVERS:
            near = difflib.get_close_matches(scheme, SERVERS, 1)
            hint = f"did you mean {near[0]}://?" if near else f"known are {', '.join(SERVERS)}, or a path"
            raise StoreError(f"store {shown_store(url)}: unknown kind {scheme!r}; {hint}")
        from capture.store.redis_store import RedisStore

        return RedisStore.open(url, create=create)
    from capture.store.sqlite import SqliteStore

    return SqliteStore.open(store_path(url), create=create, allow_shared=allow_shared)
