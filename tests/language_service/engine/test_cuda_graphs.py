"""Decoding steps of fixed shapes: equal to the ordinary ones, and right again when replayed with another batch.

CUDA graphs need a GPU. What they ask of a step does not: replayed operation by operation, on the memory and with the
arguments it was recorded with, it must compute whatever batch lies in its inputs' place.
"""

from typing import Any

import pytest
import torch
from structlog.testing import capture_logs
from torch import Tensor
from torch.utils._pytree import tree_leaves

from language_service.engine.cuda_graphs import CudaRecorder, RecordedSteps, Run
from language_service.engine.kv_cache import CacheConfig, PagedCache, Span
from language_service.engine.runner import Piece, PlacedImage, Runner
from language_service.engine.serving import ServingDecoder
from tests.language_service.small import CONFIG, make_cache, make_decoder, make_image
from tests.language_service.watching import Watching

DECODER = ServingDecoder(CONFIG, dict(make_decoder(CONFIG).state_dict()))
BLOCK_SIZE = 4


class Recorder:
    """Stands where `CudaRecorder` does, and counts."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, run: Run) -> Run:
        self.count += 1
        calls: list[tuple[Any, Any, Any, Any]] = []
        with Watching(lambda *call: calls.append(call)):
            logits_NV = run()

        def replay() -> Tensor:
            for func, args, kwargs, out in calls:
                for old, new in zip(tree_leaves(out), tree_leaves(func(*args, **kwargs)), strict=True):
                    if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                        old.copy_(new)  # where those after it look for it
            return logits_NV

        return replay


def make_filled_cache(seed: int = 0) -> PagedCache:
    """Return a cache of 64 blocks that all hold something."""
    cache = make_cache(64, BLOCK_SIZE)
    cache.kv.copy_(torch.randn(cache.kv.shape, generator=torch.Generator().manual_seed(seed)))
    return cache


def make_spans(starts: list[int], first: int = 0) -> list[Span]:
    """Return one token at each of `starts`, in blocks of its own, and one block to spare."""
    blocks = iter(range(first, 64))
    return [Span(start, 1, [next(blocks) for _ in range(start // BLOCK_SIZE + 2)][::-1]) for start in starts]


def ordinary(cache: PagedCache, token_ids: list[int], spans: list[Span]) -> Tensor:
    pieces = [
        Piece(start=span.start, token_ids=[token], blocks=span.blocks, samples=True)
        for token, span in zip(token_ids, spans, strict=True)
    ]
    return Runner(DECODER, cache).forward(pieces, [])


@torch.inference_mode()
def test_a_step_equals_the_ordinary_one_at_the_edges_of_its_shapes() -> None:
    """Batches of every size up to the next power, contexts around blocks and widths, one recording after the other."""
    recorder, cache = Recorder(), make_filled_cache()
    steps = RecordedSteps(DECODER, cache, recorder)
    shapes = set()
    for starts in ([0], [3], [4], [15], [16, 17], [14, 15], [12, 15, 13], [8, 11, 9, 10, 12], [7] * 8, [6, 5, 4], [2]):
        spans, token_ids = make_spans(starts, first=len(starts)), list(range(5, 5 + len(starts)))
        cache.kv.copy_(make_filled_cache(len(starts)).kv)
        plain = make_filled_cache(len(starts))
        found_BV = steps.forward(token_ids, spans)
        assert found_BV is not None
        torch.testing.assert_close(found_BV, ordinary(plain, token_ids, spans), rtol=1e-5, atol=2e-4)
        torch.testing.assert_close(cache.kv, plain.kv, rtol=1e-5, atol=1e-5)
        shapes.add(((len(starts) - 1).bit_length(), (max(starts) // BLOCK_SIZE).bit_length()))
    assert recorder.count == len(shapes) < 11


@torch.inference_mode()
def test_filling_up_reads_and_writes_nobody_elses_blocks() -> None:
    cache = make_filled_cache()
    spans = make_spans([9, 5, 10], first=20)
    own = {block for span in spans for block in span.blocks}
    cache.kv[:, :, [block for block in range(64) if block not in own]] = float("nan")
    before = cache.kv.clone()
    found_BV = RecordedSteps(DECODER, cache, Recorder()).forward([1, 2, 3], spans)
    assert found_BV is not None
    assert found_BV.isfinite().all()
    same = (cache.kv == before) | (cache.kv.isnan() & before.isnan())
    changed = (~same).flatten(4).any(-1).all(0).all(0).nonzero().tolist()
    slots = [[span.blocks[span.start // BLOCK_SIZE], span.start % BLOCK_SIZE] for span in spans]
    assert changed == sorted(slots)


@torch.inference_mode()
def test_contexts_far_apart_are_left_to_the_ordinary_step() -> None:
    """One of 160 tokens beside seven of one would be 512 blocks where 47 are."""
    recorder = Recorder()
    steps = RecordedSteps(DECODER, make_filled_cache(), recorder)
    assert steps.forward([1] * 8, make_spans([159, *[0] * 7])) is None
    assert recorder.count == 0


@torch.inference_mode()
def test_what_cannot_be_recorded_is_left_to_the_ordinary_step_from_then_on() -> None:
    tried = []

    def record(run: Run) -> Run:
        tried.append(run)
        raise RuntimeError("operation not permitted when stream is capturing")

    steps = RecordedSteps(DECODER, make_filled_cache(), record)
    with capture_logs() as logs:
        assert [steps.forward([1], make_spans([start])) for start in (3, 40)] == [None, None]
    assert len(tried) == 1
    assert [line["log_level"] for line in logs] == ["error"]


def test_the_runner_replays_steps_that_only_decode(monkeypatch: pytest.MonkeyPatch) -> None:
    """A prompt, a guess, or an image's last token takes the ordinary way; answers are the same."""
    recorder = Recorder()
    plain, replaying = Runner(DECODER, make_cache(16)), Runner(DECODER, make_cache(16))
    assert plain._recorded is None
    monkeypatch.setattr(replaying, "_recorded", RecordedSteps(DECODER, replaying.cache, recorder))
    image = [PlacedImage(3, make_image(1), bytes(32))]

    def piece(start: int, *token_ids: int, **fields: Any) -> Piece:
        return Piece(start=start, token_ids=token_ids, blocks=[3, 1, 2], samples=True, **fields)

    other = Piece(start=0, token_ids=[9], blocks=[7], samples=True)
    cases: list[tuple[list[Piece], int]] = [
        ([piece(0, 5, 6, 7, 0, 0, 0, 0, images=image)], 0),
        ([piece(7, 0, images=image)], 0),
        ([piece(8, 11, images=image), other], 1),
        ([piece(9, 12, 13, num_drafts=1, images=image)], 1),
        ([piece(10, 14, images=image), other], 1),
        ([piece(11, 15, images=image)], 2),
    ]
    for pieces, num_recorded in cases:
        expected_BV = plain.forward(pieces, []).clone()
        torch.testing.assert_close(replaying.forward(pieces, []), expected_BV, rtol=1e-5, atol=2e-4)
        assert recorder.count == num_recorded


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
@torch.inference_mode()
def test_a_cuda_graph_gives_what_the_ordinary_step_gives() -> None:
    device, shape = torch.device("cuda:0"), CacheConfig(num_blocks=64, block_size=BLOCK_SIZE)
    tensors = {name: tensor.to(device) for name, tensor in make_decoder(CONFIG).state_dict().items()}
    decoder = ServingDecoder(CONFIG, tensors)
    replayed, plain = (PagedCache(CONFIG, shape, dtype=torch.float32, device=device) for _ in range(2))
    steps = RecordedSteps(decoder, replayed, CudaRecorder(device))
    for start in range(20):
        spans = make_spans([start, start // 2, start])
        found_BV = steps.forward([start, 2, 3], spans)
        assert found_BV is not None
        rows_B, positions_B = torch.arange(3, device=device), torch.tensor([span.start for span in spans]).to(device)
        embeddings_BD = decoder.embed(torch.tensor([start, 2, 3], device=device))
        expected_BV = decoder.forward(embeddings_BD, positions_B, plain.attend(spans), rows_B)
        torch.testing.assert_close(found_BV, expected_BV, rtol=1e-4, atol=1e-3)
