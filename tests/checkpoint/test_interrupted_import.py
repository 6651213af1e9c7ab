"""An interrupted import ends like one without an interruption."""

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from chassis.errors import FailedPrecondition
from checkpoint.import_state import UnfinishedImport
from checkpoint.importing import Progress, import_folder
from checkpoint.manifest import Manifest
from checkpoint.store import ModelStore
from checkpoint.verification import raise_for_problems, verify
from checkpoint.weight_files import WeightFiles, open_files
from tests.hub_folder import write_hub_folder

TAG = "qwen3-vl-tiny-v1.0.0"
REPOSITORY = Path(__file__).parents[2]

# Draws lines of the import's code. For each it forks a process and kills it there with SIGKILL. Another process
# continues. Prints the number of lines that an import runs, and the digests of every finished one.
KILLED_AT_RANDOM_LINES = """
import json, os, random, shutil, signal, sys
from pathlib import Path
from checkpoint.importing import import_folder
from checkpoint.manifest import read_manifest
from checkpoint.store import ModelStore
from checkpoint.verification import raise_for_problems, verify

source, root = Path(sys.argv[1]), Path(sys.argv[2])
tag, copy, count = sys.argv[3], sys.argv[4] == "copy", int(sys.argv[5])
traced = {"importing.py", "import_files.py", "import_state.py", "store.py"}

def run(kill_at):
    lines = 0
    def trace(frame, event, _argument):
        nonlocal lines
        if frame.f_code.co_filename.rpartition("/")[2] not in traced:
            return None
        lines += event == "line"
        if lines == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return trace
    sys.settrace(trace)
    import_folder(source, root, tag, copy=copy)
    sys.settrace(None)
    return lines

def in_child(kill_at):
    child = os.fork()
    if child == 0:
        lines = run(kill_at)
        (root.parent / "lines").write_text(str(lines))
        os._exit(0)
    return os.waitpid(child, 0)[1]

assert in_child(None) == 0
total, digests = int((root.parent / "lines").read_text()), []
for kill_at in [0, *random.Random(5).sample(range(1, total), count), total]:
    shutil.rmtree(root)
    if kill_at:
        assert in_child(kill_at) == signal.SIGKILL
    store = ModelStore(root)
    if not store.tags():  # else it was complete, and killed while it tidied up
        assert in_child(None) == 0
    raise_for_problems(tag, verify(store.folder(tag)))
    manifest = read_manifest(store.folder(tag))
    digests.append([manifest.vision.digest.hex(), manifest.language.digest.hex(), sorted(manifest.files)])
    assert not (root / f".{tag}.import" / "checkpoint").exists()
print(json.dumps([total, digests]))
"""


class Interrupted(BaseException):
    """Stands for Ctrl-C."""


def interrupt_after(num_files: int, source: Path, root: Path, *, copy: bool = False) -> None:
    """Import, and stop when this many files are done."""

    def stop(progress: Progress) -> None:
        if progress.num_files_done == num_files:
            raise Interrupted

    with pytest.raises(Interrupted):
        import_folder(source, root, TAG, copy=copy, on_progress=stop)
    assert ModelStore(root).tags() == []


def finish(source: Path, root: Path, *, copy: bool = False) -> tuple[Manifest, list[Progress]]:
    """Import again, and return the manifest and the progress."""
    steps: list[Progress] = []
    made = import_folder(source, root, TAG, copy=copy, on_progress=steps.append)
    raise_for_problems(TAG, verify(made.folder))
    assert [path.name for path in root.iterdir()] == [TAG]
    return made.manifest, steps


def complete(source: Path, root: Path) -> Manifest:
    """Return the manifest of an import without an interruption."""
    return import_folder(source, root, TAG).manifest


@pytest.mark.parametrize("copy", [False, True])
@pytest.mark.parametrize("num_files", [0, 1, 4, 9])
def test_an_import_goes_on_with_the_next_file(released: Path, tmp_path: Path, num_files: int, copy: bool) -> None:
    interrupt_after(num_files, released, tmp_path / "models", copy=copy)
    manifest, steps = finish(released, tmp_path / "models", copy=copy)
    assert manifest == complete(released, tmp_path / "again")
    hashed = list(dict.fromkeys(step.file for step in steps))
    assert hashed == [path.name for path in sorted(released.glob("*.safetensors"))][num_files:]
    assert all(step.num_files_done >= num_files for step in steps)
    if steps:
        assert steps[-1].num_bytes == steps[-1].num_bytes_total
        assert steps[0].num_bytes == pytest.approx(steps[0].num_bytes_total * done_share(released, num_files))


