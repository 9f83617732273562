from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capture import signature as signature_module
from capture.config import ListenerConfig
from capture.differences import differences, nearest
from capture.heads import Heads
from capture.memo import Memo
from capture.signature import (
    MEMO_BYTES,
    Call,
    ExecutorKey,
    Misfit,
    TensorSpec,
    WireSignature,
    executor_key,
    wire_signature,
)
from capture.wire.events import RequestHead
from tests.support.calls import signature_def


def wire(
    inputs: list[str] | None = None,
    outputs: list[str] | None = None,
    *,
    family: str = "tfserving",
    model: str = "m",
    method: str = "Predict",
    name: str = "",
) -> WireSignature:
    return wire_signature(family, model, method, name, ["x"] if inputs is None else inputs, outputs or [])


# --- memos ---


def test_a_memo_keeps_within_its_bytes_and_starts_again_when_full() -> None:
    memo: Memo[str, int] = Memo(800)
    for number in range(9):
        assert memo.put(str(number), number, 100) == number
        assert memo.held_bytes <= 800
    assert (memo.get("8"), memo.get("0"), len(memo)) == (8, None, 1)
    assert memo.put("giant", 9, 101) == 9
    assert (memo.get("giant"), len(memo)) == (None, 1)


def test_names_that_clients_choose_do_not_fill_the_memory() -> None:
    memos = (signature_module._CANONICAL, signature_module._DIGESTS, signature_module._SHAPES)
    for number in range(300):
        names = [f"{number}-{'n' * (1 << (number % 18))}"]
        found = wire(names, names)
        assert found.digest == wire(names, names).digest
        tensors = (TensorSpec(names[0], 1, (1,)),)
        assert Call(found, tensors).shapes == f"{names[0]}:float[1]"
        assert all(memo.held_bytes <= MEMO_BYTES for memo in memos)
    giant = "n" * 1_000_000
    wire([giant])
    assert not any(giant in signature.inputs for signature in signature_module._CANONICAL._known)
    # A wide model's signature is worth remembering.
    wide = [f"user_feature_{number}" for number in range(500)]
    assert wire(wide) is wire(wide)


def test_heads_keep_within_their_bytes() -> None:
    heads, listener = Heads(100_000), ListenerConfig("x")
    for number in range(300):
        target = b"/api/predict/%d" % number + b"%E2%82%AC" * (number % 50)
        head = RequestHead(1, b"POST", target, b"h", ((b"x-long", b"v" * (1 << (number % 16))),))
        assert heads.look_up(head, listener).path.startswith(f"/api/predict/{number}")
        assert heads.known.held_bytes <= 100_000
    assert len(heads.known)


# --- the wire signature ---


def test_the_digest_is_what_it_always_was() -> None:
    # Stores in the field hold these: a change here is a new DIGEST_VERSION and a migration, never a new literal.
    assert wire().digest == "w1-f230f759b1b5524b867055beb28b47ee"
    assert (
        wire(["b", "a"], ["score", "score"], model="ranking", name="explain").digest
        == "w1-536fa4c144b321efe51f389b5b5de059"
    )
    assert wire(["ünïcode"], ["y"], family="eas", method="predict").digest == "w1-5f5ad6f869b7e6dca212bb52099f7b8a"


def test_order_changes_nothing() -> None:
    assert wire(["a", "b"], ["c", "d"]) == wire(["b", "a"], ["d", "c"])


def test_the_empty_signature_name_is_the_default_one() -> None:
    assert wire(name="") == wire(name="serving_default")
    assert wire(name="") != wire(name="other")


@pytest.mark.parametrize(
    "other",
    [
        wire(["x", "y"]),
        wire([]),
        wire(["x"], ["a"]),
        wire(["x"], ["a", "a"]),
        wire(["x"], ["*"]),
        wire(name="s"),
        wire(model="m2"),
        wire(method="Classify"),
        wire(family="eas"),
    ],
)
def test_everything_that_a_server_can_tell_apart_is_told_apart(other: WireSignature) -> None:
    assert wire() != other
    assert wire().digest != other.digest


def test_a_repeated_output_is_another_signature() -> None:
    assert len({wire(["x"], outputs).digest for outputs in ([], ["a"], ["a", "a"], ["a", "a", "a"])}) == 4


