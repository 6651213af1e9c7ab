"""Say in one sentence which field of a JSON body is wrong."""

from collections.abc import Iterable
from difflib import get_close_matches

from pydantic import ValidationError

from chassis.errors import InvalidArgument
from http_gateway.schemas.base import TAG

_MAX_PLACE_CHARACTERS = 200  # names of unknown fields are the client's, of any length
# Fields of other servers that would change the answer, with the remedy.
REFUSED = {
    "audio": "answers are text",
    "best_of": "use n",
    "chat_template": "a release brings its chat template",
    "function_call": "use tool_choice",
    "functions": "use tools",
    "length_penalty": "there is no beam search",
    "prompt_logprobs": "only tokens of the answer have log-probabilities",
    "use_beam_search": "there is no beam search",
    "web_search_options": "the model cannot search",
}


def as_invalid_argument(error: ValidationError, known: Iterable[str]) -> InvalidArgument:
    """Return the first problem of a body, without its values.

    Args:
        error: the error that pydantic raised.
        known: names of the body's fields.
    """
    problem = error.errors(include_url=False, include_context=True)[0]
    place = place_of(problem["loc"])
    kind, message = problem["type"], problem["msg"].removeprefix("Value error, ")
    if kind == "json_invalid":
        return InvalidArgument(f"The body is not JSON: {message.removeprefix('Invalid JSON: ')}.", reason="BAD_JSON")
    if kind == "extra_forbidden":
        name = str(problem["loc"][-1])
        remedy = REFUSED.get(name)
        if remedy is not None and len(problem["loc"]) == 1:
            return InvalidArgument(f"{name} is not supported: {remedy}.", reason="UNSUPPORTED_FIELD", field=name)
        hint = get_close_matches(name, known, n=1) if len(problem["loc"]) == 1 else []
        remedy = f"did you mean {hint[0]}?" if hint else "check its name."
        return InvalidArgument(f"There is no field {place}: {remedy}", reason="UNKNOWN_FIELD", field=place)
    if kind == "missing":
        return InvalidArgument(f"{place} is missing.", reason="MISSING_FIELD", field=place)
    return InvalidArgument(f"{place or 'The body'}: {message}.", reason="BAD_FIELD", field=place or None)


def place_of(loc: tuple[int | str, ...]) -> str:
    """Return a place as clients write it: messages[0].content."""
    place = ""
    for part in loc:
        if isinstance(part, int):
            place += f"[{part}]"
        elif not part.startswith(TAG) and part != "[key]":  # pydantic's mark of a key that is wrong itself
            place += f".{part}" if place else part
    return place[:_MAX_PLACE_CHARACTERS]
