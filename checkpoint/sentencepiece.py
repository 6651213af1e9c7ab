"""Turn a SentencePiece model into `tokenizer.json`. Needs no torch.

Older releases hold `tokenizer.model`, and name their special tokens in JSON files beside it. The files are parsed as
data. Code in the folder is never run.

The result gives the ids that SentencePiece gives, with two exceptions of the tokenizers library. A unigram model may
choose another segmentation of the same score, because sums are rounded differently. A normalizer with a character map
loses a combining mark after a character that it rewrites.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Self, TypeVar

from pydantic import BaseModel, ConfigDict, RootModel, ValidationError
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from chassis.errors import FailedPrecondition
from chassis.validation import first_problem

MODEL_FILE = "tokenizer.model"
SPECIALS_FILE = "special_tokens_map.json"
ADDED_FILE = "added_tokens.json"
CONFIG_FILE = "tokenizer_config.json"

_SPACE = "▁"  # SentencePiece's spelling of a space
_UNIGRAM, _BPE = 1, 2  # TrainerSpec.ModelType
_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4  # ModelProto.SentencePiece.Type

# A converted tokenizer must encode these as SentencePiece does.
_PROBES = (
    "",
    "The quick brown fox, 1234567890.",
    " two  spaces,\ttab and\nnew line ",
    "图像里有什么？红色的杯子。",
    "混合 text 与 naïve café ﬁ ① ½",
    "🙂🎉 \u4dff\U00020000 def f(x): return x**2",
)


class _Token(BaseModel):
    """A token that is matched before the model runs."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    content: str
    id: int | None = None  # None if its file gives no id
    special: bool = False
    lstrip: bool = False  # also takes the spaces before it
    rstrip: bool = False

    def merged(self, other: Self) -> Self:
        """Return this token with the fields that `other` sets."""
        return self.model_copy(update=other.model_dump(exclude_unset=True, exclude_none=True))


class _AddedFile(RootModel[dict[str, int]]):
    """`added_tokens.json`: ids by token."""


class _ConfigFile(BaseModel):
    """The part of `tokenizer_config.json` that concerns tokens, by id."""

    added_tokens_decoder: dict[int, _Token] = {}


class _SpecialsFile(RootModel[dict[str, str | _Token | list[str | _Token] | None]]):
    """`special_tokens_map.json`: tokens by use."""


_File = TypeVar("_File", bound=BaseModel)


def to_tokenizer_json(folder: Path) -> str:
    """Return `tokenizer.json` for a folder with `tokenizer.model`.

    `special_tokens_map.json` names the special tokens. `added_tokens.json` and `tokenizer_config.json` may give ids
    and flags of tokens beyond the model's vocabulary.

    Args:
        folder: holds the files.

    Raises:
        FailedPrecondition: reason 'BAD_CHECKPOINT', a file is missing or invalid, a special token has no id, or the
            model uses a feature that `tokenizer.json` cannot express. 'NOT_INSTALLED', sentencepiece is missing.
    """
    missing = [name for name in (MODEL_FILE, SPECIALS_FILE) if not (folder / name).is_file()]
    if missing:
        raise _bad(folder, f"has no {' and no '.join(missing)}")
    proto = _read_model(folder)
    tokenizer = _build(folder, proto)
    _compare(folder, proto, tokenizer)
    _add_tokens(folder, tokenizer, _added_tokens(folder, proto))
    return str(tokenizer.to_str())


def _read_model(folder: Path) -> Any:
    """Return the parsed `ModelProto`."""
    try:
        from sentencepiece import sentencepiece_model_pb2
    except ImportError as error:
        raise FailedPrecondition(
            f"Reading {MODEL_FILE} needs the extra import: pip install 'tandem-serving[import]'.",
            reason="NOT_INSTALLED",
        ) from error
    proto = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    try:
        proto.ParseFromString((folder / MODEL_FILE).read_bytes())
    except Exception as error:  # protobuf's two implementations raise different errors
        raise _bad(folder, f"has a damaged {MODEL_FILE}") from error
    if not proto.pieces:
        raise _bad(folder, f"has no tokens in {MODEL_FILE}")
    return proto


def _build(folder: Path, proto: Any) -> Tokenizer:
    """Return a tokenizer with the model's pieces, without added tokens."""
    trainer, pieces = proto.trainer_spec, proto.pieces
    options = {"byte_fallback": trainer.byte_fallback}
    if trainer.model_type == _BPE:
        vocabulary = {piece.piece: token_id for token_id, piece in enumerate(pieces)}
        unknown = pieces[trainer.unk_id].piece
        tokenizer = Tokenizer(models.BPE(vocabulary, _merges(pieces), unk_token=unknown, fuse_unk=True, **options))
    elif trainer.model_type == _UNIGRAM:
        scores = [(piece.piece, piece.score) for piece in pieces]
        tokenizer = Tokenizer(models.Unigram(scores, unk_id=trainer.unk_id, **options))
        tokenizer.pre_tokenizer = _split_reserved(pieces)
    else:
        raise _bad(folder, f"has a {MODEL_FILE} that is neither BPE nor unigram, the kinds that are supported")
    tokenizer.normalizer = _normalizer(proto.normalizer_spec)
    strip = [decoders.Strip(" ", left=1)] if proto.normalizer_spec.add_dummy_prefix else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return tokenizer


