"""Run the HTTP door: `python -m http_gateway`."""

import sys

from chassis.extras import require_extras


def main() -> None:
    """Serve until SIGTERM."""
    require_extras("python -m http_gateway", "http")
    from chassis.process import run_process
    from chassis.settings import load_settings
    from http_gateway.door import HttpSettings
    from http_gateway.service import serve

    settings = load_settings(HttpSettings, sys.argv[1:])
    run_process("http", settings, lambda life: serve(settings, life))


if __name__ == "__main__":
    main()
