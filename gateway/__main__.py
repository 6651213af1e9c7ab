"""Run the gateway: `python -m gateway`."""

import sys

from chassis.server import run_service
from chassis.settings import load_settings
from gateway.service import open_service
from gateway.settings import GatewaySettings

if __name__ == "__main__":
    run_service("gateway", load_settings(GatewaySettings, sys.argv[1:]), open_service)
