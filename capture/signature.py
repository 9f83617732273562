"""Signatures, in two layers.

The **wire signature** is the identity of a request in the store: computed from its bytes alone, never changing, fine
enough that two requests a server could tell apart are never merged. The **executor key** is what TensorFlow looks up
on one model version: the textual names of the tensors that are fed and fetched
(tensorflow/core/common_runtime/direct_session.cc, GetOrCreateExecutors: both lists sorted). It is derived anew for
every version and never stored, because the same request has another key in the next version.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

import msgspec

from capture.memo import Memo
from capture.tensor_info import TensorInfo as TensorInfo

#: Version of the digest's input below. A change to it makes every stored identity a new one.
DIGEST_VERSION: Final = "w1"
#: Hexadecimal digits kept of the SHA-256: 128 bits, so that not even a hostile client finds two with one digest.
DIGEST_HEX: Final = 32
#: Server families that run TensorFlow: only their requests have an executor key.
TENSORFLOW: Final = frozenset({"tfserving", "eas"})
#: An empty signature_name means this one (tensorflow/core/public/session constants: kDefaultServingSignatureDefKey).
DEFAULT_SIGNATURE: Final = "serving_default"

#: Methods whose requests name no one signature: MultiInference has its tasks among the outputs, as KIND:SIGNATURE, and
#: SessionRun has tensor names, of which targets stand as ^NAME among the outputs, and aliases as @NAME.
UNNAMED_METHODS: Final = frozenset({"MultiInference", "SessionRun"})

#: Bytes of each memo below: thousands of usual signatures, hundreds of the widest real ones.
MEMO_BYTES: Final = 8 << 20
#: What a name costs beside its characters, of which each may take up to four bytes; and an entry beside its names.
_NAME_COST, _CHAR_COST, _ENTRY_COST = 64, 4, 1000

#: Names of tensorflow.DataType numbers (tensorflow/core/framework/types.proto).
DTYPES: Final = {
    1: "float",
    2: "double",
    3: "int32",
    4: "uint8",
    5: "int16",
    6: "int8",
    7: "string",
    8: "complex64",
    9: "int64",
    10: "bool",
    14: "bfloat16",
    17: "uint16",
    18: "complex128",
    19: "half",
    22: "uint32",
    23: "uint64",
    # What JSON shows of a tensor; the model knows its dtype.
    -1: "number",
    -2: "text",
    -3: "truth",
    -4: "json",
}

#: Methods of TF Serving's REST API as wire signatures name them -> the method whose request the server makes of it. Row
#: and column are ``instances`` and ``inputs``.
REST_METHODS: Final = {
    "REST Predict row": "Predict",
    "REST Predict column": "Predict",
    "REST Classify": "Classify",
    "REST Regress": "Regress",
}


def _one_line(text: str) -> str:
    """Names come from traffic: what could break a line or drive a terminal is escaped."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


@dataclass(frozen=True, slots=True)
class WireSignature:
    """Identity of a request. ``family`` is the server family (``tfserving``, ``eas``, or for
    EAS services without TensorFlow the name of their dialect); ``inputs`` the sorted names
    actually sent; ``outputs`` the sorted multiset of names asked for, None where the filter was empty (all outputs)."""

    family: str
    model: str
    method: str
    signature_name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...] | None

    @property
    def digest(self) -> str:
        """``w1-`` and 32 hexadecimal digits. Cached: a process sees the same few signatures all day."""
        return _digest(self)

    @property
    def chars(self) -> int:
        """Characters of all names in it."""
        names = (*self.inputs, *(self.outputs or ()))
        return len(self.model) + len(self.signature_name) + sum(map(len, names))

    def __str__(self) -> str:
        outputs = "*" if self.outputs is None else ", ".join(self.outputs)
        name = f"/{self.signature_name}" if self.signature_name else ""
        return _one_line(f"{self.method} {self.model}{name} ({', '.join(self.inputs)}) -> ({outputs})")