_NAMES = st.text(max_size=6)
_SIGNATURES = st.builds(
    wire_signature,
    st.sampled_from(["tfserving", "eas"]),
    _NAMES,
    _NAMES,
    _NAMES,
    st.sets(_NAMES, max_size=4),
    st.lists(_NAMES, max_size=4),
)


@given(st.lists(_SIGNATURES, max_size=30))
def test_no_two_signatures_share_a_digest(signatures: list[WireSignature]) -> None:
    assert len({signature.digest for signature in signatures}) == len(set(signatures))


@given(st.lists(st.sampled_from(["a", "b", "ab", "", "*"]), max_size=5), st.integers(0, 5), st.integers(0, 5))
def test_names_cannot_move_between_fields(names: list[str], one: int, other: int) -> None:
    # The same words, cut into inputs and outputs in two places.
    first = WireSignature("tfserving", "m", "Predict", "s", tuple(names[:one]), tuple(names[one:]) or None)
    second = WireSignature("tfserving", "m", "Predict", "s", tuple(names[:other]), tuple(names[other:]) or None)
    assert (first.digest == second.digest) == (first == second)


def test_one_readable_line() -> None:
    assert str(wire(["b", "a"])) == "Predict m/serving_default (a, b) -> (*)"
    assert str(wire(["a"], ["y", "x", "x"], name="s")) == "Predict m/s (a) -> (x, x, y)"


def test_shapes_on_one_line() -> None:
    call = Call(wire(), (TensorSpec("a", 1, (2, 3)), TensorSpec("b", 7, ()), TensorSpec("c", 99, None)))
    assert call.shapes == "a:float[2,3] b:string[] c:dtype99[?]"


# --- the executor key ---

DEFS = {
    "serving_default": signature_def({"x": "in_x:0", "s": "in_s:0"}, {"y": "y:0", "z": "z:0"}, "", frozenset({"s"})),
    "aliases": signature_def({"x": "in_x:0"}, {"a": "y:0", "b": "y:0", "c": "z"}),
    "shared": signature_def({"p": "in_x:0", "q": "in_x:0"}, {"a": "y:0"}),
}


@pytest.mark.parametrize(
    ("signature", "feeds", "fetches"),
    [
        (wire(["x"]), ["in_s:0", "in_x:0"], ["y:0", "z:0"]),
        (wire(["x", "s"], ["z"]), ["in_s:0", "in_x:0"], ["z:0"]),
        (wire(["x"], ["a", "b"], name="aliases"), ["in_x:0"], ["y:0", "y:0"]),
        (wire(["x"], ["c", "b"], name="aliases"), ["in_x:0"], ["y:0", "z"]),
        (wire(["x"], family="eas"), ["in_x:0"], ["y:0", "z:0"]),
        (wire(["x"], ["z", "z"], family="eas"), ["in_x:0"], ["z:0", "z:0"]),
        (wire([], ["z"], family="eas"), [], ["z:0"]),
        (wire(["p", "q"], name="shared", family="eas"), ["in_x:0", "in_x:0"], ["y:0"]),
    ],
)
def test_the_executor_key(signature: WireSignature, feeds: list[str], fetches: list[str]) -> None:
    assert executor_key(signature, DEFS) == ExecutorKey(tuple(feeds), tuple(fetches))


def test_an_explicit_list_of_all_outputs_has_the_key_of_the_empty_filter() -> None:
    assert executor_key(wire(["x"]), DEFS) == executor_key(wire(["x"], ["z", "y"]), DEFS)
    # In the next version it has not: that is why keys are never stored.
    more = {"serving_default": signature_def({"x": "in_x:0"}, {"y": "y:0", "z": "z:0", "w": "w:0"})}
    assert executor_key(wire(["x"]), more) != executor_key(wire(["x"], ["z", "y"]), more)


