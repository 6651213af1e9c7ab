"""Run the gateway: `python -m gateway`."""

import sys

from chassis.extras import require_extras
from chassis.native_library import use_one_heap


def main() -> None:
    """Serve until SIGTERM."""
    require_extras("python -m gateway", "gateway")
    use_one_heap()
    from chassis.server import run_service
    from chassis.settings import load_settings
    from gateway.service import open_service
    from gateway.settings import GatewaySettings

    settings = load_settings(GatewaySettings, sys.argv[1:])
    if settings.workers == 1:
        run_service("gateway", settings, open_service)
        return
    from gateway.workers import run_workers

    run_workers(settings, sys.argv[1:])


if __name__ == "__main__":
    main()
