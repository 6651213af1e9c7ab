"""Model info of the tiny checkpoint, for scripted stages."""

import hashlib
from pathlib import Path

from checkpoint.manifest import read_manifest, tokenizer_digest
from tandem.v1 import model_pb2

TAG = "tiny-v1.0.0"
ENCODER_ID = hashlib.sha256(b"a scripted encoder").digest()
NUM_VISUAL_TOKENS, WIDTH = 32, 64


def vision_info(store: Path) -> model_pb2.ModelInfo:
    """Return the info of a vision half that fits `language_info`."""
    return model_pb2.ModelInfo(
        tag=TAG,
        state=model_pb2.MODEL_STATE_READY,
        half_digest=read_manifest(store / TAG).vision.digest,
        vision=model_pb2.VisionModelInfo(
            encoder_id=ENCODER_ID, num_visual_tokens=NUM_VISUAL_TOKENS, token_width=WIDTH, max_batch_size=8
        ),
    )


def language_info(store: Path, takes_whole_prompts: bool = True) -> model_pb2.ModelInfo:
    """Return the info of the tiny checkpoint's language half."""
    manifest = read_manifest(store / TAG)
    return model_pb2.ModelInfo(
        tag=TAG,
        state=model_pb2.MODEL_STATE_READY,
        half_digest=manifest.language.digest,
        language=model_pb2.LanguageModelInfo(
            vision_digest=manifest.language.vision_digest,
            tokenizer_digest=tokenizer_digest(store / TAG),
            width=WIDTH,
            context_length=1024,
            num_visual_tokens=NUM_VISUAL_TOKENS,
            max_images=8,
            takes_whole_prompts=takes_whole_prompts,
        ),
    )
