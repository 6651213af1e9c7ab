"""A byte-level BPE tokenizer, trained on the demo's sentences.

It encodes any text, and falls back to bytes where no longer token fits.
"""

import random
from collections.abc import Iterator

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from checkpoint.tokenizer import SPECIAL_TOKENS
from demo.questions import LANGUAGES, TOPICS, ask
from demo.scenes import TRAINING_SEEDS, make_scene

VOCABULARY_SIZE = 1024  # upper limit. The demo's sentences need fewer tokens.
NUM_SCENES = 4000  # the tokenizer learns from the questions and answers about these

# Chinese characters that tie words together: pronouns, numbers, measure words, particles.
TIES = "的是有在这那它你吗和了一两三几没个件块只顶把张"
# The text is first split into pieces, and a token never crosses a border between them. A piece is a word with the blank
# before it, one digit, one tie, up to two other Chinese characters (most words have two), a punctuation mark, or
# blanks. Without the split of Chinese, frequent sentences would become single tokens, and compounds such as 真皮 would
# have no token.
PIECES = Regex(rf" ?[A-Za-z]+|\d|[{TIES}]|[\p{{Han}}&&[^{TIES}]]{{1,2}}|[^\s\w]|\s+")


def train_tokenizer() -> Tokenizer:
    """Train the tokenizer. The result is always the same."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(PIECES, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        min_frequency=2,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sentences(), trainer)
    return tokenizer


def sentences() -> Iterator[str]:
    """Yield questions and answers about training scenes."""
    for seed in TRAINING_SEEDS[:NUM_SCENES]:
        scene, rng = make_scene(seed), random.Random(seed)
        for language in LANGUAGES:
            for topic in TOPICS:
                for turn in ask(scene, rng, language, topic).turns:
                    yield turn.question
                    yield turn.answer
