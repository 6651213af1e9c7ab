"""Rooms import downwards only, through their `__init__`.

So each room can be read, tested and replaced alone.
"""

import ast

import pytest

from tests.contract.import_graph import REPOSITORY, imports, loaded_by, module_of, modules

# Every room, from the bottom up, with the rooms below that it may import. A room is a folder.
ROOMS: dict[str, set[str]] = {
    "tandem.v1": set(),
    "chassis": {"tandem.v1"},
    "checkpoint.families": set(),
    # Asks an operator's grader over gRPC.
    "checkpoint.probes": {"tandem.v1", "chassis"},
    "checkpoint": {"chassis", "checkpoint.families", "checkpoint.probes"},
    "hosting": {"tandem.v1", "chassis"},
    "processing": {"chassis", "checkpoint.families", "checkpoint"},
    "vision_service.model": {"checkpoint.families"},
    "vision_service.kernels": {"chassis", "vision_service.model"},
    # Only TensorRT: engines are built by `exporting` and run by `backends`.
    "vision_service.engines": {"chassis"},
    # Loads a checkpoint's weights, or the export that its library runs.
    "vision_service.backends": {
        "chassis",
        "checkpoint.families",
        "checkpoint",
        "vision_service.model",
        "vision_service.kernels",
        "vision_service.engines",
    },
    # Runs what it wrote, to compare it with torch.
    "vision_service.exporting": {
        "chassis",
        "checkpoint.families",
        "checkpoint",
        "processing",
        "vision_service.model",
        "vision_service.engines",
        "vision_service.backends",
    },
    "vision_service": {
        "tandem.v1",
        "chassis",
        "checkpoint.families",
        "checkpoint",
        "hosting",
        "processing",
        "vision_service.backends",
    },
    "language_service.model": {"checkpoint.families"},
    # Multiplies with matrices of 8 or 4 bits a weight, as `checkpoint.lowbit` holds them.
    "language_service.kernels": {"chassis", "checkpoint.families", "checkpoint", "language_service.model"},
    "language_service.cache": set(),
    "language_service.scheduling": {"language_service.cache"},
    # Runs the plain layers to see the inputs of their matrices.
    "language_service.calibration": {"checkpoint.families", "checkpoint", "language_service.model"},
    "language_service.sampling": {"tandem.v1", "chassis", "language_service.kernels"},
    "language_service.engine": {
        *("chassis", "checkpoint.families", "checkpoint"),
        "language_service.model",
        "language_service.kernels",
        "language_service.cache",
        "language_service.scheduling",
        "language_service.sampling",
    },
    "language_service": {
        "tandem.v1",
        "chassis",
        "checkpoint",
        "hosting",
        "language_service.scheduling",
        "language_service.sampling",
        "language_service.engine",
    },
    "gateway.admission": {"chassis"},
    "gateway.stages": {"tandem.v1", "chassis", "checkpoint.families", "checkpoint", "processing"},
    "gateway.filters": {"tandem.v1", "chassis", "processing"},
    "gateway.images": {"tandem.v1", "chassis", "checkpoint", "gateway.stages"},
    "gateway.answer": {
        "tandem.v1",
        "chassis",
        "processing",
        "gateway.admission",
        "gateway.stages",
        "gateway.filters",
        "gateway.images",
    },
    "gateway.rollout.policy": {"chassis"},
    "gateway.rollout": {
        "tandem.v1",
        "chassis",
        "checkpoint.probes",
        "checkpoint",
        "gateway.admission",
        "gateway.stages",
        "gateway.answer",
        "gateway.rollout.policy",
    },
    # Reads the releases, the rollout and finished requests, for operators alone. Nothing below knows of it.
    "gateway.operations": {
        "tandem.v1",
        "chassis",
        "gateway.admission",
        "gateway.stages",
        "gateway.answer",
        "gateway.rollout",
    },
    "gateway": {
        "tandem.v1",
        "chassis",
        "checkpoint.probes",
        "checkpoint",
        "gateway.admission",
        "gateway.stages",
        "gateway.filters",
        "gateway.images",
        "gateway.answer",
        "gateway.rollout",
        "gateway.operations",
    },
    "http_gateway.schemas": set(),
    "http_gateway.wire": {"chassis", "http_gateway.schemas"},
    # Counts the bytes of fetched images with those of bodies.
    "http_gateway.images": {"tandem.v1", "chassis", "http_gateway.wire"},
    "http_gateway.door": {"tandem.v1", "chassis", "http_gateway.wire", "http_gateway.images"},
    "http_gateway.chat": {
        *("tandem.v1", "chassis", "http_gateway.schemas", "http_gateway.wire"),
        *("http_gateway.images", "http_gateway.door"),
    },
    "http_gateway.page": {"tandem.v1", "chassis", "http_gateway.wire", "http_gateway.door"},
    "http_gateway": {
        *("tandem.v1", "chassis", "http_gateway.schemas", "http_gateway.wire", "http_gateway.images"),
        *("http_gateway.door", "http_gateway.chat", "http_gateway.page"),
    },
    "tandem.client": {"tandem.v1", "chassis"},
    "tandem.stack": {"chassis", "checkpoint"},
    "tandem.commands": {
        *("tandem.v1", "chassis", "checkpoint.families", "checkpoint.probes", "checkpoint"),
        "gateway.rollout.policy",  # plain Python. `tandem probes run` compares two releases with its test
        "vision_service.backends",  # `tandem checkpoint choose-backend` measures them
        "vision_service.exporting",  # `tandem checkpoint export`
        "processing",  # `tandem checkpoint quantize` runs prompts through the layers
        "language_service.calibration",
        "tandem.client",
        "tandem.stack",
        "tandem",
    },
    "tandem": {"chassis", "processing", "tandem.client"},
}

