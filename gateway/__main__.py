"""Run the gateway: `python -m gateway`."""

import sys

from chassis.extras import require_extras


def main() -> None:
    """Serve until SIGTERM."""
    require_extras("python -m gateway", "gateway")
    from chassis.server import run_service
    from chassis.settings import load_settings
    from gateway.service import open_service
    from gateway.settings import GatewaySettings

    run_service("gateway", load_settings(GatewaySettings, sys.argv[1:]), open_service)


if __name__ == "__main__":
    main()
