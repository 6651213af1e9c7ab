"""Generate the Python stubs of the contract into tandem/v1."""

import sys
from pathlib import Path

from grpc_tools import protoc

PROTOS = Path(__file__).parent
REPOSITORY = PROTOS.parent


def generate(out: Path) -> None:
    """Write the stubs below `out`.

    Every proto gets `*_pb2.py` and `*_pb2.pyi`. A proto with a service also gets `*_pb2_grpc.py` and its `.pyi`.
    """
    scripts = Path(sys.executable).parent
    sources = sorted(PROTOS.glob("tandem/v1/*.proto"))
    arguments = [
        "protoc",
        f"-I{PROTOS}",
        f"--plugin=protoc-gen-mypy={scripts / 'protoc-gen-mypy'}",
        f"--plugin=protoc-gen-mypy_grpc={scripts / 'protoc-gen-mypy_grpc'}",
        f"--python_out={out}",
        f"--grpc_python_out={out}",
        f"--mypy_out=quiet:{out}",
        f"--mypy_grpc_out=quiet:{out}",
        *map(str, sources),
    ]
    if protoc.main(arguments) != 0:
        raise SystemExit("protoc failed")
    for source in sources:
        if "\nservice " not in source.read_text():
            for empty in (out / "tandem/v1").glob(f"{source.stem}_pb2_grpc.*"):
                empty.unlink()


if __name__ == "__main__":
    generate(REPOSITORY)
