"""Recorded decoding steps equal ordinary ones.

CUDA graphs need a GPU, but their demands on a step can be tested without one. The tests replay a step operation by
operation, with the memory and the arguments of its recording. It must compute any batch in its input memory.
"""

from typing import Any

import pytest
import torch
from structlog.testing import capture_logs
from torch import Tensor
from torch.utils._pytree import tree_leaves

from chassis.cuda_recorder import CudaRecorder, Run
from language_service.engine.cuda_graphs import RecordedSteps
from language_service.engine.kv_cache import CacheConfig, CacheSpan, PagedCache
from language_service.engine.runner import Images, PlacedImage, Runner
from language_service.engine.serving import ServingDecoder
from language_service.scheduling.sequence import Chunk
from tests.language_service import one_pass
from tests.language_service.asking import Part
from tests.language_service.operation_spy import OperationSpy
from tests.language_service.small import (
    CONFIG,
    GRIDS,
    make_cache,
    make_chunk,
    make_decoder,
    make_grid_image,
    make_image,
)

DECODER = ServingDecoder(CONFIG, dict(make_decoder(CONFIG).state_dict()))
BLOCK_SIZE = 4


class Recorder:
    """Replaces `CudaRecorder` and counts the recordings."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, run: Run) -> Run:
        self.count += 1
        calls: list[tuple[Any, Any, Any, Any]] = []
        with OperationSpy(lambda *call: calls.append(call)):
            logits_NV = run()

        def replay() -> Tensor:
            for func, args, kwargs, out in calls:
                for old, new in zip(tree_leaves(out), tree_leaves(func(*args, **kwargs)), strict=True):
                    if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                        old.copy_(new)  # where the following operations read it
            return logits_NV

        return replay


def make_filled_cache(seed: int = 0) -> PagedCache:
    """Return a cache of 64 blocks, all with content."""
    cache = make_cache(64, BLOCK_SIZE)
    cache.kv.copy_(torch.randn(cache.kv.shape, generator=torch.Generator().manual_seed(seed)))
    return cache


def make_spans(starts: list[int], first: int = 0) -> list[CacheSpan]:
    """Return spans of one token at each of `starts`.

    Each has its own blocks, and one spare block.
    """
    blocks = iter(range(first, 64))
    return [CacheSpan(start, 1, [next(blocks) for _ in range(start // BLOCK_SIZE + 2)][::-1]) for start in starts]


def ordinary(cache: PagedCache, token_ids: list[int], spans: list[CacheSpan]) -> Tensor:
    chunks = [make_chunk(span.start, [token], span.blocks) for token, span in zip(token_ids, spans, strict=True)]
    return Runner(DECODER, cache).forward(chunks, [])


@torch.inference_mode()
def test_a_recorded_step_equals_the_ordinary_one_at_the_edges_of_its_shape() -> None:
    """With contexts around block and table boundaries.

    Batches have every size up to the next power of two.
    """
    recorder, cache = Recorder(), make_filled_cache()
    steps = RecordedSteps(DECODER, cache, recorder)
    shapes = set()
    for starts in ([0], [3], [4], [15], [16, 17], [14, 15], [12, 15, 13], [8, 11, 9, 10, 12], [7] * 8, [6, 5, 4], [2]):
        spans, token_ids = make_spans(starts, first=len(starts)), list(range(5, 5 + len(starts)))
        cache.kv.copy_(make_filled_cache(len(starts)).kv)
        plain = make_filled_cache(len(starts))
        logits_BV = steps.forward(token_ids, spans)
        assert logits_BV is not None
        torch.testing.assert_close(logits_BV, ordinary(plain, token_ids, spans), rtol=1e-5, atol=2e-4)
        torch.testing.assert_close(cache.kv, plain.kv, rtol=1e-5, atol=1e-5)
        shapes.add(((len(starts) - 1).bit_length(), (max(starts) // BLOCK_SIZE).bit_length()))
    assert recorder.count == len(shapes) < 11


@torch.inference_mode()
def test_padding_does_not_touch_the_blocks_of_others() -> None:
    cache = make_filled_cache()
    spans = make_spans([9, 5, 10], first=20)
    own = {block for span in spans for block in span.blocks}
    cache.kv[:, :, [block for block in range(64) if block not in own]] = float("nan")
    before = cache.kv.clone()
    logits_BV = RecordedSteps(DECODER, cache, Recorder()).forward([1, 2, 3], spans)
    assert logits_BV is not None
    assert logits_BV.isfinite().all()
    same = (cache.kv == before) | (cache.kv.isnan() & before.isnan())
    changed = (~same).flatten(4).any(-1).all(0).all(0).nonzero().tolist()
    slots = [[span.blocks[span.start // BLOCK_SIZE], span.start % BLOCK_SIZE] for span in spans]
    assert changed == sorted(slots)


@torch.inference_mode()
def test_contexts_of_very_different_length_are_not_recorded() -> None:
    """Padding would turn 47 blocks into 512."""
    recorder = Recorder()
    steps = RecordedSteps(DECODER, make_filled_cache(), recorder)
    assert steps.forward([1] * 8, make_spans([159, *[0] * 7])) is None
    assert recorder.count == 0


@torch.inference_mode()
def test_a_failed_recording_disables_recording() -> None:
    tried = []

    def record(run: Run) -> Run:
        tried.append(run)
        raise RuntimeError("operation not permitted when stream is capturing")

    steps = RecordedSteps(DECODER, make_filled_cache(), record)
    with capture_logs() as logs:
        assert [steps.forward([1], make_spans([start])) for start in (3, 40)] == [None, None]
    assert len(tried) == 1
    assert [line["log_level"] for line in logs] == ["error"]


def test_the_runner_replays_only_steps_that_decode(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompt tokens, drafts and images take the ordinary step.

    The logits are the same.
    """
    recorder = Recorder()
    plain, replaying = Runner(DECODER, make_cache(16)), Runner(DECODER, make_cache(16))
    assert plain._recorded is None
    monkeypatch.setattr(replaying, "_recorded", RecordedSteps(DECODER, replaying.cache, recorder))
    image = [PlacedImage(3, make_image(1))]

    def chunk(start: int, *token_ids: int, num_drafts: int = 0) -> Chunk:
        return make_chunk(start, token_ids, [3, 1, 2], num_drafts=num_drafts)

    other = make_chunk(0, [9], [7])
    cases: list[tuple[list[Chunk], list[Images], int]] = [
        ([chunk(0, 5, 6, 7, 0, 0, 0, 0)], [image], 0),
        ([chunk(7, 0)], [image], 0),
        ([chunk(8, 11), other], [image, []], 1),
        ([chunk(9, 12, 13, num_drafts=1)], [image], 1),
        ([chunk(10, 14), other], [image, []], 1),
        ([chunk(11, 15)], [image], 2),
    ]
    for chunks, images, num_recorded in cases:
        expected_BV = plain.forward(chunks, [], images).clone()
        torch.testing.assert_close(replaying.forward(chunks, [], images), expected_BV, rtol=1e-5, atol=2e-4)
        assert recorder.count == num_recorded


