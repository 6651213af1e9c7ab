"""llama.cpp through its Python bindings' C interface, which alone continues many sequences at once."""

from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path

import llama_cpp  # type: ignore[import-not-found]
import numpy as np

from benchmarks.peers.engines import THREADS
from benchmarks.peers.gguf_file import write_gguf
from benchmarks.peers.protocol import Complete, Prompts, Recorder, Recording, serve

_BATCH = 2048  # tokens handed to one call, llama.cpp's default


class Sequences:
    """A context for a number of sequences, each with room for `length` tokens, and what it holds."""

    def __init__(self, model: llama_cpp.llama_model_p, num_sequences: int, length: int) -> None:
        options = llama_cpp.llama_context_default_params()
        options.n_ctx = num_sequences * length
        options.n_seq_max = num_sequences
        options.n_batch = _BATCH
        options.n_threads = options.n_threads_batch = THREADS
        self.num_sequences = num_sequences
        self.length = length
        self.held: list[list[int]] = [[] for _ in range(num_sequences)]
        self._context = llama_cpp.llama_init_from_model(model, options)
        self._memory = llama_cpp.llama_get_memory(self._context)
        self._batch = llama_cpp.llama_batch_init(_BATCH, 0, 1)
        self._vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))

    def begin(self, index: int, prompt: Sequence[int]) -> list[int]:
        """Keep what sequence `index` shares with a new prompt; return the tokens left to compute, one at least."""
        shared = len(list(takewhile(lambda pair: pair[0] == pair[1], zip(self.held[index], prompt[:-1], strict=False))))
        llama_cpp.llama_memory_seq_rm(self._memory, index, shared, -1)
        self.held[index] = list(prompt[:shared])
        return list(prompt[shared:])

    def decode(self, pending: dict[int, list[int]]) -> list[tuple[int, int]]:
        """Compute tokens by sequence; return (sequence, next token) of each, the likeliest."""
        rows = [(index, token, place) for index, tokens in pending.items() for place, token in enumerate(tokens)]
        chosen = []
        for first in range(0, len(rows), _BATCH):
            part = rows[first : first + _BATCH]
            ends = []
            for row, (index, token, place) in enumerate(part):
                ends += [(row, index)] if place == len(pending[index]) - 1 else []
                self._put(row, token, index, wanted=place == len(pending[index]) - 1)
            self._batch.n_tokens = len(part)
            if llama_cpp.llama_decode(self._context, self._batch):
                raise RuntimeError("llama_decode failed")
            chosen += [(index, self._likeliest(row)) for row, index in ends]
        return chosen

    def free(self) -> None:
        """Give its memory back."""
        llama_cpp.llama_batch_free(self._batch)
        llama_cpp.llama_free(self._context)

    def _put(self, row: int, token: int, index: int, *, wanted: bool) -> None:
        self._batch.token[row] = token
        self._batch.pos[row] = len(self.held[index])
        self._batch.n_seq_id[row] = 1
        self._batch.seq_id[row][0] = index
        self._batch.logits[row] = wanted
        self.held[index].append(token)

    def _likeliest(self, row: int) -> int:
        logits = llama_cpp.llama_get_logits_ith(self._context, row)
        return int(np.ctypeslib.as_array(logits, (self._vocab_size,)).argmax())


def load(root: Path) -> tuple[str, Complete]:
    """Load the model; its file is written the first time."""
    path = root / "model.gguf"
    if not path.exists():
        write_gguf(root / "huggingface", path)
    llama_cpp.llama_backend_init()
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
    if not model:
        raise RuntimeError(f"llama.cpp does not read {path}")
    sequences = Sequences(model, 1, 256)

    def complete(prompts: Prompts, num_tokens: int) -> Recording:
        nonlocal sequences
        length = -(-(max(map(len, prompts)) + num_tokens) // 256) * 256
        if (sequences.num_sequences, sequences.length) != (len(prompts), length):  # the size of a context is fixed
            sequences.free()
            sequences = Sequences(model, len(prompts), length)
        recorder = Recorder(len(prompts))
        pending = {index: sequences.begin(index, prompt) for index, prompt in enumerate(prompts)}
        for _ in range(num_tokens):
            chosen = sequences.decode(pending)
            for index, token in chosen:
                recorder.add(index, [token])
            pending = {index: [token] for index, token in chosen}
        return recorder.recording

    return f"llama-cpp-python {llama_cpp.__version__}", complete


if __name__ == "__main__":
    serve(load)
