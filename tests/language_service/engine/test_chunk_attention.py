"""A cache attends to short chunks in one call.

The attention here is slow and obvious. `make test-kernels` compares the one in Triton with it.
"""

import pytest
import torch
from torch import Tensor

from language_service.engine.runner import Runner
from language_service.engine.serving import ServingDecoder
from language_service.kernels import GatheredAttention, choose_chunk_attention
from language_service.kernels.decode_attention import AttendDecoded
from language_service.kernels.decode_choice import chunk_error
from tests.language_service.small import CONFIG, make_cache, make_chunk, make_decoder

DECODER = ServingDecoder(CONFIG, dict(make_decoder(CONFIG).state_dict()))


class TokenByToken:
    """Implements `ChunkAttention` by decoding each token."""

    num_tokens = 3

    def __init__(self, scale: float = 1.0) -> None:
        self._scale = scale
        self.num_tiles = 0

    def plan(self, tables_NM: Tensor, tiles_I4: Tensor) -> AttendDecoded:
        self.num_tiles += len(tiles_I4)

        def attend(q_THE: Tensor, kv_2PSGE: Tensor) -> Tensor:
            out_THE = torch.full_like(q_THE, float("nan"))  # rows in no tile get any numbers
            for sequence, row, start, count in tiles_I4.tolist():
                for step in range(count):
                    length = torch.tensor([start + step + 1])
                    decode = GatheredAttention().plan(tables_NM[sequence : sequence + 1], length)
                    out_THE[row + step] = self._scale * decode(q_THE[row + step : row + step + 1], kv_2PSGE)[0]
            return out_THE

        return attend


def test_short_chunks_long_ones_and_decoding_tokens_share_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("language_service.engine.kv_cache._SHORT", 6)
    plain, runner = Runner(DECODER, make_cache(32)), Runner(DECODER, make_cache(32))
    chunks_of_steps = [
        [make_chunk(0, [5, 6, 7, 8], [3, 1]), make_chunk(0, list(range(10, 20)), [2, 4, 6]), make_chunk(0, [9], [8])],
        [make_chunk(4, [5, 6], [3, 1]), make_chunk(10, [7], [2, 4, 6]), make_chunk(1, [9, 3, 4, 5, 6], [8, 10])],
    ]
    attention = runner.cache.chunk_attention = TokenByToken()
    for chunks in chunks_of_steps:
        expected, found = plain.forward(chunks, []), runner.forward(chunks, [])
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-4)
    assert attention.num_tiles == 2 + 1 + 2


def test_the_error_of_an_attention_is_measured_against_single_tokens() -> None:
    kv = torch.zeros(1, 2, 64, 4, 2, 16)
    assert chunk_error(TokenByToken(), kv, 4) < 1e-5
    assert chunk_error(TokenByToken(1.1), kv, 4) == pytest.approx(0.1, abs=1e-4)
    assert choose_chunk_attention(GatheredAttention(), kv, 4) is None
