"""Read and check the sampling options of a request."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from chassis.errors import InvalidArgument
from tandem.v1 import sampling_pb2

MAX_LOGIT_BIASES = 1024
MAX_STOP_TOKENS = 64
MAX_LOGPROBS = 20
MAX_CONSTRAINT_BYTES = {"json_schema": 65536, "regex": 8192, "grammar": 65536}
MAX_CHOICES = 256
MAX_CHOICE_CHARACTERS = 1024


@dataclass(frozen=True, slots=True)
class Constraint:
    """A form that the text of an answer must have."""

    kind: Literal["json_schema", "regex", "choices", "grammar"]
    text: str  # schema, regular expression, choices as a JSON list, or a Lark grammar


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingOptions:
    """Options of one answer. Defaults are greedy decoding.

    Raises:
        InvalidArgument: reason 'BAD_SAMPLING', with the field.
    """

    max_tokens: int = 0  # most tokens of the answer. 0 uses the default of the service.
    min_tokens: int = 0  # tokens before an end-of-sequence or stop token is allowed
    temperature: float = 0.0  # 0 is greedy
    top_k: int = 0  # 0 keeps all
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=lambda: MappingProxyType({}))
    seed: int | None = None  # None picks one at random
    stop_token_ids: frozenset[int] = frozenset()
    ignore_eos: bool = False
    num_logprobs: int | None = None  # None reports none, 0 only the chosen token's
    constraint: Constraint | None = None

    def __post_init__(self) -> None:
        # Comparisons with NaN are false. Written so that NaN fails.
        _require(0 <= self.temperature <= 100, "temperature", "must be 0 to 100")
        _require(0 < self.top_p <= 1, "top_p", "must be above 0 and at most 1")
        _require(0 <= self.min_p <= 1, "min_p", "must be 0 to 1")
        _require(0 < self.repetition_penalty < math.inf, "repetition_penalty", "must be above 0 and finite")
        _require(-2 <= self.presence_penalty <= 2, "presence_penalty", "must be -2 to 2")
        _require(-2 <= self.frequency_penalty <= 2, "frequency_penalty", "must be -2 to 2")
        _require(len(self.logit_bias) <= MAX_LOGIT_BIASES, "logit_bias", f"takes at most {MAX_LOGIT_BIASES} entries")
        _require(
            all(-100 <= bias <= 100 for bias in self.logit_bias.values()), "logit_bias", "must be -100 to 100 each"
        )
        _require(len(self.stop_token_ids) <= MAX_STOP_TOKENS, "stop_token_ids", f"takes at most {MAX_STOP_TOKENS} ids")
        _require((self.num_logprobs or 0) <= MAX_LOGPROBS, "num_logprobs", f"must be at most {MAX_LOGPROBS}")
        if self.max_tokens:
            _require(self.min_tokens <= self.max_tokens, "min_tokens", "must be at most max_tokens")

    @property
    def penalises(self) -> bool:
        """Whether a penalty applies to tokens seen before."""
        return self.repetition_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0


def read_options(message: sampling_pb2.SamplingOptions, *, vocab_size: int) -> SamplingOptions:
    """Read the sampling options of a request.

    Raises:
        InvalidArgument: reason 'BAD_SAMPLING' or 'BAD_CONSTRAINT', with the field at fault.
    """
    for name, token_ids in (("logit_bias", message.logit_bias), ("stop_token_ids", message.stop_token_ids)):
        _require(
            all(token < vocab_size for token in token_ids),
            name,
            f"takes token ids below {vocab_size}",
        )
    return SamplingOptions(
        max_tokens=message.max_tokens,
        min_tokens=message.min_tokens,
        temperature=message.temperature,
        top_k=message.top_k,
        top_p=message.top_p if message.HasField("top_p") else 1.0,
        min_p=message.min_p,
        repetition_penalty=message.repetition_penalty if message.HasField("repetition_penalty") else 1.0,
        presence_penalty=message.presence_penalty,
        frequency_penalty=message.frequency_penalty,
        logit_bias=MappingProxyType(dict(message.logit_bias)),
        seed=message.seed if message.HasField("seed") else None,
        stop_token_ids=frozenset(message.stop_token_ids),
        ignore_eos=message.ignore_eos,
        num_logprobs=message.num_logprobs if message.HasField("num_logprobs") else None,
        constraint=_read_constraint(message),
    )


def _read_constraint(message: sampling_pb2.SamplingOptions) -> Constraint | None:
    kind = message.WhichOneof("constraint")
    if kind is None:
        return None
    if kind == "choices":
        texts = list(message.choices.texts)
        fits = 0 < len(texts) <= MAX_CHOICES and all(0 < len(text) <= MAX_CHOICE_CHARACTERS for text in texts)
        problem = f"must have 1 to {MAX_CHOICES} texts of 1 to {MAX_CHOICE_CHARACTERS} characters"
        constraint = Constraint(kind, json.dumps(texts))
    else:
        constraint = Constraint(kind, getattr(message, kind))
        fits = 0 < len(constraint.text.encode()) <= MAX_CONSTRAINT_BYTES[kind]
        problem = f"must have 1 to {MAX_CONSTRAINT_BYTES[kind]} bytes"
    if not fits:
        raise bad_constraint(kind, problem)
    return constraint


def bad_constraint(kind: str, problem: str) -> InvalidArgument:
    """Return the error for a constraint that cannot be used."""
    return InvalidArgument(f"sampling.{kind} {problem}.", reason="BAD_CONSTRAINT", field=f"sampling.{kind}")


def _require(valid: bool, name: str, problem: str) -> None:
    if not valid:
        raise InvalidArgument(f"sampling.{name} {problem}.", reason="BAD_SAMPLING", field=f"sampling.{name}")
