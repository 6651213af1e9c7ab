"""Record work on a GPU as CUDA graphs.

Launching many short kernels takes longer than running them. A recording needs a single launch, but always uses the
memory and shapes of its recording.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Run = Callable[[], Tensor]  # computes from fixed memory, and consists of operations on tensors only


class CudaRecorder:
    """Records work as CUDA graphs.

    The graphs share their working memory, so no two may run at the same time.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, run: Run) -> Run:
        """Return the replay of `run`. Recording also runs it once."""
        with torch.cuda.device(self._device):
            side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                run()  # chooses kernels and allocates their memory, which cannot be recorded
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            # Another thread may load a model meanwhile. Record this thread only.
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                out = run()

        def replay() -> Tensor:
            graph.replay()
            return out

        return replay