def done_share(source: Path, num_files: int) -> float:
    """Return the share of bytes in the first files."""
    sizes = [path.stat().st_size for path in sorted(source.glob("*.safetensors"))]
    return sum(sizes[:num_files]) / sum(sizes)


def test_progress_counts_every_byte_once(released: Path, tmp_path: Path) -> None:
    total = sum(path.stat().st_size for path in released.glob("*.safetensors"))
    for copy, factor in ((False, 1), (True, 2)):  # a copy is written and hashed
        _, steps = finish(released, tmp_path / str(copy), copy=copy)
        assert steps[0].num_bytes == 0
        assert steps[-1].num_bytes == steps[-1].num_bytes_total == factor * total
        assert [step.num_bytes for step in steps] == sorted(step.num_bytes for step in steps)
        assert steps[-1].num_files_done == steps[-1].num_files == 9


def test_a_file_that_was_replaced_is_hashed_again(hub: Path, tmp_path: Path) -> None:
    interrupt_after(4, hub, tmp_path / "models")
    other = write_hub_folder(tmp_path / "other", seed=1)
    first, *_ = sorted(path.name for path in hub.glob("*.safetensors"))
    (other / first).replace(hub / first)
    manifest, steps = finish(hub, tmp_path / "models")
    assert steps[0].file == first
    assert len({step.file for step in steps}) == 6
    assert manifest == complete(hub, tmp_path / "again")


def test_another_folder_may_take_the_tag_of_an_unfinished_import(hub: Path, tmp_path: Path) -> None:
    interrupt_after(4, hub, tmp_path / "models")
    other = write_hub_folder(tmp_path / "other", seed=1, max_shard_size="1GB")
    manifest, _ = finish(other, tmp_path / "models")
    assert manifest == complete(other, tmp_path / "again")


def test_links_may_be_replaced_by_copies(hub: Path, tmp_path: Path) -> None:
    before = complete(hub, tmp_path / "again")
    interrupt_after(4, hub, tmp_path / "models")
    manifest, _ = finish(hub, tmp_path / "models", copy=True)
    assert manifest == before
    sources = {path.stat().st_ino for path in hub.iterdir()}
    assert not sources & {path.stat().st_ino for path in (tmp_path / "models" / TAG).iterdir()}
    assert complete(hub, tmp_path / "source is whole") == before


@pytest.mark.parametrize("text", ["", "{", '{"files": 3}', "\xff"])
def test_a_damaged_state_file_means_hashing_everything(released: Path, tmp_path: Path, text: str) -> None:
    interrupt_after(4, released, tmp_path / "models")
    state = tmp_path / "models" / f".{TAG}.import" / "state.json"
    assert len(json.loads(state.read_text())["files"]) == 4
    state.write_bytes(text.encode("latin-1"))
    _, steps = finish(released, tmp_path / "models")
    assert steps[0].num_files_done == 0


def test_a_file_that_changes_while_it_is_hashed_is_refused(
    hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = min(hub.glob("*.safetensors"))

    def touch(paths: Iterable[Path]) -> WeightFiles:
        os.utime(path, (1, 1))
        return open_files(paths)

    monkeypatch.setattr("checkpoint.import_files.open_files", touch)
    with pytest.raises(FailedPrecondition, match=f"{path.name} was changed during the import"):
        import_folder(hub, tmp_path / "models", TAG)


def test_two_imports_of_one_tag_do_not_run_at_once(released: Path, tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    with UnfinishedImport.open(store, TAG), pytest.raises(FailedPrecondition) as caught:
        import_folder(released, tmp_path, TAG)
    assert caught.value.reason == "IMPORT_RUNNING"
    finish(released, tmp_path)


def test_a_tag_that_appears_during_an_import_is_not_overwritten(released: Path, tmp_path: Path) -> None:
    def create(_progress: Progress) -> None:
        (tmp_path / TAG).mkdir(exist_ok=True)

    with pytest.raises(FailedPrecondition) as caught:
        import_folder(released, tmp_path, TAG, on_progress=create)
    assert caught.value.reason == "TAG_EXISTS"
    assert [path.name for path in tmp_path.iterdir()] == [TAG]
    assert not list((tmp_path / TAG).iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["link", "copy"])
def test_a_killed_import_ends_with_the_same_digests(released: Path, tmp_path: Path, mode: str) -> None:
    command = [sys.executable, "-c", KILLED_AT_RANDOM_LINES, released, tmp_path / "models", TAG, mode, "20"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=REPOSITORY, timeout=110)
    assert done.returncode == 0, done.stderr
    total, digests = json.loads(done.stdout)
    assert total > 200
    assert len(digests) == 22
    assert all(found == digests[0] for found in digests)