def wire_signature(
    family: str, model: str, method: str, signature_name: str, inputs: Iterable[str], output_filter: Iterable[str]
) -> WireSignature:
    """Bring what a request says into the canonical form: sorted, the default signature by its name."""
    key = WireSignature(
        family,
        model,
        method,
        signature_name if method in UNNAMED_METHODS else signature_name or DEFAULT_SIGNATURE,
        tuple(sorted(inputs)),
        tuple(sorted(output_filter)) or None,
    )
    return _CANONICAL.get(key) or _CANONICAL.put(key, key, _cost(key))


def _cost(signature: WireSignature) -> int:
    """Bytes that a memo takes for it, rounded up."""
    names = (signature.model, signature.signature_name, *signature.inputs, *(signature.outputs or ()))
    return _ENTRY_COST + _NAME_COST * len(names) + _CHAR_COST * sum(map(len, names))


#: Equal signatures become one object: a process sees the same few all day, and each is held in many places.
_CANONICAL: Final[Memo[WireSignature, WireSignature]] = Memo(MEMO_BYTES)
_DIGESTS: Final[Memo[WireSignature, str]] = Memo(MEMO_BYTES)


def _digest(signature: WireSignature) -> str:
    return _DIGESTS.get(signature) or _DIGESTS.put(signature, _computed_digest(signature), _cost(signature))


def _computed_digest(signature: WireSignature) -> str:
    hashed = hashlib.sha256()

    def add(*texts: str) -> None:
        # Count and lengths go in first, so that no two lists give the same bytes.
        hashed.update(len(texts).to_bytes(4, "little"))
        for text in texts:
            raw = text.encode("utf-8", "surrogatepass")
            hashed.update(len(raw).to_bytes(4, "little") + raw)

    add(signature.family, signature.model, signature.method, signature.signature_name)
    add(*signature.inputs)
    hashed.update(b"*" if signature.outputs is None else b"[")
    add(*(signature.outputs or ()))
    return f"{DIGEST_VERSION}-{hashed.hexdigest()[:DIGEST_HEX]}"


class TensorSpec(NamedTuple):
    """One input as a request sent it: for display and for choosing a sample, never identity. ``shape`` is None where
    the rank was not given."""

    name: str
    dtype: int
    shape: tuple[int, ...] | None

    def __str__(self) -> str:
        dims = "?" if self.shape is None else ",".join(map(str, self.shape))
        return f"{_one_line(self.name)}:{DTYPES.get(self.dtype, f'dtype{self.dtype}')}[{dims}]"


class Call(msgspec.Struct):
    """What an exchange means. ``version`` is the model version the request itself asked for (``""`` if none),
    ``version_label`` likewise."""

    signature: WireSignature
    tensors: tuple[TensorSpec, ...]
    version: str = ""
    version_label: str = ""
    #: All inputs with dtype and shape on one line, in the order of their names.
    shapes: str = ""

    def __post_init__(self) -> None:
        self.shapes = _shapes(self.tensors)


_SHAPES: Final[Memo[tuple[TensorSpec, ...], str]] = Memo(MEMO_BYTES)


def _shapes(tensors: tuple[TensorSpec, ...]) -> str:
    known = _SHAPES.get(tensors)
    if known is not None:
        return known
    text = " ".join(map(str, tensors))
    # Each tensor is a tuple with a name, a number and a tuple of numbers; its text holds name and numbers once more.
    return _SHAPES.put(tensors, text, _ENTRY_COST + 4 * _NAME_COST * len(tensors) + 8 * _CHAR_COST * len(text))


# --- the executor key -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SignatureDef:
    """A SignatureDef: alias -> tensor. ``defaults`` are the inputs that the server fills in when a request leaves them
    out."""

    inputs: Mapping[str, TensorInfo]
    outputs: Mapping[str, TensorInfo]
    method_name: str = ""
    defaults: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, order=True)
