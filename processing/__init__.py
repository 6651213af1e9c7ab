"""Turn messages and images into model input, and tokens into text."""

from processing.chat_template import ChatMessage, ChatTemplate, Function, FunctionTool, ImagePart, TextPart
from processing.detokenizer import Detokenizer, Vocabulary
from processing.image_files import load_upright, open_image_file, rejected_image, upright_size
from processing.image_processors import ImageProcessor, Pixels, open_image_processor
from processing.processor import Processor
from processing.prompt import PromptBuilder, Segment, TextSegment, open_prompt_builder

__all__ = [
    "ChatMessage",
    "ChatTemplate",
    "Detokenizer",
    "Function",
    "FunctionTool",
    "ImagePart",
    "ImageProcessor",
    "Pixels",
    "Processor",
    "PromptBuilder",
    "Segment",
    "TextPart",
    "TextSegment",
    "Vocabulary",
    "load_upright",
    "open_image_file",
    "open_image_processor",
    "open_prompt_builder",
    "rejected_image",
    "upright_size",
]
