"""Import a Hub folder into a model store.

Needs no torch, except for `.bin` and quantized weights. Weight files are linked or copied as they are, and loading maps
their tensor names. Those of AWQ and GPTQ are converted. Hashing takes most of the time. So the hashes of each finished
file are kept, and an interrupted import goes on with the next file.
"""

import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from chassis.errors import DataLoss, FailedPrecondition
from checkpoint.config import write_config
from checkpoint.families import HALVES, Half, ModelConfig
from checkpoint.hub_folder import HubFolder, open_hub_folder
from checkpoint.identity import TensorDigest
from checkpoint.import_files import WeightFile, copy_file, hash_file, link, plan
from checkpoint.import_state import Fingerprint, UnfinishedImport
from checkpoint.manifest import TEMPLATE_FILE, TOKENIZER_FILE, Manifest, file_sha256, make_manifest, write_manifest
from checkpoint.store import ModelStore

_FREE_BYTES = 64 * 1024 * 1024  # left over for small files
_BLOB = re.compile(r"[0-9a-f]{64}")  # a file of the Hub's cache is named by its SHA-256


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far an import is."""

    file: str  # that is being copied or hashed, the last one at the end
    num_files_done: int
    num_files: int
    num_bytes: int  # copied and hashed so far
    num_bytes_total: int


OnProgress = Callable[[Progress], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """A new checkpoint, and how it was made."""

    folder: Path
    config: ModelConfig
    manifest: Manifest
    parameters: dict[Half, int]  # number of parameters of each half
    num_files: int  # with weights
    num_bytes: int  # of these files
    num_linked: int  # of these files, the others are copies
    num_resumed: int  # files that an interrupted import had finished


def import_folder(
    source: Path, root: Path, tag: str, *, copy: bool = False, on_progress: OnProgress | None = None
) -> Imported:
    """Import a Hub folder into a model store.

    A second call after an interruption goes on with the file at which the first one stopped.

    Args:
        source: the folder, as downloaded.
        root: the model store.
        tag: the new checkpoint's tag.
        copy: copy the weight files. Default: make hard links, or copies where the file system has no links.
        on_progress: called every few megabytes.

    Raises:
        InvalidArgument: BAD_TAG, BAD_SOURCE.
        FailedPrecondition: TAG_EXISTS, IMPORT_RUNNING, NO_SPACE, BAD_LOW_BIT, and the errors of `open_hub_folder`.
        DataLoss: DIGEST_MISMATCH, a file of the Hub's cache is not the one its name tells.
    """
    store = ModelStore(root)
    store.new_folder(tag)
    hub = open_hub_folder(source.absolute())  # messages name the folder
    if hub.converted is not None:
        return _convert(hub, store, tag, on_progress)
    _check_low_bit(hub, source.absolute().name)
    with UnfinishedImport.open(store, tag) as unfinished:
        files = plan(hub, unfinished.folder)
        todo = [file for file in files if not file.is_done(unfinished.records.get(file.name), copy=copy)]
        _clear(unfinished, files, todo)
        if not copy:
            for file in todo:
                link(file)
        _check_space([file for file in todo if not file.is_linked()], unfinished)
        _copy_and_hash(todo, unfinished, _Meter(files, todo, on_progress))
        num_linked = sum(file.is_linked() for file in files)
        manifest = _write_rest(hub, files, unfinished, tag)
        folder = unfinished.finish()
    return Imported(
        folder=folder,
        config=hub.config,
        manifest=manifest,
        parameters=_count(hub),
        num_files=len(files),
        num_bytes=sum(file.num_bytes for file in files),
        num_linked=num_linked,
        num_resumed=len(files) - len(todo),
    )


def _convert(hub: HubFolder, store: ModelStore, tag: str, on_progress: OnProgress | None) -> Imported:
    """Write the weights of AWQ or GPTQ in our form."""
    from checkpoint.saving import save  # here, because others are imported without torch

    assert hub.converted is not None
    weights = f"{tag}.safetensors"

    def on_tensor(_name: str, done: int, total: int) -> None:
        if on_progress:
            files_done = int(done == total)
            on_progress(
                Progress(file=weights, num_files_done=files_done, num_files=1, num_bytes=done, num_bytes_total=total)
            )

    with store.create(tag) as folder:
        manifest = save(
            folder,
            hub.config,
            hub.converted,
            tag,
            tokenizer_json=hub.tokenizer_json,
            chat_template=hub.chat_template,
            on_tensor=on_tensor,
        )
    return Imported(
        folder=store.folder(tag),
        config=hub.config,
        manifest=manifest,
        parameters=_count(hub),
        num_files=1,
        num_bytes=(store.folder(tag) / weights).stat().st_size,
        num_linked=0,
        num_resumed=0,
    )


def _count(hub: HubFolder) -> dict[Half, int]:
    return {half: sum(one.num_parameters for one in hub.specs if one.half == half) for half in HALVES}


def _check_low_bit(hub: HubFolder, source: str) -> None:
    """Check the scales of quantized weights, before hours of copying."""
    if hub.config.language.quantization is None:
        return
    from checkpoint.compressed_tensors import check_low_bit  # here, because others are imported without torch
    from checkpoint.torch_tensors import as_torch

    small = {spec.name: as_torch(hub.weights[spec.name]) for spec in hub.specs if spec.kind == "low_bit"}
    check_low_bit(small, hub.specs, source)


def _clear(unfinished: UnfinishedImport, files: list[WeightFile], todo: list[WeightFile]) -> None:
    """Remove unfinished files, and those of another source folder."""
    done = {file.name for file in files} - {file.name for file in todo}
    for path in unfinished.folder.iterdir():
        if path.name not in done:
            path.unlink()
    unfinished.records = {name: record for name, record in unfinished.records.items() if name in done}


def _check_space(files: list[WeightFile], unfinished: UnfinishedImport) -> None:
    """Check that the file system has room for copies."""
    needed = sum(file.num_bytes for file in files)
    free = shutil.disk_usage(unfinished.folder).free
    if needed and needed + _FREE_BYTES > free:
        raise FailedPrecondition(
            f"The weights need {needed / 1e9:.2f} GB, but the model store's file system has {free / 1e9:.2f} GB free: "
            "free some space, or use a model store on the file system of the weights without --copy.",
            reason="NO_SPACE",
            where=unfinished.folder.parent.parent,
        )


class _Meter:
    """Counts the bytes that were copied and hashed."""

    def __init__(self, files: list[WeightFile], todo: list[WeightFile], on_progress: OnProgress | None) -> None:
        work = {file.name: file.num_bytes * (1 if file.is_linked() else 2) for file in files}
        self._num_files, self._num_bytes_total = len(files), sum(work.values())
        self._num_files_done = len(files) - len(todo)
        self._num_bytes = self._num_bytes_total - sum(work[file.name] for file in todo)
        self._on_progress = on_progress

    def add(self, file: WeightFile, num_bytes: int) -> None:
        """Count bytes of a file."""
        self._num_bytes += num_bytes
        self._report(file)

    def end(self, file: WeightFile) -> None:
        """Count a finished file."""
        self._num_files_done += 1
        self._report(file)

    def _report(self, file: WeightFile) -> None:
        if self._on_progress:
            self._on_progress(
                Progress(
                    file=file.name,
                    num_files_done=self._num_files_done,
                    num_files=self._num_files,
                    num_bytes=self._num_bytes,
                    num_bytes_total=self._num_bytes_total,
                )
            )


def _copy_and_hash(todo: list[WeightFile], unfinished: UnfinishedImport, meter: _Meter) -> None:
    """Copy the files that are not linked, and hash all."""
    for file in todo:
        on_bytes, before = partial(meter.add, file), Fingerprint.of(file.source)
        on_bytes(0)
        if not file.is_linked():
            copy_file(file, on_bytes)
        record = hash_file(file, before, on_bytes)
        _check_blob(file, record.sha256)
        unfinished.save(file.name, record)
        meter.end(file)


def _check_blob(file: WeightFile, sha256: bytes) -> None:
    """Compare a file of the Hub's cache with its name."""
    if _BLOB.fullmatch(file.source.name) and file.source.name != sha256.hex():
        raise DataLoss(
            f"The file {file.name} is damaged: its SHA-256 is not the one in the Hub's cache. Download it again.",
            reason="DIGEST_MISMATCH",
            where=file.source,
        )


def _write_rest(hub: HubFolder, files: list[WeightFile], unfinished: UnfinishedImport, tag: str) -> Manifest:
    """Write all files but the weights, the manifest last."""
    folder = unfinished.folder
    write_config(hub.config, folder)
    (folder / TOKENIZER_FILE).write_text(hub.tokenizer_json, encoding="utf-8")
    (folder / TEMPLATE_FILE).write_text(hub.chat_template, encoding="utf-8")
    if hub.index:
        shutil.copyfile(hub.index, folder / hub.index.name)
    weights = {file.name for file in files}
    hashes = {path.name: file_sha256(path) for path in sorted(folder.iterdir()) if path.name not in weights}
    hashes |= {name: unfinished.records[name].sha256 for name in weights}
    digests: dict[str, TensorDigest] = {
        name: tensor.digest() for record in unfinished.records.values() for name, tensor in record.tensors.items()
    }
    halves: dict[Half, dict[str, TensorDigest]] = {
        half: {spec.name: digests[spec.name] for spec in hub.specs if spec.half == half} for half in HALVES
    }
    manifest = make_manifest(tag, hub.config, dict(sorted(hashes.items())), halves)
    write_manifest(manifest, folder)
    return manifest
