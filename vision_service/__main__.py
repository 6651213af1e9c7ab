"""`python -m vision_service`: the vision stage as a process."""

import os
import sys

# The threads of a forward pass wait for one another after every operation. If they spin meanwhile, as they do by
# default, they hold the cores that decoding needs: that cost almost half of the images a second.
# torch reads it when it is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from chassis.server import run_service
from chassis.settings import load_settings
from vision_service.service import VisionSettings, open_service

# The forward pass takes the interpreter back after each of its hundreds of operations, and each time a thread that
# decodes, or the event loop, may keep it this long. Python's own 5 ms are longer than most operations.
_SWITCH_INTERVAL_S = 0.0001

if __name__ == "__main__":
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    run_service("vision", load_settings(VisionSettings, sys.argv[1:]), open_service)
