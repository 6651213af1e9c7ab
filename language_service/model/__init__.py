"""The decoder in plain torch."""

from language_service.model.attention import Attend
from language_service.model.decoder import Decoder
from language_service.model.rotary import Rotary, rotate

__all__ = [
    "Attend",
    "Decoder",
    "Rotary",
    "rotate",
]
