"""llama.cpp, through the C interface of its Python bindings.

Only this interface decodes several sequences in one batch.
"""

import ctypes
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path

import llama_cpp  # type: ignore[import-not-found]
import numpy as np

from benchmarks.peers.engines import THREADS
from benchmarks.peers.gguf_file import write_gguf
from benchmarks.peers.protocol import Complete, Prompts, Recorder, Recording, serve

_BATCH = 2048  # tokens per call, llama.cpp's default
_FORMATS = {"Q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0, "Q4_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0}


class Context:
    """A llama.cpp context for several sequences, with their cached tokens."""

    def __init__(self, model: llama_cpp.llama_model_p, num_sequences: int, length: int) -> None:
        """Make room for `num_sequences` sequences of `length` tokens."""
        options = llama_cpp.llama_context_default_params()
        options.n_ctx = num_sequences * length
        options.n_seq_max = num_sequences
        options.n_batch = _BATCH
        options.n_threads = options.n_threads_batch = THREADS
        self.num_sequences = num_sequences
        self.length = length
        self.cached: list[list[int]] = [[] for _ in range(num_sequences)]
        self._context = llama_cpp.llama_init_from_model(model, options)
        self._memory = llama_cpp.llama_get_memory(self._context)
        self._batch = llama_cpp.llama_batch_init(_BATCH, 0, 1)
        self._vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))

    def begin(self, index: int, prompt: Sequence[int]) -> list[int]:
        """Start a prompt and return its tokens to compute.

        Sequence `index` reuses the prefix it has in the cache. At least one token is left to compute.
        """
        pairs = zip(self.cached[index], prompt[:-1], strict=False)
        shared = len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))
        llama_cpp.llama_memory_seq_rm(self._memory, index, shared, -1)
        self.cached[index] = list(prompt[:shared])
        return list(prompt[shared:])

    def decode(self, pending: dict[int, list[int]]) -> list[tuple[int, int]]:
        """Compute tokens by sequence and return each (sequence, next token).

        The next token is the most likely one.
        """
        rows = [(index, token, offset) for index, tokens in pending.items() for offset, token in enumerate(tokens)]
        chosen = []
        for first in range(0, len(rows), _BATCH):
            part = rows[first : first + _BATCH]
            ends = []
            for row, (index, token, offset) in enumerate(part):
                is_last = offset == len(pending[index]) - 1
                ends += [(row, index)] if is_last else []
                self._put(row, token, index, needs_logits=is_last)
            self._batch.n_tokens = len(part)
            if llama_cpp.llama_decode(self._context, self._batch):
                raise RuntimeError("llama_decode failed")
            chosen += [(index, self._most_likely(row)) for row, index in ends]
        return chosen

    def free(self) -> None:
        """Free the memory of the context."""
        llama_cpp.llama_batch_free(self._batch)
        llama_cpp.llama_free(self._context)

    def _put(self, row: int, token: int, index: int, *, needs_logits: bool) -> None:
        self._batch.token[row] = token
        self._batch.pos[row] = len(self.cached[index])
        self._batch.n_seq_id[row] = 1
        self._batch.seq_id[row][0] = index
        self._batch.logits[row] = needs_logits
        self.cached[index].append(token)

    def _most_likely(self, row: int) -> int:
        logits = llama_cpp.llama_get_logits_ith(self._context, row)
        return int(np.ctypeslib.as_array(logits, (self._vocab_size,)).argmax())


def load(root: Path, weights: str = "") -> tuple[str, Complete]:
    """Load the model, and convert it first if necessary.

    `weights` names one of llama.cpp's formats. Without it they stay bfloat16.
    """
    llama_cpp.llama_backend_init()
    path = root / "model.gguf"
    if not path.exists():
        write_gguf(root / "huggingface", path)
    if weights:
        path = _quantize(path, weights)
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
    if not model:
        raise RuntimeError(f"llama.cpp cannot read {path}; delete it to convert the model again")
    context = Context(model, 1, 256)

    def complete(prompts: Prompts, num_tokens: int) -> Recording:
        nonlocal context
        length = -(-(max(map(len, prompts)) + num_tokens) // 256) * 256
        if (context.num_sequences, context.length) != (len(prompts), length):  # a context cannot be resized
            context.free()
            context = Context(model, len(prompts), length)
        recorder = Recorder(len(prompts))
        pending = {index: context.begin(index, prompt) for index, prompt in enumerate(prompts)}
        for _ in range(num_tokens):
            chosen = context.decode(pending)
            for index, token in chosen:
                recorder.add(index, [token])
            pending = {index: [token] for index, token in chosen}
        return recorder.recording

    return f"llama-cpp-python {llama_cpp.__version__}", complete


def _quantize(source: Path, weights: str) -> Path:
    """Return the model with other weights.

    Converts it first if necessary.
    """
    path = source.with_stem(f"model-{weights}")
    if not path.exists():
        options = llama_cpp.llama_model_quantize_default_params()
        options.ftype = _FORMATS[weights]
        options.nthread = THREADS
        partial = path.with_suffix(".partial")
        if llama_cpp.llama_model_quantize(str(source).encode(), str(partial).encode(), ctypes.byref(options)):
            raise RuntimeError(f"llama.cpp cannot convert {source} to {weights}")
        partial.rename(path)
    return path


if __name__ == "__main__":
    serve(load)
