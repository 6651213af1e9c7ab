"""Small SentencePiece models, trained for tests, and texts to encode."""

import io
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sentencepiece
from tokenizers import Tokenizer

from checkpoint.sentencepiece import to_tokenizer_json

REPOSITORY = Path(__file__).parents[2]
COMMON = "的一是不了在人有我他这个们中来上大为和国地到以说时要就出会可也你对生能而子那得于着下自之年过发后作里用道"
RARE = "龘靐齉麤鱻讟饕餮魑魅魍魉"
OTHERS = "éüßñçøåÆœ①②㍿ｱｲｳＡＢＣ½™…“”‘’–—日本語ひらがなカタカナ한국어العربيةไทย🙂🎉👩🇩"
SPECIALS = {"bos_token": "<s>", "eos_token": {"content": "</s>", "lstrip": False}, "unk_token": "<unk>"}

# Settings of SentencePiece's trainer. The first are Llama's.
KINDS: dict[str, dict[str, Any]] = {
    "bpe as llama": {
        "model_type": "bpe",
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "split_digits": True,
    },
    "bpe with a character map": {"model_type": "bpe", "byte_fallback": True},
    "bpe without bytes": {"model_type": "bpe"},
    "unigram": {"model_type": "unigram"},
    "unigram with bytes": {"model_type": "unigram", "byte_fallback": True},
    "unigram without prefix": {
        "model_type": "unigram",
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "add_dummy_prefix": False,
        "remove_extra_whitespaces": False,
    },
}


@dataclass(frozen=True)
class Trained:
    """A folder of an older release, and its model."""

    kind: str
    folder: Path
    original: sentencepiece.SentencePieceProcessor
    converted: Tokenizer

    def score(self, ids: list[int]) -> float:
        """Return the log-probability of a segmentation, without its rare characters."""
        rare = (self.original.is_byte, self.original.is_unknown)
        return sum(self.original.get_score(one) for one in ids if not any(is_rare(one) for is_rare in rare))


def english() -> list[str]:
    """Return the lines of a text that never changes."""
    lines = (REPOSITORY / "LICENSE").read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if len(line.strip()) > 20]


def texts(seed: int, count: int) -> Iterator[str]:
    """Yield English, Chinese and mixed sentences."""
    rng, lines = random.Random(seed), english()
    for _ in range(count):
        chinese = "".join(rng.choices(COMMON, k=rng.randrange(1, 30)))
        match rng.randrange(5):
            case 0:
                yield rng.choice(lines)
            case 1:
                yield f"{chinese}，{''.join(rng.choices(RARE, k=rng.randrange(4)))}？"
            case 2:
                yield f"{rng.choice(lines)[:40]} {chinese} {rng.randrange(10**9)}"
            case 3:
                yield rng.choice(["  ", "\n", "\t", " \n\n"]).join([chinese, rng.choice(lines)[-20:], ""])
            case _:
                yield "".join(rng.choices(OTHERS + RARE + COMMON[:20] + "abc ,.", k=rng.randrange(40)))


def train(folder: Path, **settings: Any) -> None:
    """Write a small `tokenizer.model` and its special tokens."""
    corpus = [text for text in texts(0, 4000) if not set(text) & set(RARE)]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus),
        model_writer=model,
        vocab_size=900,
        character_coverage=0.99,
        minloglevel=2,
        num_threads=1,
        **settings,
    )
    folder.mkdir()
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    (folder / "special_tokens_map.json").write_text(json.dumps(SPECIALS))


def convert(kind: str, folder: Path) -> Trained:
    train(folder, **KINDS[kind])
    original = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    return Trained(kind, folder, original, Tokenizer.from_str(to_tokenizer_json(folder)))
