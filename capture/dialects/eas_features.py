"""The recommendation processors of PAI-EAS, EasyRec and TorchEasyRec: features by name, one list of candidate items.

The processor turns features into the one graph that it was configured with, so the key is which features were sent
(that the graph is the same for all of them is what is known of these closed processors, not what was seen), whether
items were, and debug_level, which changes what is computed. Inputs are named by the field that holds them:
``user_features/age``, ``context_features/price``, ``item_ids``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, Final

from capture.dialects.base import Route, Unreadable
from capture.dialects.eas import EasDialect, parsed
from capture.signature import Call, TensorSpec, wire_signature

_STRING: Final = 7
#: How the name of a PBFeature's field begins or, for maps, what comes last before ``_map`` -> TensorFlow's type number.
_TYPES: Final = {"int": 3, "long": 9, "string": _STRING, "float": 1, "double": 2}
#: A feature without a value.
_NO_TYPE: Final = 0


class EasFeatures(EasDialect):
    """What both have in common: see eas_easyrec.py and eas_torchrec.py."""

    #: user_features, item_ids, context_features, item_features, meta_data.
    begins = b"\x12\x1a\x22\x32\x3a"
    message: ClassVar[Any]
    what: ClassVar[str]
    #: Fields that map a name to a list of features, one for each item.
    lists: ClassVar[tuple[str, ...]]
    #: Fields that map a name to text.
    texts: ClassVar[tuple[str, ...]] = ()

    def read(self, route: Route, body: bytes) -> Call:
        request = parsed(self.message, body, self.what)
        tensors = tuple(sorted(self._inputs(request)))
        if not tensors:
            raise Unreadable("no features and no items")
        signature = wire_signature(
            self.family,
            route.model,
            route.method,
            f"debug_level={request.debug_level}",
            [tensor.name for tensor in tensors],
            (),
        )
        return Call(signature, tensors)

    def _inputs(self, request: Any) -> Iterator[TensorSpec]:
        for name, feature in request.user_features.items():
            yield _feature(f"user_features/{name}", feature)
        for field in self.lists:
            for name, listed in getattr(request, field).items():
                dtype = _feature("", listed.features[0]).dtype if listed.features else _NO_TYPE
                yield TensorSpec(f"{field}/{name}", dtype, (len(listed.features),))
        for field in self.texts:
            for name in getattr(request, field):
                yield TensorSpec(f"{field}/{name}", _STRING, ())
        if request.item_ids:
            yield TensorSpec("item_ids", _STRING, (len(request.item_ids),))
        if request.faiss_neigh_num:
            yield TensorSpec("faiss_neigh_num", _TYPES["int"], ())


def _feature(name: str, feature: Any) -> TensorSpec:
    """One PBFeature: of lists the length, of lists of lists that of the outer one, of maps the number of entries."""
    field = feature.WhichOneof("value")
    if field is None:
        return TensorSpec(name, _NO_TYPE, ())
    kind, _, rest = field.partition("_")
    if rest == "feature":
        return TensorSpec(name, _TYPES[kind], ())
    value = getattr(feature, field)
    if rest in ("list", "lists"):
        return TensorSpec(name, _TYPES[kind], (len(value.features if rest == "list" else value.lists),))
    return TensorSpec(name, _TYPES[rest.removesuffix("_map")], (len(value.map_field),))
