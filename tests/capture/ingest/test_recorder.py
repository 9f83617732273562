"""Whatever a file holds, each record is counted once, and nothing is raised."""

from __future__ import annotations

import json
import random
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from capture.admission import Admission
from capture.config import Limits, ListenerConfig
from capture.export.tfrecord import frame
from capture.ingest.har import read_har
from capture.ingest.lines import read_line
from capture.ingest.predictions import read_predictions
from capture.ingest.recorded import Recorded, Recorder, Unread
from capture.pipeline import Pipeline
from capture.schema.wire import length_delimited
from tests.support import calls

NOW = 1_700_000_000.0


def made() -> tuple[Recorder, Pipeline, Counter[str]]:
    counts: Counter[str] = Counter()
    limits = Limits()
    admission = Admission(
        signatures_per_version=limits.signatures_per_version,
        new_signatures_per_hour=limits.new_signatures_per_hour,
        store_bytes=limits.store_bytes,
        held_out_requests=limits.held_out_requests,
        held_out_bytes=limits.held_out_bytes,
        held_out_seconds=limits.held_out_seconds,
        refresh_after=86400.0,
    )

    def count(name: str, number: int) -> None:
        counts[name] += number

    listener = ListenerConfig("")
    pipeline = Pipeline(
        run="r",
        name="n",
        listeners=(listener,),
        admission=admission,
        request_bytes=1000,
        open_bytes=10_000,
        count=count,
        draw=random.Random(1).random,
    )
    return Recorder(pipeline, listener, request_bytes=1000, open_bytes=10_000, now=NOW), pipeline, counts


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
TEXT = st.text(st.characters(), max_size=12)
ENTRY = st.fixed_dictionaries(
    {
        "request": st.fixed_dictionaries(
            {"method": TEXT, "url": st.sampled_from(["http://h/api/predict/s", "http://["]) | TEXT},
            optional={
                "bodySize": st.integers(-1, 9),
                "postData": st.fixed_dictionaries({"text": TEXT}, optional={"encoding": st.just("base64") | TEXT}),
                "headers": st.lists(st.fixed_dictionaries({"name": TEXT, "value": TEXT}), max_size=3),
            },
        )
    },
    optional={"response": st.fixed_dictionaries({"status": st.integers()}), "startedDateTime": TEXT},
)
LINE = st.fixed_dictionaries(
    {"path": st.sampled_from(["/api/predict/s", "/tensorflow.serving.PredictionService/Predict"]) | TEXT},
    optional={
        "body": JSON,
        "body_base64": TEXT,
        "status": st.integers(),
        "grpc_status": st.integers(),
        "time": st.floats() | TEXT,
        "headers": st.dictionaries(TEXT, TEXT, max_size=3),
        "warmtap_jsonl": st.integers(),
    },
)


@given(st.lists(ENTRY, max_size=4), st.lists(LINE, max_size=4), st.binary(max_size=60))
def test_anything_is_counted_once_or_named(entries: list[object], lines: list[object], record: bytes) -> None:
    recorder, _, counts = made()
    found: list[Recorded | Unread | None] = [*read_har(json.dumps({"log": {"entries": entries}}).encode())]
    assert len(found) == len(entries)
    found += [read_line(number, json.dumps(line).encode()) for number, line in enumerate(lines)]
    found += [one for _, one in read_predictions(frame(record) + frame(length_delimited(6, record)) + record)]
    requests = [one for one in found if isinstance(one, Recorded)]
    for one in requests:
        recorder.add(one)
    assert counts["requests_observed"] == len(requests)
    assert counts["requests_lost"] == counts["requests_incomplete"] == 0


@given(st.binary(max_size=200))
def test_bytes_that_are_no_file_are_named(data: bytes) -> None:
    assert all(isinstance(one, (Recorded, Unread)) for one in read_har(data))
    assert isinstance(read_line(1, data), (Recorded, Unread, type(None)))
    assert all(isinstance(one, (Recorded, Unread)) for _, one in read_predictions(data))


def test_a_record_of_many_calls_counts_as_many_and_none_is_seen_later_than_now() -> None:
    recorder, pipeline, counts = made()
    record = Recorded(
        place="", target="/api/predict/s", body=calls.eas(), status=200, at=NOW + 99, version="3", calls=5, failed=2
    )
    assert recorder.add(record).outcome == "proven"
    ((key, delta),) = pipeline.batch.seen.items()
    assert (key.owner.version, delta.proven, delta.unproven, delta.last_seen) == ("3", 5, 2, NOW)
    assert (counts["requests_proven"], counts["requests_unproven"]) == (5, 2)
    assert delta.senders.total() == 7


def test_a_body_over_the_limit_is_oversized() -> None:
    recorder, _, counts = made()
    added = recorder.add(Recorded(place="", target="/api/predict/s", body=b"x" * 1001, status=200))
    assert (added.outcome, added.readable) == ("oversized", False)
    assert counts["requests_oversized"] == 1
