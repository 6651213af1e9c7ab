"""Tokenizer and chat template of new checkpoints."""

from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from chassis.errors import FailedPrecondition
from checkpoint.families import ModelConfig

# The id of a special token is its position here.
SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",  # ends an answer
    "<|vision_start|>",
    "<|image_pad|>",  # placeholder of one image
    "<|vision_end|>",
)

CHAT_TEMPLATE = (Path(__file__).parent / "chat_template.jinja").read_text(encoding="utf-8")


def byte_tokenizer() -> Tokenizer:
    """Return a byte-level BPE without merges.

    It has six special tokens, then one token per byte.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate((*SPECIAL_TOKENS, *alphabet))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    return tokenizer


def read_tokenizer(tokenizer_json: str) -> Tokenizer:
    """Return the tokenizer of a `tokenizer.json`.

    Raises:
        FailedPrecondition: BAD_CHECKPOINT, the text is not a tokenizer.
    """
    try:
        return Tokenizer.from_str(tokenizer_json)
    except Exception as error:  # the library raises bare Exception
        raise FailedPrecondition("The file tokenizer.json is not a tokenizer.", reason="BAD_CHECKPOINT") from error


def check_tokenizer(tokenizer: Tokenizer, config: ModelConfig) -> int:
    """Check that a tokenizer fits a model.

    Returns the id of the image token.

    Raises:
        FailedPrecondition: BAD_CHECKPOINT, the tokenizer has ids beyond the vocabulary or lacks the image token.
    """
    highest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
    if highest >= config.language.vocab_size:
        raise FailedPrecondition(
            f"The tokenizer has the token id {highest}, but the model has only {config.language.vocab_size} token ids.",
            reason="BAD_CHECKPOINT",
        )
    image_id = tokenizer.token_to_id(config.image_token)
    if image_id is None:
        raise FailedPrecondition(f"The tokenizer lacks the image token {config.image_token}.", reason="BAD_CHECKPOINT")
    return image_id
