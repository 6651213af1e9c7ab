"""Find and read weight files, ours and foreign ones."""

import json
import mmap
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from chassis.errors import FailedPrecondition
from checkpoint.initial import create_checkpoint
from checkpoint.presets import RESAMPLER_PRESETS
from checkpoint.torch_tensors import TorchTensor, as_torch
from checkpoint.weight_files import canonical_name, open_files, open_folder
from checkpoint.weight_writers import Container

ONES = torch.ones(2, 2)


class Malicious:
    """Runs a function when an unsafe reader unpickles it."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.trace,)


def write_index(folder: Path, weight_map: object) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


@pytest.mark.parametrize(
    ("stored", "canonical"),
    [
        ("language_model.layers.3.attn.q_proj.weight", "language_model.layers.3.self_attn.q_proj.weight"),
        ("language_model.layers.3.attn.k_norm.weight", "language_model.layers.3.self_attn.k_norm.weight"),
        ("language_model.layers.12.mlp.gate_proj.weight", "language_model.layers.12.mlp.w1.weight"),
        ("language_model.layers.12.mlp.up_proj.weight", "language_model.layers.12.mlp.w3.weight"),
        ("language_model.layers.12.mlp.down_proj.weight", "language_model.layers.12.mlp.w2.weight"),
        ("vision_tower.blocks.0.attn.qkv.weight", "vision_tower.blocks.0.attn.qkv.weight"),
        ("language_model.layers.0.self_attn.q_proj.weight", "language_model.layers.0.self_attn.q_proj.weight"),
    ],
)
def test_foreign_names_become_ours(stored: str, canonical: str) -> None:
    assert canonical_name(stored) == canonical
    assert canonical_name(canonical) == canonical


def test_a_static_position_table_is_ignored_with_one_log_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"language_model.embed_positions.weight": ONES, "language_model.norm.weight": torch.ones(2)}, path)
    with caplog.at_level("INFO"):
        files = open_files([path])
        assert list(files) == ["language_model.norm.weight"]
        assert files.unindexed() == []
    assert len(caplog.records) == 1


def test_two_names_of_one_tensor_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    name = "language_model.layers.0.mlp.{}.weight"
    save_file({name.format("w1"): ONES, name.format("gate_proj"): ONES.clone()}, path)
    with pytest.raises(FailedPrecondition, match="are the same one"):
        open_files([path])


def test_one_tensor_in_two_files_is_refused(tmp_path: Path) -> None:
    paths = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for path in paths:
        save_file({"x": ONES}, path)
    with pytest.raises(FailedPrecondition, match="are the same one"):
        open_folder(tmp_path)


def test_two_files_of_one_name_are_refused(tmp_path: Path) -> None:
    paths = [tmp_path / folder / "a.safetensors" for folder in ("one", "two")]
    for number, path in enumerate(paths):
        path.parent.mkdir()
        save_file({f"x{number}": ONES}, path)
    with pytest.raises(FailedPrecondition, match=r"Two files are called a\.safetensors"):
        open_files(paths)


@pytest.mark.parametrize("file", ["../a.safetensors", "/etc/passwd", "..", "", 7, None])
def test_an_index_cannot_reach_outside_of_the_folder(tmp_path: Path, file: object) -> None:
    write_index(tmp_path, {"x": file})
    with pytest.raises(FailedPrecondition, match="index"):
        open_folder(tmp_path)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {}}', "\xff", "[" * 100_000]
)
def test_a_broken_index_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(FailedPrecondition, match=r"model\.safetensors\.index\.json"):
        open_folder(tmp_path)


def test_a_tensor_missing_from_its_indexed_file_is_named(tmp_path: Path) -> None:
    save_file({"x": ONES}, tmp_path / "a.safetensors")
    write_index(tmp_path, {"x": "a.safetensors", "y": "a.safetensors"})
    with pytest.raises(FailedPrecondition, match="y") as caught:
        open_folder(tmp_path)["y"]
    assert caught.value.reason == "MISSING_TENSORS"


def test_a_tensor_missing_from_the_index_is_reported(tmp_path: Path) -> None:
    save_file({"x": ONES, "y": ONES.clone()}, tmp_path / "a.safetensors")
    write_index(tmp_path, {"x": "a.safetensors"})
    files = open_folder(tmp_path)
    assert torch.equal(as_torch(files["x"]), ONES)
    assert files.unindexed() == ["y"]


def test_safetensors_win_over_pickles(tmp_path: Path) -> None:
    save_file({"x": ONES}, tmp_path / "a.safetensors")
    torch.save({"x": -ONES}, tmp_path / "pytorch_model.bin")
    assert torch.equal(as_torch(open_folder(tmp_path)["x"]), ONES)


def test_parameters_become_plain_tensors(tmp_path: Path) -> None:
    torch.save({"x": torch.nn.Parameter(ONES)}, tmp_path / "pytorch_model.bin")
    assert not as_torch(open_folder(tmp_path)["x"]).requires_grad


def test_a_pickle_cannot_run_code(tmp_path: Path) -> None:
    path, trace = tmp_path / "pytorch_model.bin", tmp_path / "trace"
    torch.save({"x": ONES, "y": Malicious(trace)}, path)
    with pytest.raises(FailedPrecondition, match=r"pytorch_model\.bin"):
        open_folder(tmp_path)
    assert not trace.exists()
    torch.load(path, weights_only=False)  # an unsafe reader runs it
    assert trace.exists()


@pytest.mark.parametrize("content", [[ONES], {"x": 3}, {3: ONES}, ONES])
def test_a_pickle_of_anything_but_named_tensors_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "pytorch_model.bin")
    with pytest.raises(FailedPrecondition, match=r"pytorch_model\.bin"):
        open_folder(tmp_path)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
@pytest.mark.parametrize(
    "make",
    [
        lambda: ONES.to_sparse(),
        lambda: ONES.to("meta"),
        lambda: torch._neg_view(ONES),
        lambda: torch.nested.as_nested_tensor([ONES]),
    ],
    ids=["sparse", "without elements", "negated", "nested"],
)
def test_a_tensor_without_plain_elements_is_refused(tmp_path: Path, make: Callable[[], torch.Tensor]) -> None:
    torch.save({"x": make()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(FailedPrecondition, match=r"pytorch_model\.bin"):
        open_folder(tmp_path)


@pytest.mark.parametrize("program", [b"", b".", b"\x80\x02h\x07."], ids=["nothing", "empty stack", "unknown memo"])
def test_a_damaged_pickle_is_refused(tmp_path: Path, program: bytes) -> None:
    with zipfile.ZipFile(tmp_path / "pytorch_model.bin", "w") as file:
        file.writestr("archive/data.pkl", program)
        file.writestr("archive/version", "3")
    with pytest.raises(FailedPrecondition, match=r"pytorch_model\.bin"):
        open_folder(tmp_path)


@pytest.mark.parametrize("container", ["safetensors", "bin"])
def test_dropped_pages_are_read_from_the_file_again(tmp_path: Path, container: Container) -> None:
    # If a tensor were not a mapping of its file, dropping its pages would lose it.
    create_checkpoint(tmp_path, "tiny-v1.0.0", RESAMPLER_PRESETS["tiny"], container=container)
    files = open_folder(tmp_path / "tiny-v1.0.0")
    for name in files:
        before = as_torch(files[name]).clone()
        files[name].drop_pages()
        assert torch.equal(as_torch(files[name]), before)


def test_dropping_an_expanded_view_keeps_the_memory_behind_it() -> None:
    # One number in the file, a matrix in the model: the memory after the number belongs to something else.
    memory = torch.ones(16 * mmap.PAGESIZE, dtype=torch.uint8)
    TorchTensor(memory[:1].expand(len(memory))).drop_pages()
    assert memory.all()


@pytest.mark.skipif(not hasattr(mmap, "MADV_DONTNEED"), reason="pages are dropped on Linux only")
@pytest.mark.parametrize("container", ["safetensors", "bin"])
def test_loading_does_not_take_twice_the_memory(tmp_path: Path, container: Container) -> None:
    # Mapped pages count as memory of the process until they are dropped. A service has room for its weights once.
    language = RESAMPLER_PRESETS["tiny"].language.model_copy(update={"num_layers": 16, "mlp_width": 32_768})
    create_checkpoint(
        tmp_path,
        "wide-v1.0.0",
        RESAMPLER_PRESETS["tiny"].model_copy(update={"language": language}),
        container=container,
    )
    create_checkpoint(tmp_path, "tiny-v1.0.0", RESAMPLER_PRESETS["tiny"], container=container)
    script = (
        "import sys, torch; from pathlib import Path; from checkpoint.weights import load_half\n"
        "from tests.own_peak import forget_peak, peak_bytes\n"
        "load_half(Path(sys.argv[1]) / 'tiny-v1.0.0', 'language', dtype=torch.bfloat16)  # does the imports\n"
        "before = forget_peak()\n"
        "load_half(Path(sys.argv[1]) / 'wide-v1.0.0', 'language', dtype=torch.bfloat16)\n"
        "print(peak_bytes() - before)\n"
    )
    run = subprocess.run([sys.executable, "-c", script, tmp_path], capture_output=True, text=True, check=True)
    num_bytes = open_folder(tmp_path / "wide-v1.0.0").num_bytes()
    assert num_bytes > 200_000_000
    assert int(run.stdout) < 1.4 * num_bytes
