"""Our safetensors reader against the library's."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from chassis.errors import FailedPrecondition
from checkpoint.safetensors_file import read_safetensors
from checkpoint.torch_tensors import as_torch
from checkpoint.weight_files import open_files

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
TENSORS = {
    "a": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "b": torch.arange(4).to(torch.bfloat16),
    "scalar": torch.tensor(3.5, dtype=torch.float16),
    "empty": torch.empty(0, 3),
}


def write(path: Path, header: object, data: bytes) -> None:
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


@given(st.lists(st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 4), max_size=3)), max_size=5))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_tensors_equal_those_the_library_wrote(tmp_path: Path, kinds: list[tuple[torch.dtype, list[int]]]) -> None:
    tensors = {f"t{number}": torch.randn(shape).to(dtype) for number, (dtype, shape) in enumerate(kinds)}
    save_file(tensors, tmp_path / "a.safetensors", {"format": "pt"})
    found = read_safetensors(tmp_path / "a.safetensors")
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        read = as_torch(found[name])
        assert (read.dtype, read.shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(read, tensor)


@given(st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], max_examples=300)
def test_our_reader_refuses_what_the_library_refuses(tmp_path: Path, data: st.DataObject) -> None:
    """Changes one byte of the header, or truncates the file."""
    path = tmp_path / "a.safetensors"
    save_file(TENSORS, path)
    content = bytearray(path.read_bytes())
    length = 8 + int.from_bytes(content[:8], "little")
    if data.draw(st.booleans()):
        content[data.draw(st.integers(0, length - 1))] = data.draw(st.integers(0, 255))
    else:
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    path.write_bytes(content)
    try:
        with safe_open(path, framework="pt") as file:
            expected = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a mapping)
    except (SafetensorError, OSError, ValueError, RuntimeError):
        with pytest.raises(FailedPrecondition):
            open_files([path])
    else:
        found = read_safetensors(path)
        assert {name: tensor.shape for name, tensor in found.items()} == {
            name: tuple(tensor.shape) for name, tensor in expected.items()
        }


@pytest.mark.parametrize(
    "header",
    [
        {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}},  # does not fill the file
        {"a": {"dtype": "F32", "shape": [5], "data_offsets": [0, 16]}},  # larger than its bytes
        {"a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]}},  # starts with a gap
        {"a": {"dtype": "F32", "shape": [-4], "data_offsets": [0, 16]}},
        {"a": {"dtype": "F32", "shape": [4], "data_offsets": [16, 0]}},
        {
            "a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]},  # overlaps b
            "b": {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]},
        },
        {"a": {"dtype": "F32", "shape": [4]}},
        [],
    ],
)
def test_a_header_that_does_not_fit_the_file_is_refused(tmp_path: Path, header: object) -> None:
    write(tmp_path / "a.safetensors", header, bytes(16))
    with pytest.raises(ValueError):  # noqa: PT011  (any reason)
        read_safetensors(tmp_path / "a.safetensors")


def test_a_header_longer_than_the_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes((2**63).to_bytes(8, "little") + b"{}")
    with pytest.raises(ValueError, match="longer"):
        read_safetensors(path)


@pytest.mark.parametrize("stored", ["single", "shards"])
def test_verifying_and_listing_safetensors_load_no_torch(pristine: Path, stored: str) -> None:
    """In a fresh interpreter where importing torch and numpy fails."""
    program = """
import sys
sys.modules["torch"] = sys.modules["numpy"] = sys.modules["structlog"] = None
from pathlib import Path
from checkpoint.inspection import inspect_preset
from checkpoint.listing import list_store
from checkpoint.presets import RESAMPLER_PRESETS
from checkpoint.store import ModelStore
from checkpoint.verification import verify
store = ModelStore(Path(sys.argv[1]))
[entry] = list_store(store)
print(len(verify(store.folder(entry.tag))), [check for check in verify(store.folder(entry.tag)) if check.problem])
print(inspect_preset("tiny", RESAMPLER_PRESETS["tiny"]).num_parameters)
"""
    done = subprocess.run([sys.executable, "-c", program, str(pristine / stored)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    num_checks = {"single": 6, "shards": 9}[stored]
    assert done.stdout == f"{num_checks} []\n146208\n"


def test_verifying_bin_weights_without_torch_names_the_extra(pristine: Path) -> None:
    program = """
import sys
sys.modules["torch"] = None
from pathlib import Path
from chassis.errors import FailedPrecondition
from checkpoint.verification import verify
try:
    verify(Path(sys.argv[1]) / "tiny-v1.0.0")
except FailedPrecondition as error:
    print(error.reason, error.message)
"""
    done = subprocess.run([sys.executable, "-c", program, str(pristine / "bin")], capture_output=True, text=True)
    sentence = "Reading pytorch_model-00001-of-00003.bin needs torch: pip install 'tandem-serving[stages]'."
    assert (done.stdout, done.stderr) == (f"NOT_INSTALLED {sentence}\n", "")
