"""The messages of `saccade.proto`, made from its compiled descriptor.

Generated code would ask for the very protobuf that it was made with; a descriptor fits all of them. Behind a
change of the contract:

    python -m grpc_tools.protoc -I serve/rpc --descriptor_set_out=serve/rpc/saccade.binpb saccade.proto
"""

from importlib.resources import files
from typing import Any

from google.protobuf import descriptor_pool
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.message_factory import GetMessageClass

_FILE = FileDescriptorSet.FromString(files("serve.rpc").joinpath("saccade.binpb").read_bytes()).file[0]
_POOL = descriptor_pool.Default()  # in which reflection looks
_POOL.AddSerializedFile(_FILE.SerializeToString())

SERVICE = f"{_FILE.package}.{_FILE.service[0].name}"


def _message(name: str) -> Any:
    return GetMessageClass(_POOL.FindMessageTypeByName(f"{_FILE.package}.{name}"))


GenerateRequest = _message("GenerateRequest")
ResumeRequest = _message("ResumeRequest")
CancelRequest = _message("CancelRequest")
CancelResponse = _message("CancelResponse")
Word = _message("Word")
Event = _message("Event")
