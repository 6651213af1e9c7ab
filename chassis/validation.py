"""Describe pydantic's errors in one sentence, without the values."""

from pydantic import ValidationError


def first_problem(error: ValidationError, *, whole: str = "file") -> str:
    """Return the first problem as 'field.name: message'.

    Args:
        error: as pydantic raised it.
        whole: name of the input, for a problem that belongs to no field.
    """
    return problems(error, whole=whole)[0]


def problems(error: ValidationError, *, whole: str = "file") -> list[str]:
    """Return every problem as 'field.name: message'; see `first_problem`."""
    return [f"{'.'.join(map(str, item['loc'])) or whole}: {item['msg']}" for item in error.errors(include_url=False)]
