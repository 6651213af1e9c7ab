"""Turn a request into a streamed answer."""

from gateway.answer.answer_reader import Send
from gateway.answer.checks import MAX_STOP_STRINGS, Limits
from gateway.answer.exchange import ExchangeBuilder
from gateway.answer.question import QuestionBuilder
from gateway.answer.report import Report
from gateway.answer.signs import Signs
from gateway.answer.tokenization import Tokenization

__all__ = [
    "MAX_STOP_STRINGS",
    "ExchangeBuilder",
    "Limits",
    "QuestionBuilder",
    "Report",
    "Send",
    "Signs",
    "Tokenization",
]
