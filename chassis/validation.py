"""Describe pydantic errors in one sentence, without the values."""

from pydantic import ValidationError


def first_problem(error: ValidationError, *, whole: str = "file") -> str:
    """Return the first problem as 'field.name: message'.

    Args:
        error: the error that pydantic raised.
        whole: name of the input, used for a problem of no single field.
    """
    return problems(error, whole=whole)[0]


def problems(error: ValidationError, *, whole: str = "file") -> list[str]:
    """Return all problems as 'field.name: message'.

    See `first_problem` for the arguments.
    """
    return [f"{'.'.join(map(str, item['loc'])) or whole}: {item['msg']}" for item in error.errors(include_url=False)]
