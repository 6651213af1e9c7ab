"""Choose the next tokens under sampling options and constraints."""

from language_service.sampling.grammar import Grammar, GrammarCompiler
from language_service.sampling.options import SamplingOptions, read_options
from language_service.sampling.sampler import Choice, Logprobs, SamplingState, choose_with_drafts

__all__ = [
    "Choice",
    "Grammar",
    "GrammarCompiler",
    "Logprobs",
    "SamplingOptions",
    "SamplingState",
    "choose_with_drafts",
    "read_options",
]
