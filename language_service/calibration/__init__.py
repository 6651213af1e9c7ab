"""Round matrices by the errors of their outputs."""

from language_service.calibration.prompts import CalibrationImage, Prompt
from language_service.calibration.rounder import CalibratedRounder
from language_service.model import Grid

__all__ = ["CalibratedRounder", "CalibrationImage", "Grid", "Prompt"]