# Toolboxes and services: others import their modules. Every other room hands on names in its `__init__`.
OPEN = {
    "tandem.v1", "chassis", "checkpoint", "gateway", "gateway.rollout", "vision_service", "language_service", "tandem",
    "http_gateway", "http_gateway.schemas", "http_gateway.wire",
}  # fmt: skip

# Parts that must load without certain libraries, directly or through anything they import.
FREE_OF: dict[str, set[str]] = {
    "gateway.rollout.policy": {"grpc", "asyncio", "socket", "time", "redis", "structlog", "torch", "numpy"},
    "language_service.scheduling": {"grpc", "asyncio", "torch", "numpy"},
    "language_service.cache": {"grpc", "asyncio", "torch", "numpy"},
    "language_service.model": {"grpc", "asyncio", "structlog", "tandem"},
    "vision_service.model": {"grpc", "asyncio", "structlog", "tandem"},
    "gateway.service": {"torch", "redis"},
    "http_gateway.service": {"torch", "redis", "tokenizers", "PIL", "numpy"},
    "tandem": {"grpc", "torch", "redis", "uvloop", "tokenizers", "PIL"},
    "tandem.client": {"torch", "redis", "uvloop", "tokenizers", "PIL"},
}


def room_of(module: str) -> str:
    """Return the innermost room of a module."""
    if module == "tandem.__main__":  # `python -m tandem` is the command
        return "tandem.commands"
    return max((room for room in ROOMS if module == room or module.startswith(room + ".")), key=len)


def is_ours(module: str) -> bool:
    return any(module == room or module.startswith(room + ".") for room in ROOMS)


def edges() -> set[tuple[str, str, str]]:
    """Return importing module, imported module and its room."""
    return {
        (importer, target, room_of(target))
        for importer, path in modules().items()
        for one in imports(path)
        if is_ours(target := module_of(one)) and room_of(target) != room_of(importer)
    }


def test_every_folder_is_a_room() -> None:
    folders = {name.rpartition(".")[0] for name, path in modules().items() if path.name != "__init__.py"}
    assert folders <= set(ROOMS)


def test_imports_point_down_only() -> None:
    assert not sorted(
        f"{importer} imports {target}" for importer, target, room in edges() if room not in ROOMS[room_of(importer)]
    )


def test_every_permission_is_used() -> None:
    """A room must not import more than it needs."""
    used = {(room_of(importer), room) for importer, _, room in edges()}
    assert not {(room, below) for room, allowed in ROOMS.items() for below in allowed} - used


def test_rooms_have_no_circles() -> None:
    """The table itself has none, in any order."""
    left = {room: set(below) for room, below in ROOMS.items()}
    while left:
        bottom = {room for room, below in left.items() if not below & left.keys()}
        assert bottom, f"a circle among {sorted(left)}"
        left = {room: below for room, below in left.items() if room not in bottom}


def test_modules_have_no_circles() -> None:
    """Within a room, too.

    Its own `__init__` is left out: it imports the modules, and Python runs it before them.
    """
    left = {
        name: {
            target
            for one in imports(path)
            if one.at_import and (target := module_of(one)) in modules() and target not in (name, room_of(name))
        }
        for name, path in modules().items()
    }
    while left:
        bottom = {name for name, targets in left.items() if not targets & left.keys()}
        assert bottom, f"a circle among {sorted(left)}"
        left = {name: targets for name, targets in left.items() if name not in bottom}


def test_a_room_with_rooms_inside_imports_none_of_itself() -> None:
    """Its `__init__` runs before those of the rooms inside.

    They must not load their neighbours with it.
    """
    parents = {room for room in ROOMS for other in ROOMS if other.startswith(room + ".")}
    assert {"tandem", "gateway", "gateway.rollout"} <= parents
    for room in parents:
        assert not [one.module for one in imports(modules()[room]) if one.at_import and is_ours(one.module)], room


def test_rooms_are_entered_by_the_front_door() -> None:
    """Others use only the names that `__init__` hands on."""
    wrong = [
        f"{importer} imports {one.module}.{one.name}"
        for importer, path in modules().items()
        for one in imports(path)
        if is_ours(one.module)
        and (room := room_of(one.module)) not in OPEN
        and room != room_of(importer)
        and (one.module != room or one.name not in _handed_on(room))
        and importer not in ROOMS  # a room's own `__init__`
    ]
    assert not wrong


def _handed_on(room: str) -> set[str]:
    """Return `__all__` of a room."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(modules()[room].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Assign) and any(isinstance(to, ast.Name) and to.id == "__all__" for to in node.targets):
            names |= set(ast.literal_eval(node.value))
    return names


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_every_room_has_one_sentence_at_its_top(room: str) -> None:
    if room == "tandem.v1":
        return  # generated
    summary = (ast.get_docstring(ast.parse(modules()[room].read_text(encoding="utf-8"))) or "").split("\n")[0]
    assert summary.endswith("."), room
    assert len(summary.split()) <= 16, room


@pytest.mark.parametrize("part", sorted(FREE_OF))
def test_parts_load_without_heavy_libraries(part: str) -> None:
    loaded = {name.partition(".")[0] for name in loaded_by(part)}
    if part in ROOMS and part != "tandem":
        loaded |= {
            name.partition(".")[0] for module in modules() if room_of(module) == part for name in loaded_by(module)
        }
    assert not loaded & FREE_OF[part]


def test_the_graph_is_of_this_repository() -> None:
    """An empty graph would pass everything above."""
    assert (REPOSITORY / "gateway" / "service.py") in modules().values()
    assert len(edges()) > 200
