"""Inputs of recorded steps keep their place in memory."""

import torch

from language_service.engine.fixed_inputs import FixedInputs


def test_one_copy_moves_all_arrays_to_the_same_tensors() -> None:
    inputs = FixedInputs({"rows": (3,), "tables": (2, 4)}, torch.device("cpu"))
    rows, tables = inputs.tensor("rows"), inputs.tensor("tables")
    for step in range(2):
        inputs["rows"][:] = range(step, step + 3)
        inputs["tables"][1] = 7 + step
        assert rows.tolist() != list(range(step, step + 3))  # not before they are sent
        inputs.send()
        assert rows.tolist() == list(range(step, step + 3))
        assert tables.tolist() == [[0] * 4, [7 + step] * 4]
