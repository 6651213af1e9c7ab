"""The contract: the committed stubs are those of the protos, and every field says what it holds."""

import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2
from grpc_tools import protoc

REPOSITORY = Path(__file__).parents[2]
PROTOS = REPOSITORY / "protos"
SOURCES = sorted(PROTOS.glob("tandem/v1/*.proto"))


def test_stubs_are_generated_from_the_protos(tmp_path: Path) -> None:
    # A stub edited by hand, or a proto changed without `make protos`, would let client and server drift apart.
    code = f"import generate; from pathlib import Path; generate.generate(Path({str(tmp_path)!r}))"
    subprocess.run([sys.executable, "-c", code], cwd=PROTOS, check=True)
    fresh = {path.name: path.read_text() for path in (tmp_path / "tandem/v1").iterdir()}
    committed = {path.name: path.read_text() for path in (REPOSITORY / "tandem/v1").glob("*_pb2*")}
    assert fresh == committed


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[descriptor_pb2.FileDescriptorProto]:
    """Every proto as parsed by protoc, comments included."""
    out = tmp_path_factory.mktemp("descriptors") / "set.bin"
    arguments = ["protoc", f"-I{PROTOS}", "--include_source_info", f"--descriptor_set_out={out}", *map(str, SOURCES)]
    assert protoc.main(arguments) == 0
    return list(descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes()).file)


def test_every_field_and_value_is_commented(files: list[descriptor_pb2.FileDescriptorProto]) -> None:
    # Paths in source info: 4 message, 5 enum, 6 service; then 2 field, 2 value, 2 method; 3 nested message.
    bare = []
    for file in files:
        comments = {tuple(place.path): place.leading_comments for place in file.source_code_info.location}
        for path in comments:
            is_item = (
                path[:1] in {(4,), (5,), (6,)} and len(path) % 2 == 0 and all(step in (2, 3, 4) for step in path[2::2])
            )
            if is_item and not comments[path].strip():
                bare.append(f"{file.name} {path}")
    assert files
    assert not bare


def test_enums_start_unspecified(files: list[descriptor_pb2.FileDescriptorProto]) -> None:
    # Zero is what an absent field reads as, so it must never mean anything.
    enums = [enum for file in files for enum in file.enum_type]
    assert enums
    assert all(enum.value[0].number == 0 and enum.value[0].name.endswith("_UNSPECIFIED") for enum in enums)


def test_contract_holds_the_services_of_the_design(files: list[descriptor_pb2.FileDescriptorProto]) -> None:
    calls = {service.name: {m.name for m in service.method} for file in files for service in file.service}
    models = {"GetModel", "ListModels", "LoadModel", "UnloadModel"}
    assert calls["VisionService"] == {"Encode"} | models
    assert calls["LanguageService"] == {"Generate"} | models
    assert calls["Gateway"] == {"Generate", "PutImage", "CountTokens", "ListModels"}
    streaming = {
        f"{service.name}.{m.name}": (m.client_streaming, m.server_streaming)
        for file in files
        for service in file.service
        for m in service.method
    }
    assert streaming["LanguageService.Generate"] == (True, True)
    assert streaming["Gateway.Generate"] == (False, True)
    assert streaming["Gateway.PutImage"] == (True, False)
