"""Turn messages and images into model input, and tokens into text."""

from processing.chat_template import ChatMessage, ChatTemplate, ImagePart, TextPart
from processing.detokenizer import Detokenizer, Vocabulary
from processing.images import PREPROCESSING, to_pixels, to_rgb, turn_upright
from processing.prompt import PromptBuilder, Segment, TextSegment, open_prompt_builder

__all__ = [
    "PREPROCESSING",
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
    "to_pixels",
    "to_rgb",
    "turn_upright",
]
