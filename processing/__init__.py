"""Turn messages and images into model input, and tokens into text."""

from processing.chat_template import ChatMessage, ChatTemplate, ImagePart, TextPart
from processing.detokenizer import Detokenizer, Vocabulary
from processing.image_files import FORMATS, damaged_image, open_image_file, rejected_image, upright_size
from processing.image_processors import ImageProcessor, Pixels, open_image_processor
from processing.images import to_rgb, turn_upright
from processing.prompt import PromptBuilder, Segment, TextSegment, open_prompt_builder

__all__ = [
    "FORMATS",
    "ChatMessage",
    "ChatTemplate",
    "Detokenizer",
    "ImagePart",
    "ImageProcessor",
    "Pixels",
    "PromptBuilder",
    "Segment",
    "TextPart",
    "TextSegment",
    "Vocabulary",
    "damaged_image",
    "open_image_file",
    "open_image_processor",
    "open_prompt_builder",
    "rejected_image",
    "to_rgb",
    "turn_upright",
    "upright_size",
]
