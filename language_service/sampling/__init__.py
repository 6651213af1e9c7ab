"""Choose the next tokens under sampling options and constraints."""

from language_service.sampling.costly_workers import costly_workers
from language_service.sampling.grammar import Grammar, GrammarCompiler, advance, wait_for_masks
from language_service.sampling.options import SamplingOptions, read_options
from language_service.sampling.sampler import Choice, Logprobs, choose_with_drafts
from language_service.sampling.state import SamplingState

__all__ = [
    "Choice",
    "Grammar",
    "GrammarCompiler",
    "Logprobs",
    "SamplingOptions",
    "SamplingState",
    "advance",
    "choose_with_drafts",
    "costly_workers",
    "read_options",
    "wait_for_masks",
]
