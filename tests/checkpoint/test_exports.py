"""Exports are complete, verified, and bound to their weights."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from chassis.errors import DataLoss, FailedPrecondition, NotFound, TandemError
from checkpoint.backend_choice import BackendChoice, read_choice, write_choice
from checkpoint.exports import (
    EXPORT_FILE,
    Export,
    Profile,
    Range,
    export_folder,
    hash_files,
    new_export,
    read_export,
    write_record,
)
from checkpoint.inspection import inspect_checkpoint
from checkpoint.listing import list_store
from checkpoint.manifest import read_manifest
from checkpoint.store import ModelStore
from checkpoint.verification import verify

DIGEST = bytes(range(32))
Checkpoint = Callable[..., Path]


def record(place: Path, digest: bytes = DIGEST) -> Export:
    return Export(
        kind="onnx",
        precision="float32",
        vision_digest=digest,
        files=hash_files(place),
        tools={"onnx": "1.0"},
        opset=20,
        profile=Profile(batch=Range(min=1, best=1)),
        max_error=1e-6,
        mean_error=1e-7,
    )


def make_export(folder: Path, digest: bytes = DIGEST, content: bytes = b"graph", *, replace: bool = False) -> Export:
    with new_export(folder, "onnx", "float32", replace=replace) as place:
        (place / "model.onnx").write_bytes(content)
        export = record(place, digest)
        write_record(export, place)
    return export


def fail_to_export(folder: Path) -> None:
    with new_export(folder, "onnx", "float32", replace=True) as place:
        (place / "model.onnx").write_bytes(b"graph")
        (place / "no folder" / "model.onnx").read_bytes()


def read(folder: Path, digest: bytes = DIGEST, **tools: str) -> Export:
    return read_export(folder, "onnx", "float32", vision_digest=digest, tools=tools)


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    export = make_export(tmp_path)
    assert read(tmp_path) == export
    assert read(tmp_path).digest == export.digest
    assert (export.name, len(export.digest)) == ("onnx-float32", 32)


def test_every_fact_is_part_of_the_digest(tmp_path: Path) -> None:
    """Otherwise two exports with different results could share a cache."""
    (tmp_path / "model.onnx").write_bytes(b"graph")
    changes: list[dict[str, object]] = [
        {},
        {"kind": "openvino"},
        {"precision": "bfloat16"},
        {"vision_digest": bytes(32)},
        {"files": {"model.onnx": bytes(32)}},
        {"tools": {"onnx": "1.1"}},
        {"opset": 21},
        {"profile": Profile(batch=Range(min=1, best=1, max=4))},
    ]
    plain = record(tmp_path)
    assert len({plain.model_copy(update=change).digest for change in changes}) == len(changes)


def make_other_weights(folder: Path) -> None:
    make_export(folder, bytes(32), replace=True)


def cut(folder: Path) -> None:
    path = export_folder(folder, "onnx", "float32") / "model.onnx"
    os.truncate(path, 2)


def lose(folder: Path) -> None:
    (export_folder(folder, "onnx", "float32") / "model.onnx").unlink()


def move(folder: Path) -> None:
    export_folder(folder, "onnx", "float32").rename(export_folder(folder, "onnx", "bfloat16"))


def change_record(text: str, other: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = export_folder(folder, "onnx", "float32") / EXPORT_FILE
        path.write_text(path.read_text().replace(text, other))

    return change


DAMAGES: dict[str, tuple[Callable[[Path], None], type[TandemError], str]] = {
    "other weights": (make_other_weights, FailedPrecondition, "BAD_EXPORT"),
    "a truncated file": (cut, DataLoss, "DIGEST_MISMATCH"),
    "a missing file": (lose, FailedPrecondition, "BAD_EXPORT"),
    "no export": (move, NotFound, "NO_EXPORT"),
    "the record of another kind": (change_record('"onnx"', '"openvino"'), FailedPrecondition, "BAD_EXPORT"),
    "an unknown field": (change_record('"opset"', '"opsets"'), FailedPrecondition, "BAD_EXPORT"),
    "a record cut short": (change_record("\n}\n", ""), FailedPrecondition, "BAD_EXPORT"),
    "a file elsewhere": (change_record("model.onnx", "../model.onnx"), FailedPrecondition, "BAD_EXPORT"),
    "an error below zero": (change_record('"max_error": ', '"max_error": -'), FailedPrecondition, "BAD_EXPORT"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_bad_export_is_refused(damage: str, tmp_path: Path) -> None:
    make_export(tmp_path)
    act, error, reason = DAMAGES[damage]
    act(tmp_path)
    with pytest.raises(error) as caught:
        read(tmp_path)
    assert caught.value.reason == reason
    assert str(tmp_path) not in caught.value.message  # clients see the message


def test_an_export_of_another_tool_version_is_refused(tmp_path: Path) -> None:
    make_export(tmp_path)
    assert read(tmp_path, onnx="1.0")
    with pytest.raises(FailedPrecondition, match=r"was made by onnx 1\.0, and this is 1\.1; export again"):
        read(tmp_path, onnx="1.1")
    with pytest.raises(FailedPrecondition, match="of unknown version"):
        read(tmp_path, openvino="1.1")


def test_an_export_appears_complete_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        fail_to_export(tmp_path)
    assert list((tmp_path / "exports").iterdir()) == []


def test_an_export_is_replaced_only_on_demand(tmp_path: Path) -> None:
    make_export(tmp_path)
    with pytest.raises(FailedPrecondition, match="--replace") as caught:
        make_export(tmp_path, content=b"another")
    assert caught.value.reason == "EXPORT_EXISTS"
    replaced = make_export(tmp_path, content=b"another", replace=True)
    assert read(tmp_path) == replaced
    assert [path.name for path in (tmp_path / "exports").iterdir()] == ["onnx-float32"]


def test_a_failed_replacement_keeps_the_old_export(tmp_path: Path) -> None:
    old = make_export(tmp_path)
    with pytest.raises(FileNotFoundError):
        fail_to_export(tmp_path)
    assert read(tmp_path) == old


def test_a_checkpoint_with_exports_is_still_a_checkpoint(checkpoint: Checkpoint) -> None:
    """An older process must still read it."""
    folder = checkpoint()
    before = inspect_checkpoint(folder), list(list_store(ModelStore(folder.parent)))
    make_export(folder, read_manifest(folder).vision.digest)
    assert (inspect_checkpoint(folder), list(list_store(ModelStore(folder.parent)))) == before
    checks = {check.subject: check.problem for check in verify(folder)}
    assert checks["exports/onnx-float32/model.onnx"] is None
    assert checks["vision half"] is None


@pytest.mark.parametrize(
    ("damage", "subject", "problem"),
    [
        (cut, "exports/onnx-float32/model.onnx", "was changed"),
        (lose, "exports/onnx-float32/model.onnx", "is missing"),
        (make_other_weights, "exports/onnx-float32", "was made of other weights"),
        (change_record("{", "["), "exports/onnx-float32", "has no valid record"),
    ],
)
def test_verify_finds_damaged_exports(
    damage: Callable[[Path], None], subject: str, problem: str, checkpoint: Checkpoint
) -> None:
    folder = checkpoint()
    make_export(folder, read_manifest(folder).vision.digest)
    damage(folder)
    assert {check.subject: check.problem for check in verify(folder)}[subject] == problem


def choice(**fields: object) -> BackendChoice:
    values = {
        "vision_digest": DIGEST,
        "device_type": "cpu",
        "device": "a processor",
        "precision": "float32",
        "backend": "torch",
        "images_per_s": {"torch": 2.0},
    }
    return BackendChoice(**{**values, **fields})  # type: ignore[arg-type]


def test_the_first_recorded_choice_stays(tmp_path: Path) -> None:
    """Replicas that measured side by side must choose the same."""
    first, second = choice(), choice(backend="openvino")
    write_choice(first, tmp_path)
    with pytest.raises(FailedPrecondition) as caught:
        write_choice(second, tmp_path)
    assert caught.value.reason == "CHOICE_EXISTS"
    assert read_choice(tmp_path, "cpu", "float32", vision_digest=DIGEST) == first
    write_choice(second, tmp_path, replace=True)
    assert read_choice(tmp_path, "cpu", "float32", vision_digest=DIGEST) == second
    assert len(list((tmp_path / "exports").iterdir())) == 1


def test_a_choice_holds_for_its_weights_device_and_precision(tmp_path: Path) -> None:
    write_choice(choice(), tmp_path)
    for device_type, precision in (("cuda", "float32"), ("cpu", "bfloat16")):
        with pytest.raises(NotFound, match="tandem checkpoint choose-backend") as caught:
            read_choice(tmp_path, device_type, precision, vision_digest=DIGEST)  # type: ignore[arg-type]
        assert caught.value.reason == "NO_BACKEND_CHOICE"
    with pytest.raises(FailedPrecondition, match="is of other weights"):
        read_choice(tmp_path, "cpu", "float32", vision_digest=bytes(32))
    (tmp_path / "exports" / choice().file_name).write_text("{}")
    with pytest.raises(FailedPrecondition, match="is not valid"):
        read_choice(tmp_path, "cpu", "float32", vision_digest=DIGEST)
