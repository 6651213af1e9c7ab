"""Turn text and images into what a checkpoint expects, before the model."""

from processing.chat_template import ChatMessage, ChatTemplate, ImagePart, TextPart
from processing.detokenizer import Detokenizer, Vocabulary
from processing.prompt import PromptBuilder, Segment, TextSegment, open_prompt_builder

__all__ = [
    "ChatMessage",
    "ChatTemplate",
    "Detokenizer",
    "ImagePart",
    "PromptBuilder",
    "Segment",
    "TextPart",
    "TextSegment",
    "Vocabulary",
    "open_prompt_builder",
]
