"""The decoder in plain torch."""

from language_service.model.attention import Attend, causal_attend
from language_service.model.decoder import Decoder, DecoderLayer
from language_service.model.deepstack import ImageRows
from language_service.model.positions import Grid, shift_after, shift_at, token_positions
from language_service.model.rotary import Rotary, rotate

__all__ = [
    "Attend",
    "Decoder",
    "DecoderLayer",
    "Grid",
    "ImageRows",
    "Rotary",
    "causal_attend",
    "rotate",
    "shift_after",
    "shift_at",
    "token_positions",
]