@pytest.mark.parametrize(
    ("signature", "reason"),
    [
        (wire(name="gone"), 'no signature "gone" (it has: aliases, serving_default, shared)'),
        (wire(["x", "u", "t"]), "no input t, u"),
        (wire(["s"]), "input x is missing"),
        (wire(["x"], ["y", "w"]), "no output w"),
        (wire(["x"], ["y", "y"]), "an output is asked for twice"),
        (wire(["u"], family="eas"), "no input u"),
        (wire(["x"], ["w"], family="eas"), "no output w"),
    ],
)
def test_what_a_version_would_refuse(signature: WireSignature, reason: str) -> None:
    with pytest.raises(Misfit) as caught:
        executor_key(signature, DEFS)
    assert str(caught.value) == reason


def test_a_model_without_signatures() -> None:
    with pytest.raises(Misfit, match=r"it has: none"):
        executor_key(wire(), {})


def test_a_key_prints_on_one_line() -> None:
    assert str(executor_key(wire(["x"], ["z"]), DEFS)) == "feed (in_s:0, in_x:0) fetch (z:0)"


#: Signatures of tf.Examples, as models have them: each with a placeholder of its own, or all with one.
OF_EXAMPLES = {
    "serving_default": signature_def({"inputs": "ex:0"}, {"classes": "c:0", "scores": "s:0"}),
    "scores": signature_def({"inputs": "ex:0"}, {"scores": "s:0", "other": "o:0"}),
    "classes": signature_def({"inputs": "ex2:0"}, {"classes": "c2:0"}),
    "same": signature_def({"inputs": "ex:0"}, {"classes": "s:0", "scores": "s:0"}),
    "value": signature_def({"inputs": "ex:0"}, {"outputs": "v:0"}),
    "value2": signature_def({"inputs": "ex2:0"}, {"outputs": "v2:0"}),
    "two inputs": signature_def({"inputs": "ex:0", "x": "x:0"}, {"outputs": "v:0", "scores": "s:0"}),
    "x": signature_def({"x": "ex:0"}, {"outputs": "v:0"}),
    "three": signature_def({"inputs": "ex:0"}, {"classes": "c:0", "scores": "s:0", "z": "z:0"}),
    "neither": signature_def({"inputs": "ex:0"}, {"z": "z:0"}),
}


def examples(method: str, name: str = "") -> WireSignature:
    return wire(["inputs"], method=method, name=name)


def tasks(*asked: str) -> WireSignature:
    return wire(["inputs"], list(asked), method="MultiInference")


def ran(inputs: list[str], outputs: list[str]) -> WireSignature:
    return wire(inputs, outputs, method="SessionRun")


@pytest.mark.parametrize(
    ("signature", "feeds", "fetches"),
    [
        (examples("Classify"), ["ex:0"], ["c:0", "s:0"]),
        (examples("Classify", "scores"), ["ex:0"], ["s:0"]),
        (examples("Classify", "classes"), ["ex2:0"], ["c2:0"]),
        (examples("Classify", "same"), ["ex:0"], ["s:0", "s:0"]),
        (examples("Regress", "value"), ["ex:0"], ["v:0"]),
        (tasks("classify:serving_default"), ["ex:0"], ["c:0", "s:0"]),
        (tasks("classify:same"), ["ex:0"], ["s:0"]),
        (tasks("classify:scores", "regress:value"), ["ex:0"], ["s:0", "v:0"]),
        (tasks("regress:value2", "classify:scores", "classify:serving_default"), ["ex2:0", "ex:0"],
         ["c:0", "s:0", "v2:0"]),
    ],
)  # fmt: skip
def test_the_executor_key_of_requests_of_examples(
    signature: WireSignature, feeds: list[str], fetches: list[str]
) -> None:
    assert executor_key(signature, OF_EXAMPLES) == ExecutorKey(tuple(feeds), tuple(fetches))


def test_predict_on_the_same_signature_shares_the_executor() -> None:
    assert executor_key(examples("Classify"), OF_EXAMPLES) == executor_key(wire(["inputs"]), OF_EXAMPLES)
    assert executor_key(examples("Classify", "scores"), OF_EXAMPLES) == executor_key(
        wire(["inputs"], ["scores"], name="scores"), OF_EXAMPLES
    )
    assert executor_key(examples("Regress", "value"), OF_EXAMPLES) == executor_key(ran(["ex:0"], ["v:0"]), OF_EXAMPLES)


