"""Generate the Python stubs of protos/ into a folder (tandem/v1 of the repository by default)."""

import sys
from pathlib import Path

from grpc_tools import protoc

PROTOS = Path(__file__).parent
REPOSITORY = PROTOS.parent


def generate(out: Path) -> None:
    """Write `*_pb2.py`, `*_pb2.pyi` and, for files with a service, `*_pb2_grpc.py` and its `.pyi` below `out`."""
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
