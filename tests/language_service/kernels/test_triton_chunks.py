"""Chunk attention in Triton equals that of single tokens.

`make test-kernels` runs it on a CPU.
"""

import random
from collections.abc import Sequence

import pytest
import torch
from structlog.testing import capture_logs

from chassis.cuda_recorder import Run
from checkpoint.families import LanguageConfig
from language_service.engine import recorded_chunks
from language_service.engine.kv_cache import CacheConfig, CacheSpan, PagedCache, tiles_of
from language_service.engine.recorded_chunks import ChunkBatch, RecordedChunks
from language_service.engine.runner import Images, PlacedImage, Runner
from language_service.engine.serving import ServingDecoder
from language_service.kernels.choice import open_triton_kernels
from language_service.kernels.decode_attention import GatheredAttention
from language_service.kernels.decode_choice import choose_chunk_attention, choose_decode_attention
from tests.language_service.kernels.test_triton_attention import BLOCK_SIZE, INTERPRETED, inputs
from tests.language_service.small import CONFIG, CPU, GRIDS, make_chunk, make_decoder, make_grid_image, make_image

pytestmark = [pytest.mark.kernels, INTERPRETED]
# Outputs of padded tokens are whatever was in memory, which the interpreter's numpy may warn about.
pytestmark += [pytest.mark.filterwarnings("ignore:.* encountered in:RuntimeWarning")]
WIDE = CONFIG.model_copy(update={"head_dim": 16})
WIDE_GRIDS = GRIDS.model_copy(
    update={"head_dim": 16, "mrope_section": (4, 2, 2), "num_deepstack_levels": 0, "num_layers": 2}
)


@pytest.mark.parametrize(("group_size", "head_dim"), [(1, 16), (3, 16), (4, 32)])
@pytest.mark.parametrize(
    "spans",
    [[(0, 1)], [(0, 5)], [(3, 17), (15, 1)], [(31, 33), (0, 64), (63, 2)], [(130, 70), (40, 1), (1, 3)]],
    ids=str,
)
def test_attention_equals_that_of_single_tokens_at_every_border(
    spans: list[tuple[int, int]], group_size: int, head_dim: int
) -> None:
    """Of blocks, tiles and groups.

    Nothing past the end is read.
    """
    from language_service.kernels.triton_chunks import TritonChunkAttention

    _, kv, tables, _ = inputs([start + count for start, count in spans], group_size, head_dim, torch.float32)
    num_tokens = sum(count for _, count in spans)
    q = torch.randn(num_tokens, 2 * group_size, head_dim)
    attention = TritonChunkAttention(kv[None], 2 * group_size)
    tiles = tiles_of([CacheSpan(start, count, []) for start, count in spans], attention.num_tokens)
    found = attention.plan(tables, torch.tensor([*tiles, [0, 0, 0, 0]]))(q, kv)
    rows = [row for row, (_, count) in enumerate(spans) for _ in range(count)]
    lengths = torch.tensor([start + step + 1 for start, count in spans for step in range(count)])
    expected = GatheredAttention().plan(tables[rows], lengths)(q, kv.nan_to_num(0))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_a_kernel_that_fails_or_differs_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    from language_service.kernels import triton_chunks

    kv = torch.zeros(1, 2, 64, BLOCK_SIZE, 2, 16)
    decode = choose_decode_attention("triton", kv, 4)
    assert choose_chunk_attention(decode, kv, 4) is not None
    assert choose_chunk_attention(GatheredAttention(), kv, 4) is None
    monkeypatch.setattr(triton_chunks, "_LOG2_E", 1.0)
    with capture_logs() as logs:
        assert choose_chunk_attention(decode, kv, 4) is None
    assert "numbers differ" in logs[0]["reason"]
    monkeypatch.setattr(triton_chunks, "_LOG2_E", None)
    with capture_logs() as logs:
        assert choose_chunk_attention(decode, kv, 4) is None
    assert [line["log_level"] for line in logs] == ["warning"]


def make_runners(config: LanguageConfig) -> tuple[Runner, Runner]:
    """Return a plain runner and one with Triton."""
    tensors = make_decoder(config).state_dict()
    runners = []
    for kernels in (None, open_triton_kernels(config, torch.float32, CPU)):
        shape = CacheConfig(num_blocks=64, block_size=BLOCK_SIZE)
        cache = PagedCache(config, shape, dtype=torch.float32, device=CPU)
        runners.append(Runner(ServingDecoder(config, dict(tensors), kernels), cache))
    runners[1].cache.choose_attention("triton")
    return runners[0], runners[1]


def batch_of(spans: Sequence[CacheSpan], sampled_rows: Sequence[int] = (0,)) -> ChunkBatch:
    """Return a batch whose numbers do not matter."""
    num_tokens = sum(span.length for span in spans)
    return ChunkBatch(torch.empty(num_tokens, WIDE.width), [range(num_tokens)], spans, sampled_rows)