def test_replayed_steps_shift_the_positions_after_an_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each sequence by its own images, in one recorded shape."""
    decoder, recorder = make_decoder(GRIDS), Recorder()
    runner = Runner(decoder, make_cache(32, BLOCK_SIZE, GRIDS))
    monkeypatch.setattr(runner, "_recorded", RecordedSteps(runner.decoder, runner.cache, recorder))
    answer = [21, 22, 23, 24]
    prompts: list[list[Part]] = [
        [[5, 6], make_grid_image(1, 2, 3), [7]],
        [[5, 6, 7], make_grid_image(2, 1, 5)],
        [[8] * 9],
    ]
    images = [one_pass.place(parts) for parts in prompts]
    ids = [[*one_pass.token_ids(parts), *answer] for parts in prompts]
    blocks = [list(range(first, first + 4)) for first in (0, 4, 8)]
    lengths = [len(each) - len(answer) for each in ids]
    parts = list(zip(lengths, ids, blocks, strict=True))
    runner.forward([make_chunk(0, each[:length], own) for length, each, own in parts], [], images)
    expected = [one_pass.logits(decoder, [*parts, answer])[-len(answer) :] for parts in prompts]
    assert recorder.count == 0
    for step in range(len(answer)):
        chunks = [make_chunk(length + step, [each[length + step]], own) for length, each, own in parts]
        logits_BV = runner.forward(chunks, [], images)
        torch.testing.assert_close(logits_BV, torch.stack([each[step] for each in expected]), rtol=1e-5, atol=2e-4)
    assert recorder.count == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
@torch.inference_mode()
def test_a_cuda_graph_equals_the_ordinary_step() -> None:
    device, shape = torch.device("cuda:0"), CacheConfig(num_blocks=64, block_size=BLOCK_SIZE)
    tensors = {name: tensor.to(device) for name, tensor in make_decoder(CONFIG).state_dict().items()}
    decoder = ServingDecoder(CONFIG, tensors)
    replayed, plain = (PagedCache(CONFIG, shape, dtype=torch.float32, device=device) for _ in range(2))
    steps = RecordedSteps(decoder, replayed, CudaRecorder(device))
    for start in range(20):
        spans = make_spans([start, start // 2, start])
        logits_BV = steps.forward([start, 2, 3], spans)
        assert logits_BV is not None
        rows_B, positions_B = torch.arange(3, device=device), torch.tensor([span.start for span in spans]).to(device)
        embeddings_BD = decoder.embed(torch.tensor([start, 2, 3], device=device))
        expected_BV = decoder.forward(embeddings_BD, positions_B, plain.attend(spans), rows_B)
        torch.testing.assert_close(logits_BV, expected_BV, rtol=1e-4, atol=1e-3)
