from pathlib import Path

import pytest

from chassis.errors import FailedPrecondition, InvalidArgument, NotFound
from checkpoint.store import ModelStore


def test_a_store_lists_its_tags_by_version_and_nothing_else(tmp_path: Path) -> None:
    for name in ("demo-v1.10.0", "demo-v1.9.0", "notes", ".demo-v2.0.0.x.partial"):
        (tmp_path / name).mkdir()
    (tmp_path / "file-v1.0.0").write_text("a file is no checkpoint")
    assert ModelStore(tmp_path).tags() == ["demo-v1.9.0", "demo-v1.10.0"]


def test_a_missing_store_is_empty(tmp_path: Path) -> None:
    assert ModelStore(tmp_path / "none").tags() == []


def test_an_unknown_tag_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"no demo-v1\.0\.0") as caught:
        ModelStore(tmp_path).folder("demo-v1.0.0")
    assert caught.value.reason == "UNKNOWN_TAG"
    assert str(tmp_path) not in caught.value.message  # callers must not see paths of the server
    assert f"({tmp_path})" in caught.value.local_message


def test_an_error_names_the_absolute_path_of_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NotFound) as caught:
        ModelStore(Path("models")).folder("demo-v1.0.0")
    assert caught.value.where == tmp_path / "models"


def test_a_path_is_not_a_tag(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument):
        ModelStore(tmp_path).folder("../demo-v1.0.0")


def test_a_checkpoint_appears_when_it_is_complete(tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    with store.create("demo-v1.0.0") as folder:
        (folder / "config.json").write_text("{}")
        assert store.tags() == []
    assert store.tags() == ["demo-v1.0.0"]
    assert [path.name for path in tmp_path.iterdir()] == ["demo-v1.0.0"]


def test_a_failed_creation_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), ModelStore(tmp_path).create("demo-v1.0.0"):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_a_tag_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "demo-v1.0.0").mkdir()
    with pytest.raises(FailedPrecondition) as caught, ModelStore(tmp_path).create("demo-v1.0.0"):
        pytest.fail("the folder was handed out")
    assert (caught.value.reason, caught.value.where) == ("TAG_EXISTS", tmp_path)


def test_the_second_of_two_that_create_a_tag_is_refused(tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    late = store.create("demo-v1.0.0")
    (late.__enter__() / "late").touch()
    with store.create("demo-v1.0.0") as early:
        (early / "early").touch()
    with pytest.raises(FailedPrecondition):
        late.__exit__(None, None, None)
    assert [path.name for path in store.folder("demo-v1.0.0").iterdir()] == ["early"]