def test_the_executor_key_of_session_run_is_its_names() -> None:
    assert executor_key(ran(["b", "a:0"], ["y", "^init", "y"]), {}) == ExecutorKey(("a:0", "b"), ("y", "y"), ("init",))
    assert str(executor_key(ran(["x"], ["y", "^init"]), {})) == "feed (x) fetch (y) run (init)"
    assert executor_key(ran(["x"], ["y"]), {}) != executor_key(ran(["x"], ["^y"]), {})


@pytest.mark.parametrize(
    ("signature", "reason"),
    [
        (examples("Classify", "gone"), 'no signature "gone" (it has: '),
        (tasks("regress:gone"), 'no signature "gone" (it has: '),
        (examples("Classify", "two inputs"), "Classify: expected one input tensor, it has 2"),
        (examples("Classify", "three"), "Classify: expected one or two output tensors, found 3"),
        (examples("Classify", "x"), 'Classify: no classification inputs found: its input is not named "inputs"'),
        (
            examples("Classify", "neither"),
            'Classify: expected outputs to contain at least one of "classes" or "scores"',
        ),
        (examples("Regress", "two inputs"), "Regress: expected one input tensor, it has 2"),
        (examples("Regress"), "Regress: expected one output tensor, it has 2"),
        (examples("Regress", "x"), 'Regress: no regression inputs found: its input is not named "inputs"'),
        (examples("Regress", "neither"), 'Regress: no regression outputs found: its output is not named "outputs"'),
        (tasks("classify:scores", "regress:neither"), "Regress: no regression outputs found"),
        (tasks("classify:scores", "classify:scores"), 'signature "scores" is evaluated twice'),
        (ran(["@x"], ["@y"]), "its tensor names are aliases, and how a server looks them up is not public"),
        (ran([], ["^@y"]), "its tensor names are aliases"),
    ],
)
def test_what_a_version_would_refuse_of_the_other_methods(signature: WireSignature, reason: str) -> None:
    with pytest.raises(Misfit) as caught:
        executor_key(signature, OF_EXAMPLES)
    assert str(caught.value).startswith(reason)


# --- explaining a difference ---


@pytest.mark.parametrize(
    ("one", "other", "phrases"),
    [
        (wire(["x"], ["a"]), wire(["x"], ["a"]), []),
        (wire(["x"], ["a", "model_version_id"]), wire(["x"], ["a"]), ["fetches also: model_version_id"]),
        (wire(["x"], ["a"]), wire(["x"], ["a", "b", "c"]), ["fetches not: b, c"]),
        (wire(["x"], ["a", "a"]), wire(["x"], ["a"]), ["fetches also: a"]),
        (wire(["x"]), wire(["x"], ["a", "b"]), ["fetches all outputs (empty filter), not only: a, b"]),
        (wire(["x"], ["a", "b"]), wire(["x"]), ["fetches only: a, b, not all outputs (empty filter)"]),
        (wire(["x", "y"]), wire(["x", "z"]), ["feeds also: y", "feeds not: z"]),
        (
            wire(name="s", model="m2"),
            wire(),
            ["model is m2, not m", "signature_name is s, not serving_default"],
        ),
        (
            wire(family="eas", method="predict"),
            wire(),
            ["family is eas, not tfserving", "method is predict, not Predict"],
        ),
    ],
)
def test_differences_in_words(one: WireSignature, other: WireSignature, phrases: list[str]) -> None:
    assert differences(one, other) == phrases


@given(_SIGNATURES, _SIGNATURES)
def test_no_phrase_exactly_where_there_is_no_difference(one: WireSignature, other: WireSignature) -> None:
    assert (differences(one, other) == []) == (one == other)


def test_the_nearest_neighbour_differs_least() -> None:
    one = wire(["x"], ["a", "model_version_id"])
    far, near = wire(["q"], ["r", "s"], name="other"), wire(["x"], ["a"])
    assert nearest(one, [far, one, near]) == (near, ["fetches also: model_version_id"])
    assert nearest(one, [one]) is None
    assert nearest(one, []) is None


def test_of_equally_near_neighbours_always_the_same_one_is_named() -> None:
    one, others = wire(["x"], ["a"]), [wire(["x"], ["a", name]) for name in "bcdef"]
    assert nearest(one, others) == nearest(one, others[::-1])
