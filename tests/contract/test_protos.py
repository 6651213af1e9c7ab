"""Protobuf contract: fresh stubs, commented fields, fixed services."""

import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2
from grpc_tools import protoc

REPOSITORY = Path(__file__).parents[2]
PROTOS = REPOSITORY / "protos"
SOURCES = sorted(PROTOS.glob("tandem/v1/*.proto"))


def test_committed_stubs_equal_generated_ones(tmp_path: Path) -> None:
    # It fails if a stub was edited by hand, or if a proto was changed without `make protos`.
    code = f"import generate; from pathlib import Path; generate.generate(Path({str(tmp_path)!r}))"
    subprocess.run([sys.executable, "-c", code], cwd=PROTOS, check=True)
    fresh = {path.name: path.read_text() for path in (tmp_path / "tandem/v1").iterdir()}
    committed = {path.name: path.read_text() for path in (REPOSITORY / "tandem/v1").glob("*_pb2*")}
    assert fresh == committed


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[descriptor_pb2.FileDescriptorProto]:
    """Return every proto as parsed by protoc, including comments."""
    out = tmp_path_factory.mktemp("descriptors") / "set.bin"
    arguments = ["protoc", f"-I{PROTOS}", "--include_source_info", f"--descriptor_set_out={out}", *map(str, SOURCES)]
    assert protoc.main(arguments) == 0
    return list(descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes()).file)


def test_every_field_and_value_is_commented(files: list[descriptor_pb2.FileDescriptorProto]) -> None:
    # Numbers in source paths. First: 4 message, 5 enum, 6 service. Then: 2 field, value or method, 3 nested message.
    uncommented = []
    for file in files:
        comments = {tuple(place.path): place.leading_comments for place in file.source_code_info.location}
        for path in comments:
            is_item = (
                path[:1] in {(4,), (5,), (6,)} and len(path) % 2 == 0 and all(step in (2, 3, 4) for step in path[2::2])
            )
            if is_item and not comments[path].strip():
                uncommented.append(f"{file.name} {path}")
    assert files
    assert not uncommented


def test_enums_start_unspecified(files: list[descriptor_pb2.FileDescriptorProto]) -> None:
    # An absent field reads as zero, so zero must have no meaning.
    enums = [enum for file in files for enum in file.enum_type]
    assert enums
    assert all(enum.value[0].number == 0 and enum.value[0].name.endswith("_UNSPECIFIED") for enum in enums)


def test_the_services_have_exactly_these_methods(files: list[descriptor_pb2.FileDescriptorProto]) -> None:
    calls = {service.name: {m.name for m in service.method} for file in files for service in file.service}
    models = {"GetModel", "ListModels", "LoadModel", "UnloadModel"}
    assert calls["VisionService"] == {"Encode"} | models
    assert calls["LanguageService"] == {"Generate"} | models
    assert calls["Gateway"] == {
        *("Generate", "PutImage", "CountTokens", "Tokenize", "Detokenize", "ListModels", "Feedback"),
    }
    assert calls["Operations"] == {"Watch"}
    streaming = {
        f"{service.name}.{m.name}": (m.client_streaming, m.server_streaming)
        for file in files
        for service in file.service
        for m in service.method
    }
    assert streaming["LanguageService.Generate"] == (True, True)
    assert streaming["Gateway.Generate"] == (False, True)
    assert streaming["Gateway.PutImage"] == (True, False)