class ExecutorKey:
    """The sorted textual names that are fed and fetched, and of nodes that are only run (``targets``). Equal keys share
    an executor, different keys never do (``x`` and ``x:0`` are different keys to DirectSession; names are not
    normalised)."""

    feeds: tuple[str, ...]
    fetches: tuple[str, ...]
    targets: tuple[str, ...] = ()

    def __str__(self) -> str:
        targets = f" run ({', '.join(self.targets)})" if self.targets else ""
        return _one_line(f"feed ({', '.join(self.feeds)}) fetch ({', '.join(self.fetches)}){targets}")


class Misfit(ValueError):
    """A wire signature that this model version would refuse; the text says why, in the server's terms."""


def executor_key(signature: WireSignature, defs: Mapping[str, SignatureDef]) -> ExecutorKey:
    """What TensorFlow looks up when a request of this wire signature reaches a model with these SignatureDefs.

    ``tfserving``: by the rules of each method. Predict feeds every input of the signature, defaults filled in
    (predict_util.cc: PreProcessPrediction). ``eas``: what was sent is fed (DeepRec message_coding.cc; the vendor
    documents no rule). Any other family runs no TensorFlow. Raises Misfit.
    """
    if signature.family not in TENSORFLOW:
        raise Misfit(f"not a TensorFlow service ({signature.family}): its requests have no executor")
    if signature.family == "tfserving" and signature.method in _KEYS:
        return _KEYS[signature.method](signature, defs)
    found = _found(signature.signature_name, defs)
    sent = set(signature.inputs)
    if unknown := sorted(sent - found.inputs.keys()):
        raise Misfit(f"no input {', '.join(unknown)}")
    if signature.family == "tfserving":
        if missing := sorted(found.inputs.keys() - sent - found.defaults):
            raise Misfit(f"input {', '.join(missing)} is missing")
        feeds = _names(found.inputs)
    else:
        feeds = [found.inputs[alias].name for alias in signature.inputs]
    if signature.outputs is None:
        fetches = _names(found.outputs)
    else:
        if unknown := sorted(set(signature.outputs) - found.outputs.keys()):
            raise Misfit(f"no output {', '.join(unknown)}")
        if signature.family == "tfserving" and len(set(signature.outputs)) != len(signature.outputs):
            raise Misfit("an output is asked for twice")
        fetches = [found.outputs[alias].name for alias in signature.outputs]
    return ExecutorKey(tuple(sorted(feeds)), tuple(sorted(fetches)))


def _names(tensors: Mapping[str, TensorInfo]) -> list[str]:
    return [info.name for info in tensors.values()]


def _found(name: str, defs: Mapping[str, SignatureDef]) -> SignatureDef:
    found = defs.get(name)
    if found is None:
        raise Misfit(f'no signature "{name}" (it has: {", ".join(sorted(defs)) or "none"})')
    return found


def _classification(found: SignatureDef) -> tuple[str, list[str]]:
    """(fed, fetched) of Classify, by classifier.cc (PreProcessClassification). Raises Misfit."""
    if len(found.inputs) != 1:
        raise Misfit(f"Classify: expected one input tensor, it has {len(found.inputs)}")
    if len(found.outputs) not in (1, 2):
        raise Misfit(f"Classify: expected one or two output tensors, found {len(found.outputs)}")
    if "inputs" not in found.inputs:
        raise Misfit('Classify: no classification inputs found: its input is not named "inputs"')
    fetches = [found.outputs[alias].name for alias in ("classes", "scores") if alias in found.outputs]
    if not fetches:
        raise Misfit('Classify: expected outputs to contain at least one of "classes" or "scores"')
    return found.inputs["inputs"].name, fetches


