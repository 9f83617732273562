"""``python -m capture.schema.generate [OUT]``: compile ``proto/*.proto`` into the committed descriptor set.

A development command: it needs grpcio-tools (protoc)."""

from __future__ import annotations

import sys
from pathlib import Path

from google.protobuf import descriptor_pb2

HERE = Path(__file__).parent
#: Beside capture/schema/messages.py, which cannot be imported while it names a message that is not compiled yet.
DESCRIPTOR_SET = "descriptors.binpb"


def descriptor_set() -> bytes:
    """The serialized FileDescriptorSet, without source comments and with fields in a fixed order."""
    import tempfile

    from grpc_tools import protoc

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        protos = sorted(path.name for path in (HERE / "proto").glob("*.proto"))
        status = protoc.main(["protoc", f"-I{HERE / 'proto'}", f"--descriptor_set_out={out}", *protos])
        if status != 0:
            raise SystemExit(status)
        files = descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes())
    for file in files.file:
        # protoc fills json_name or not by its version; nothing here reads it.
        for message in file.message_type:
            _strip(message)
    return bytes(files.SerializeToString(deterministic=True))


def _strip(message: descriptor_pb2.DescriptorProto) -> None:
    for field in message.field:
        field.ClearField("json_name")
    for nested in message.nested_type:
        _strip(nested)


if __name__ == "__main__":
    (Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / DESCRIPTOR_SET).write_bytes(descriptor_set())
