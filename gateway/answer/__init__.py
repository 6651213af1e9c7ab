"""From a checked request to a streamed answer."""

from gateway.answer.checks import MAX_STOP_STRINGS, Limits
from gateway.answer.exchange import Exchange, Send
from gateway.answer.question import QuestionMaker
from gateway.answer.report import Report

__all__ = ["MAX_STOP_STRINGS", "Exchange", "Limits", "QuestionMaker", "Report", "Send"]
