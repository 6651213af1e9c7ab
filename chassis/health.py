"""The process's answers to `grpc.health.v1` checks.

Names are '' for the whole process, 'tandem.v1.VisionService' for a service and '<service>/<tag>' for a model.
"""

from grpc_health.v1 import health_pb2
from grpc_health.v1.health import aio  # type: ignore[attr-defined]  # missing from the published types

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class Health:
    """Serving status by name."""

    def __init__(self) -> None:
        self.servicer = aio.HealthServicer()

    async def set(self, name: str, serving: bool) -> None:
        """Set the status of `name`. Has no effect after `stop`."""
        await self.servicer.set(name, SERVING if serving else NOT_SERVING)

    async def stop(self) -> None:
        """Report NOT_SERVING for every name from now on."""
        await self.servicer.enter_graceful_shutdown()