@pytest.mark.parametrize("config", [WIDE, WIDE_GRIDS], ids=["text positions", "grid positions"])
def test_recorded_steps_equal_ordinary_ones(config: LanguageConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """In several sizes.

    Of prompts with images, continued chunks, drafts and decoding tokens.
    """
    monkeypatch.setattr(recorded_chunks, "_SIZES", (8, 16, 32))  # the interpreter is slow
    monkeypatch.setattr(recorded_chunks, "_MAX_SPANS", 8)
    plain, replaying = make_runners(config)
    recorded: list[int] = []

    def record(run: Run) -> Run:
        recorded.append(1)
        run()  # as a recorder does before it records
        return run

    steps = RecordedChunks(replaying.decoder, replaying.cache, record)
    monkeypatch.setattr(replaying, "_recorded_chunks", steps)
    if config is WIDE:
        image = PlacedImage(2, make_image(1))
    else:
        made = make_grid_image(1, 2, 3)
        image = PlacedImage(2, made.tokens_NX[:, : config.width], made.grid)
    asked = image.end + 3
    generator = random.Random(0)
    batches = [
        [make_chunk(0, [0] * asked, [3, 1, 2, 9]), make_chunk(0, [5], [7])],
        [make_chunk(asked, [8], [3, 1, 2, 9]), make_chunk(1, [6, 7, 8], [7, 8], num_drafts=2)],
        [make_chunk(0, generator.choices(range(3, 90), k=21), list(range(20, 30)))],
        [make_chunk(21, [4] * 5, list(range(20, 30))), make_chunk(asked + 1, [9], [3, 1, 2, 9])],
    ]
    images: list[list[Images]] = [[[image], []], [[image], []], [[]], [[], [image]]]
    # Twice, because a new recording is only compared, and a later step replays it.
    for chunks, placed in zip(batches * 2, images * 2, strict=True):
        assert steps.takes(batch_of([CacheSpan(chunk.start, len(chunk.token_ids), chunk.blocks) for chunk in chunks]))
        expected, found = (runner.forward(chunks, [], placed) for runner in (plain, replaying))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=5e-4)
        torch.testing.assert_close(replaying.cache.kv, plain.cache.kv, rtol=1e-4, atol=1e-4)
    assert sorted(steps._steps) == [8, 16, 32]
    assert len(recorded) == 3


def test_what_is_too_large_or_not_recordable_takes_the_ordinary_step() -> None:
    _, runner = make_runners(WIDE)

    def fail(_run: Run) -> Run:
        raise RuntimeError("operation not permitted when stream is capturing")

    steps = RecordedChunks(runner.decoder, runner.cache, fail)
    blocks = list(range(2000))
    assert not steps.takes(batch_of([CacheSpan(0, 513, blocks)]))
    assert not steps.takes(batch_of([CacheSpan(4096, 1, blocks)]))
    assert not steps.takes(batch_of([CacheSpan(0, 2, blocks)] * 65))
    assert not steps.takes(batch_of([CacheSpan(0, 100, blocks)], [0] * 65))
    assert steps.takes(batch_of([CacheSpan(4090, 6, blocks)]))
    one = [CacheSpan(0, 1, [0])]
    embedding, expected = runner.decoder.embed(torch.tensor([5])), torch.ones(1, WIDE.vocab_size)
    with capture_logs() as logs:
        assert steps.forward(ChunkBatch(embedding, [[0]], one, [0]), lambda: expected) is expected
    assert [line["log_level"] for line in logs] == ["error"]
    assert not steps.takes(batch_of(one))
    steps = RecordedChunks(make_runners(WIDE)[0].decoder, runner.cache, fail)
    assert not steps.takes(batch_of([CacheSpan(0, 2, blocks)]))  # torch's kernels would store padded tokens


def test_a_recording_with_other_numbers_is_never_used() -> None:
    """The caller gets the ordinary logits.

    Steps without logits cannot be compared, and are not recorded.
    """
    _, runner = make_runners(WIDE)
    recorded: list[Run] = []

    def record(run: Run) -> Run:
        recorded.append(run)
        return lambda: run() + 1

    steps, one = RecordedChunks(runner.decoder, runner.cache, record), [CacheSpan(0, 1, [0])]
    embedding, expected = runner.decoder.embed(torch.tensor([5])), torch.ones(1, WIDE.vocab_size)
    assert steps.forward(ChunkBatch(embedding, [[0]], one, []), lambda: expected[:0]).shape == (0, WIDE.vocab_size)
    assert not recorded
    with capture_logs() as logs:
        assert steps.forward(ChunkBatch(embedding, [[0]], one, [0]), lambda: expected) is expected
    assert "differ" in logs[0]["event"]
    assert not steps.takes(batch_of(one))
