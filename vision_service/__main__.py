"""`python -m vision_service`: the vision stage as a process."""

import sys

from chassis.server import run_service
from chassis.settings import load_settings
from vision_service.service import VisionSettings, open_service

if __name__ == "__main__":
    run_service("vision", load_settings(VisionSettings, sys.argv[1:]), open_service)
