"""Run the vision service: `python -m vision_service`."""

import os
import sys

from chassis.extras import require_extras

# The forward pass needs the interpreter lock again after each of its hundreds of operations. Each time, a decoding
# thread or the event loop may keep the lock this long. Python's default of 5 ms is longer than most operations.
_SWITCH_INTERVAL_S = 0.0001


def main() -> None:
    """Serve until SIGTERM."""
    require_extras("python -m vision_service", "stages")
    # The threads of a forward pass wait for one another after every operation. By default they spin while they wait,
    # and occupy the cores that decoding needs. That cost almost half of the throughput. torch reads this on import.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from chassis.server import run_service
    from chassis.settings import load_settings
    from vision_service.service import VisionSettings, open_service

    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    run_service("vision", load_settings(VisionSettings, sys.argv[1:]), open_service)


if __name__ == "__main__":
    main()
