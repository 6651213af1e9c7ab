"""Run the language service: `python -m language_service`."""

import sys

from chassis.extras import require_extras

# The engine's thread needs the interpreter's lock after each forward pass. The event loop may keep it this long, for
# example while it reads a constraint. Python's default of 5 ms is a third of a step.
_SWITCH_INTERVAL_S = 0.0005


def main() -> None:
    """Serve until SIGTERM."""
    require_extras("python -m language_service", "stages")
    from chassis.server import run_service
    from chassis.settings import load_settings
    from language_service.service import LanguageSettings, open_follower, open_service

    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    settings = load_settings(LanguageSettings, sys.argv[1:])
    run_service("language", settings, open_follower if settings.is_follower else open_service)


if __name__ == "__main__":
    main()
