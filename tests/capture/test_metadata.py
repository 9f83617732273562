from __future__ import annotations

import json

import pytest

from capture.metadata import MetadataError, read_metadata
from capture.savedmodel import read_saved_model
from capture.signature import SignatureDef, TensorInfo
from replay import tf_protos
from tests.support.tf_models import saved_model

#: As the server prints it (get_model_metadata_impl.cc: every field, names as in the .proto).
ANSWER = {
    "model_spec": {"name": "m", "signature_name": "", "version": "3"},
    "metadata": {
        "signature_def": {
            "signature_def": {
                "serving_default": {
                    "inputs": {
                        "x": {
                            "dtype": "DT_FLOAT",
                            "tensor_shape": {
                                "dim": [{"size": "-1", "name": ""}, {"size": "3", "name": ""}],
                                "unknown_rank": False,
                            },
                            "name": "x:0",
                        },
                        "s": {"dtype": "DT_HALF", "tensor_shape": {"dim": [], "unknown_rank": True}, "name": "s:0"},
                    },
                    "outputs": {"y": {"dtype": "DT_QINT8", "name": "y:0"}},
                    "method_name": "tensorflow/serving/predict",
                    "defaults": {"s": {"dtype": "DT_HALF", "half_val": [16384]}},
                }
            }
        }
    },
}


def test_an_answer_is_read() -> None:
    found = read_metadata(json.dumps(ANSWER).encode())
    assert (found.model, found.version) == ("m", "3")
    assert found.signatures == {
        "serving_default": SignatureDef(
            {"x": TensorInfo("x:0", 1, (-1, 3)), "s": TensorInfo("s:0", 19, None)},
            {"y": TensorInfo("y:0", 0, ())},
            "tensorflow/serving/predict",
            frozenset({"s"}),
        )
    }


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b'{"error": "Could not find any versions of model m"}',
        b'{"metadata": {"signature_def": {"signature_def": {"a": {"inputs": {"x": {"tensor_shape": {"dim": '
        b'[{"size": "wide"}]}}}}}}}}',
        b"[" * 100_000,
        b'{"metadata": "\xff"}',
    ],
)
def test_what_is_none(body: bytes) -> None:
    with pytest.raises(MetadataError) as caught:
        read_metadata(body)
    assert "\n" not in str(caught.value)


@pytest.mark.server
@pytest.mark.parametrize("kind", ["ranking", "edge", "census"])
def test_metadata_and_saved_model_say_the_same(kind: str, pytestconfig: pytest.Config) -> None:
    """Protobuf's own JSON of the real messages, which is what the server prints."""
    directory = saved_model(pytestconfig.cache.mkdir("saved_models"), kind)
    json_format = tf_protos.load("google.protobuf.json_format")
    graph = tf_protos.load("tensorflow.core.protobuf.saved_model_pb2").SavedModel.FromString(
        (directory / "saved_model.pb").read_bytes()
    )
    answer = tf_protos.load("tensorflow_serving.apis.get_model_metadata_pb2")
    definitions = answer.SignatureDefMap()
    for name, one in graph.meta_graphs[0].signature_def.items():
        definitions.signature_def[name].CopyFrom(one)
    printed = {
        "model_spec": {"name": "m", "version": "1"},
        "metadata": {
            "signature_def": json_format.MessageToDict(
                definitions, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
            )
        },
    }
    assert read_metadata(json.dumps(printed).encode()).signatures == read_saved_model(directory).signatures
