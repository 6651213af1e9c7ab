"""Read, check and write `config.json`. Needs no torch."""

import json
from pathlib import Path

from pydantic import ValidationError

from chassis.errors import FailedPrecondition
from chassis.validation import problems
from checkpoint.families import FAMILIES, ModelConfig
from checkpoint.small_files import read_small_file

CONFIG_FILE = "config.json"


def read_config(folder: Path) -> ModelConfig:
    """Read `config.json` of a checkpoint folder.

    Raises:
        FailedPrecondition: BAD_CHECKPOINT, the file is missing or invalid. The message names every bad field.
    """
    try:
        text = read_small_file(folder / CONFIG_FILE).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise FailedPrecondition(
            f"Checkpoint {folder.name} has no readable {CONFIG_FILE}.", reason="BAD_CHECKPOINT"
        ) from error
    return parse_config(text, f"{CONFIG_FILE} of {folder.name}")


def parse_config(text: str | bytes, source: str) -> ModelConfig:
    """Parse a configuration.

    Args:
        text: content of a `config.json`.
        source: its name for messages.

    Raises:
        FailedPrecondition: BAD_CHECKPOINT, the text is invalid. The message names every bad field.
    """
    try:
        return _family(text).model_validate_json(text)
    except ValidationError as error:
        found = "; ".join(problems(error))
        raise FailedPrecondition(f"The file {source} is not valid: {found}.", reason="BAD_CHECKPOINT") from error


def write_config(config: ModelConfig, folder: Path) -> None:
    """Write `config.json` into a checkpoint folder."""
    (folder / CONFIG_FILE).write_text(config.model_dump_json(indent=2) + "\n")


def _family(text: str | bytes) -> type[ModelConfig]:
    """Return the family that a configuration names.

    Invalid JSON gives the first family, whose validation then names the error.
    """
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError):  # the latter for lists in lists
        fields = None
    name = fields.get("family", "resampler") if isinstance(fields, dict) else "resampler"
    return FAMILIES.get(name, FAMILIES["resampler"]) if isinstance(name, str) else FAMILIES["resampler"]
