"""Serve gRPC reflection, v1 beside v1alpha."""

from collections.abc import Sequence

import grpc
from grpc_reflection.v1alpha import _async, reflection, reflection_pb2

V1_NAME = "grpc.reflection.v1.ServerReflection"


def add_reflection(service_names: Sequence[str], server: grpc.aio.Server) -> None:
    """Let clients list and describe the services of a server.

    The library has v1alpha only. The messages of v1 are the same on the wire.

    Args:
        service_names: full names, such as 'tandem.v1.VisionService'.
        server: not started yet.
    """
    names = (*service_names, reflection.SERVICE_NAME)
    reflection.enable_server_reflection(names, server)
    handler = grpc.stream_stream_rpc_method_handler(
        _async.ReflectionServicer(names).ServerReflectionInfo,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(V1_NAME, {"ServerReflectionInfo": handler}),))