def _merges(pieces: Iterable[Any]) -> list[tuple[str, str]]:
    """Return the merges of a BPE model, best first.

    SentencePiece stores no merges. It joins the neighbours whose joined piece has the best score. Reserved pieces are
    never joined, so text cannot become a special token.
    """
    scores = {piece.piece: piece.score for piece in pieces if piece.type == _NORMAL}
    ranked = sorted(scores, key=lambda piece: -scores[piece])
    splits = ((piece[:at], piece[at:]) for piece in ranked for at in range(1, len(piece)))
    return [(left, right) for left, right in splits if left in scores and right in scores]


def _split_reserved(pieces: Iterable[Any]) -> pre_tokenizers.PreTokenizer:
    """Return a step that breaks reserved pieces in text.

    The unigram model of the tokenizers library knows no reserved pieces. It would turn the text '</s>' into a special
    token.
    """
    tails = defaultdict(list)
    for piece in pieces:
        if piece.type != _NORMAL and len(piece.piece) > 1:
            tails[piece.piece[0]].append(re.escape(piece.piece[1:]))
    patterns = [f"{re.escape(first)}(?={'|'.join(sorted(rest))})" for first, rest in sorted(tails.items())]
    return pre_tokenizers.Split(Regex("|".join(patterns)), behavior="merged_with_previous")


def _normalizer(spec: Any) -> normalizers.Normalizer:
    """Return the steps of a `NormalizerSpec` in SentencePiece's order."""
    steps: list[normalizers.Normalizer] = []
    if spec.precompiled_charsmap:
        steps.append(normalizers.Precompiled(spec.precompiled_charsmap))
    if spec.remove_extra_whitespaces:
        steps.append(normalizers.Replace(Regex(r"\A +| +\z"), ""))
        steps.append(normalizers.Replace(Regex(" {2,}"), " "))
    if spec.add_dummy_prefix:
        steps.append(normalizers.Prepend(" "))
    return normalizers.Sequence([*steps, normalizers.Replace(" ", _SPACE)])


def _compare(folder: Path, proto: Any, tokenizer: Tokenizer) -> None:
    """Check the tokenizer against SentencePiece itself."""
    from sentencepiece import SentencePieceProcessor

    original = SentencePieceProcessor(model_proto=proto.SerializeToString())
    for probe in _PROBES:
        if original.encode(probe) != tokenizer.encode(probe).ids:
            raise _bad(folder, f"has a {MODEL_FILE} that splits text in a way tokenizer.json cannot express")


def _added_tokens(folder: Path, proto: Any) -> list[_Token]:
    """Return the tokens to match before the model.

    They are in the order of their ids. The unknown piece is not among them, because the model itself writes it for
    ordinary text.
    """
    known = {piece.piece: token_id for token_id, piece in enumerate(proto.pieces)}
    found = {token.content: token for token in _reserved(proto.pieces)}
    for token in _named_tokens(folder):
        content = token.content
        merged = found.get(content, _Token(content=content, id=known.get(content))).merged(token)
        if content in known and merged.id != known[content]:
            problem = f"gives the token {content!r} the id {merged.id}, but {MODEL_FILE} gives it {known[content]}"
            raise _bad(folder, problem)
        found[content] = merged
    found.pop(proto.pieces[proto.trainer_spec.unk_id].piece, None)
    nameless = sorted(token.content for token in found.values() if token.id is None)
    if nameless:
        raise _bad(folder, f"names tokens without an id in any file: {', '.join(nameless)}")
    return sorted(found.values(), key=lambda token: token.id or 0)


def _reserved(pieces: Iterable[Any]) -> Iterator[_Token]:
    """Yield the reserved tokens of the model itself."""
    for token_id, piece in enumerate(pieces):
        # A single character that the user defined is an ordinary piece of text.
        if piece.type == _CONTROL or (piece.type == _USER_DEFINED and len(piece.piece) > 1):
            yield _Token(content=piece.piece, id=token_id, special=piece.type == _CONTROL)


def _named_tokens(folder: Path) -> Iterator[_Token]:
    """Yield the tokens that the JSON files name."""
    for content, token_id in _read_json(folder, ADDED_FILE, _AddedFile).root.items():
        yield _Token(content=content, id=token_id)
    for token_id, token in _read_json(folder, CONFIG_FILE, _ConfigFile).added_tokens_decoder.items():
        yield token.merged(_Token(content=token.content, id=token_id))
    for value in _read_json(folder, SPECIALS_FILE, _SpecialsFile).root.values():
        for entry in value if isinstance(value, list) else [value]:
            if entry:
                token = entry if isinstance(entry, _Token) else _Token(content=entry)
                yield token.merged(_Token(content=token.content, special=True))


def _read_json(folder: Path, name: str, form: type[_File]) -> _File:
    """Return a JSON file, empty if it is missing."""
    path = folder / name
    try:
        return form.model_validate_json(path.read_bytes() if path.is_file() else b"{}")
    except ValidationError as error:
        raise _bad(folder, f"has a {name} that is not valid: {first_problem(error)}") from error


def _add_tokens(folder: Path, tokenizer: Tokenizer, tokens: Iterable[_Token]) -> None:
    """Add tokens, new ones at the next free ids."""
    for token in tokens:
        # Normalized tokens would be matched with a space before them.
        flags = {"special": token.special, "lstrip": token.lstrip, "rstrip": token.rstrip}
        tokenizer.add_tokens([AddedToken(token.content, normalized=False, **flags)])
        given = tokenizer.token_to_id(token.content)
        if given != token.id:
            raise _bad(folder, f"gives the token {token.content!r} the id {token.id}, but the next free id is {given}")


def _bad(folder: Path, problem: str) -> FailedPrecondition:
    return FailedPrecondition(f"The folder {folder.name} {problem}.", reason="BAD_CHECKPOINT", where=folder)
