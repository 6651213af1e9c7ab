"""Routes for operators: health, readiness, metrics, version."""

from importlib.metadata import version

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from chassis.errors import NotFound
from http_gateway.door import door_of

# Serving while the stable release can answer.
_GATEWAY = "tandem.v1.Gateway/stable"
_TIMEOUT_S = 2.0


async def healthz(_request: Request) -> Response:
    """Say that the process lives."""
    return JSONResponse({"status": "ok"})


async def readyz(request: Request) -> Response:
    """Say whether requests can be answered now."""
    door = door_of(request)
    if door.draining:
        return _not_ready("This server is stopping.")
    stub = health_pb2_grpc.HealthStub(door.channel)
    try:
        answer = await stub.Check(health_pb2.HealthCheckRequest(service=_GATEWAY), timeout=_TIMEOUT_S)
    except grpc.RpcError:
        return _not_ready("The gateway cannot be reached.")
    if answer.status != health_pb2.HealthCheckResponse.SERVING:
        return _not_ready("The gateway's release is not ready.")
    return JSONResponse({"status": "ok"})


async def metrics(request: Request) -> Response:
    """Return the metrics of this process."""
    settings = door_of(request).settings
    if not (settings.is_local or settings.public_metrics):
        raise NotFound("Metrics are served on another port here.", reason="NO_SUCH_PATH")
    return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)


async def show_version(_request: Request) -> Response:
    """Return the version of this server."""
    return JSONResponse({"version": version("tandem-serving")})


def _not_ready(why: str) -> Response:
    return JSONResponse({"status": "not ready", "reason": why}, 503)


routes: list[BaseRoute] = [
    Route("/healthz", healthz),
    Route("/readyz", readyz),
    Route("/metrics", metrics),
    Route("/version", show_version),
]
