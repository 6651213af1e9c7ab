"""The demo's tokenizer: a byte-level BPE learnt from the demo's own English and Chinese.

Every text can be written with it, byte by byte where no longer token fits.
"""

import random
from collections.abc import Iterator

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from checkpoint.tokenizer import SPECIAL_TOKENS
from demo.questions import LANGUAGES, TOPICS, ask
from demo.scenes import TRAINING_SEEDS, make_scene

VOCABULARY_SIZE = 1024  # at most; all that the demo says is covered by fewer
NUM_SCENES = 4000  # whose questions and answers are learnt from

# Chinese characters that tie words together: pronouns, numbers, measure words, particles.
TIES = "的是有在这那它你吗和了一两三几没个件块只顶把张"
# What a token never crosses: a word with the blank before it, one digit, one tie, at most two other Chinese characters
# (the length of most words), a mark, blanks. Were Chinese left in one piece, frequent sentences would melt into single
# tokens and compounds such as 真皮 would have none of their own.
PIECES = Regex(rf" ?[A-Za-z]+|\d|[{TIES}]|[\p{{Han}}&&[^{TIES}]]{{1,2}}|[^\s\w]|\s+")


def train_tokenizer() -> Tokenizer:
    """Learn the tokenizer; the same one every time."""
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