def _regression(found: SignatureDef) -> tuple[str, list[str]]:
    """(fed, fetched) of Regress, by regressor.cc (PreProcessRegression). Raises Misfit."""
    if len(found.inputs) != 1:
        raise Misfit(f"Regress: expected one input tensor, it has {len(found.inputs)}")
    if len(found.outputs) != 1:
        raise Misfit(f"Regress: expected one output tensor, it has {len(found.outputs)}")
    if "inputs" not in found.inputs:
        raise Misfit('Regress: no regression inputs found: its input is not named "inputs"')
    if "outputs" not in found.outputs:
        raise Misfit('Regress: no regression outputs found: its output is not named "outputs"')
    return found.inputs["inputs"].name, [found.outputs["outputs"].name]


def _rest_predict_key(signature: WireSignature, defs: Mapping[str, SignatureDef]) -> ExecutorKey:
    """By json_tensor.cc: a plain value is the only input's, the objects of ``instances`` name exactly the inputs, that
    of ``inputs`` all of them and whatever else. Defaults do not help. All outputs are fetched."""
    found = _found(signature.signature_name, defs)
    row = signature.method == "REST Predict row"
    if not found.inputs:
        raise Misfit("Failed to get input map for signature: it has no inputs")
    if not signature.inputs and len(found.inputs) > 1:
        raise Misfit(f"{'instances' if row else 'inputs'} names none of its {len(found.inputs)} inputs")
    if signature.inputs:
        sent = set(signature.inputs)
        if missing := sorted(found.inputs.keys() - sent):
            raise Misfit(f"input {', '.join(missing)} is missing")
        if row and (unknown := sorted(sent - found.inputs.keys())):
            raise Misfit(f"no input {', '.join(unknown)}")
    return ExecutorKey(tuple(sorted(_names(found.inputs))), tuple(sorted(_names(found.outputs))))


_TASKS: Final = {"classify": _classification, "regress": _regression}


def _classify_key(signature: WireSignature, defs: Mapping[str, SignatureDef]) -> ExecutorKey:
    feed, fetches = _classification(_found(signature.signature_name, defs))
    return ExecutorKey((feed,), tuple(sorted(fetches)))


def _regress_key(signature: WireSignature, defs: Mapping[str, SignatureDef]) -> ExecutorKey:
    feed, fetches = _regression(_found(signature.signature_name, defs))
    return ExecutorKey((feed,), tuple(fetches))


def _multi_inference_key(signature: WireSignature, defs: Mapping[str, SignatureDef]) -> ExecutorKey:
    """All tasks in one run; both names fed and names fetched are sets (multi_inference.cc)."""
    seen, feeds, fetches = set[str](), set[str](), set[str]()
    for task in signature.outputs or ():
        kind, _, name = task.partition(":")
        if name in seen:
            raise Misfit(f'signature "{name}" is evaluated twice')
        seen.add(name)
        feed, found = _TASKS[kind](_found(name, defs))
        feeds.add(feed)
        fetches.update(found)
    return ExecutorKey(tuple(sorted(feeds)), tuple(sorted(fetches)))


def _session_run_key(signature: WireSignature, _: Mapping[str, SignatureDef]) -> ExecutorKey:
    """The names as given; whether the graph has them is not looked up."""
    outputs = signature.outputs or ()
    if any(name.startswith(("@", "^@")) for name in (*signature.inputs, *outputs)):
        raise Misfit("its tensor names are aliases, and how a server looks them up is not public")
    return ExecutorKey(
        signature.inputs,
        tuple(name for name in outputs if not name.startswith("^")),
        tuple(name[1:] for name in outputs if name.startswith("^")),
    )


#: Methods of TF Serving with rules of their own.
_KEYS: Final[dict[str, Callable[[WireSignature, Mapping[str, SignatureDef]], ExecutorKey]]] = {
    "Classify": _classify_key,
    "Regress": _regress_key,
    "MultiInference": _multi_inference_key,
    "SessionRun": _session_run_key,
    "REST Predict row": _rest_predict_key,
    "REST Predict column": _rest_predict_key,
    "REST Classify": _classify_key,
    "REST Regress": _regress_key,
}
