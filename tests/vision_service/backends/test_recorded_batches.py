"""Recorded batches give the tokens of ordinary ones.

CUDA graphs need a GPU (`tests/vision_service/test_gpu.py`). Here a recording only runs the batch in its fixed memory.
"""

from collections.abc import Callable
from threading import Thread
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from structlog.testing import capture_logs
from torch import Tensor

from chassis.cuda_recorder import Run
from vision_service.backends.recorded_batches import RecordedBatches

CPU = torch.device("cpu")


class Model:
    """Gives every image two tokens, and notes batch sizes."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def __call__(self, pixels_B3SS: Tensor) -> Tensor:
        self.sizes.append(len(pixels_B3SS))
        sums = pixels_B3SS.sum((2, 3))
        return torch.stack([sums, -sums], dim=1)


def images_of(count: int) -> list[NDArray[np.float32]]:
    return [np.full((3, 2, 2), row + 1, np.float32) for row in range(count)]


def numbers(tokens: NDArray[np.uint16]) -> list[Any]:
    return torch.from_numpy(tokens).view(torch.bfloat16)[:, 0].tolist()


@pytest.mark.parametrize("count", [1, 2, 3, 8, 9, 16, 17, 40])
def test_a_batch_is_padded_to_a_recorded_size_or_runs_alone(count: int) -> None:
    model, recorded = Model(), []

    def record(run: Run) -> Run:
        recorded.append(run)
        run()
        return run

    batches = RecordedBatches(model, dtype=torch.float32, device=CPU, record=record)
    for _ in range(2):
        tokens = batches.encode(images_of(count))
        assert [numbers(each) for each in tokens] == [[4.0 * row, -4.0 * row] for row in range(1, count + 1)]
        assert all(each.base is None or each.base.nbytes == each.nbytes for each in tokens)  # no view of the batch
    assert len(recorded) == (count <= 16)
    assert set(model.sizes) == {count if count > 16 else 1 << (count - 1).bit_length()}


def test_rows_of_an_older_batch_do_not_reach_a_later_one() -> None:
    batches = RecordedBatches(Model(), dtype=torch.float32, device=CPU, record=lambda run: run)
    kept = batches.encode(images_of(4))
    assert len(batches.encode(images_of(3))) == 3
    assert [numbers(each) for each in kept] == [[4.0 * row, -4.0 * row] for row in range(1, 5)]


def test_a_failed_recording_leaves_ordinary_batches() -> None:
    tried = []

    def record(run: Run) -> Run:
        tried.append(run)
        raise RuntimeError("operation not permitted when stream is capturing")

    batches = RecordedBatches(Model(), dtype=torch.float32, device=CPU, record=record)
    with capture_logs() as logs:
        assert [numbers(each) for each in batches.encode(images_of(2)) + batches.encode(images_of(1))] == [
            [4.0, -4.0],
            [8.0, -8.0],
            [4.0, -4.0],
        ]
    assert len(tried) == 1
    assert [line["log_level"] for line in logs] == ["error"]


def test_threads_do_not_mix_their_images() -> None:
    batches = RecordedBatches(Model(), dtype=torch.float32, device=CPU, record=lambda run: run)
    wrong: list[object] = []

    def encode(value: int) -> None:
        image = np.full((3, 2, 2), value, np.float32)
        for _ in range(50):
            [tokens] = batches.encode([image])
            if numbers(tokens) != [4.0 * value, -4.0 * value]:
                wrong.append(tokens)

    threads: list[Thread] = [Thread(target=encode, args=(value,)) for value in (1, 2, 3)]
    run_all: list[Callable[[], None]] = [thread.start for thread in threads] + [thread.join for thread in threads]
    for each in run_all:
        each()
    assert not wrong
