"""Run one of several workers: `python -m gateway.worker DESCRIPTOR FLAGS...`.

`gateway.workers` starts it, and passes it a socket by its file descriptor.
"""

import sys

from chassis.native_library import use_one_heap
from chassis.server import run_service
from chassis.settings import load_settings
from chassis.worker_link import WorkerLink
from gateway.service import open_service
from gateway.settings import GatewaySettings


def main() -> None:
    """Serve until SIGTERM, or until the supervisor dies."""
    descriptor, *flags = sys.argv[1:]
    use_one_heap()
    run_service("gateway", load_settings(GatewaySettings, flags), open_service, WorkerLink(int(descriptor)))


if __name__ == "__main__":
    main()
