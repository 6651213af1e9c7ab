"""Health as `grpc.health.v1` tells it: per service (`tandem.v1.VisionService`) and per model (`<service>/<tag>`)."""

from grpc_health.v1 import health_pb2
from grpc_health.v1.health import aio  # type: ignore[attr-defined]  # missing from the published types

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class Health:
    """What this process tells about its health. The empty name stands for the process as a whole."""

    def __init__(self) -> None:
        self.servicer = aio.HealthServicer()

    async def set(self, name: str, serving: bool) -> None:
        """Tell that `name` takes requests, or that it does not. Without effect once the process is stopping."""
        await self.servicer.set(name, SERVING if serving else NOT_SERVING)

    async def stop(self) -> None:
        """Tell of every name that it takes no requests, for good."""
        await self.servicer.enter_graceful_shutdown()
