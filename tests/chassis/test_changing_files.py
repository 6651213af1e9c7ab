"""Files that change while a process runs, above all certificates."""

import asyncio
import os
import shutil
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from chassis import changing_files
from chassis.changing_files import ChangingFiles
from chassis.channels import ChannelTls, open_channel
from chassis.errors import FailedPrecondition
from chassis.metrics_server import serve_metrics
from chassis.server import Server
from chassis.settings import ProcessSettings, ServiceSettings


@pytest.fixture(autouse=True)
def look_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changing_files, "_CHECK_S", 0.0)


class Folder:
    """A folder of TLS files, like a mounted secret."""

    def __init__(self, path: Path) -> None:
        self.cert, self.key, self.ca = path / "tls.crt", path / "tls.key", path / "ca.crt"

    def take(self, pair: tuple[Path, Path], ca: Path) -> None:
        for source, target in zip((*pair, ca), (self.cert, self.key, self.ca), strict=True):
            new = target.with_suffix(".new")
            shutil.copy(source, new)
            new.replace(target)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


async def health_of(channel: grpc.aio.Channel) -> int:
    stub: Any = health_pb2_grpc.HealthStub(channel)
    return int((await stub.Check(health_pb2.HealthCheckRequest(), timeout=20)).status)


async def is_served(port: int, tls: ChannelTls) -> bool:
    """Return whether a new channel is served."""
    async with open_channel(f"localhost:{port}", tls=tls) as channel:
        try:
            return await health_of(channel) == 1  # SERVING
        except grpc.aio.AioRpcError as error:
            if error.code() != grpc.StatusCode.UNAVAILABLE:
                raise
            return False


async def test_new_connections_get_the_renewed_certificate_and_old_ones_stay(folder: Folder, certificates: Any) -> None:
    folder.take(certificates.server, certificates.ca)
    server = Server(ServiceSettings(tls_cert=folder.cert, tls_key=folder.key))
    await server.start()
    async with open_channel(f"localhost:{server.port}", tls=ChannelTls(ca=certificates.ca)) as old:
        assert await health_of(old)
        folder.take(certificates.stranger, certificates.other_ca)
        assert await is_served(server.port, ChannelTls(ca=certificates.other_ca))
        assert not await is_served(server.port, ChannelTls(ca=certificates.ca))
        assert await health_of(old)
    await server.stop(0)


async def test_a_removed_authority_admits_no_new_client(folder: Folder, certificates: Any) -> None:
    cert, key = certificates.server
    folder.take((cert, key), certificates.ca)
    server = Server(ServiceSettings(tls_cert=folder.cert, tls_key=folder.key, tls_client_ca=folder.ca))
    await server.start()
    clients = [
        ChannelTls(ca=certificates.ca, cert=own[0], key=own[1]) for own in (certificates.client, certificates.stranger)
    ]
    assert [await is_served(server.port, tls) for tls in clients] == [True, False]
    folder.take((cert, key), certificates.other_ca)
    assert [await is_served(server.port, tls) for tls in clients] == [False, True]
    await server.stop(0)


async def test_a_pair_that_does_not_fit_changes_nothing(folder: Folder, certificates: Any) -> None:
    """A writer may replace the certificate before the key."""
    folder.take(certificates.server, certificates.ca)
    server = Server(ServiceSettings(tls_cert=folder.cert, tls_key=folder.key))
    await server.start()
    shutil.copy(certificates.stranger[0], folder.cert)
    assert await is_served(server.port, ChannelTls(ca=certificates.ca))
    shutil.copy(certificates.stranger[1], folder.key)
    assert await is_served(server.port, ChannelTls(ca=certificates.other_ca))
    await server.stop(0)


async def test_a_channel_connects_anew_with_renewed_files(folder: Folder, certificates: Any) -> None:
    cert, key = certificates.server
    settings = ServiceSettings(tls_cert=cert, tls_key=key, tls_client_ca=certificates.ca)
    server = Server(settings)
    await server.start()
    folder.take(certificates.stranger, certificates.ca)
    tls = ChannelTls(ca=folder.ca, cert=folder.cert, key=folder.key)
    async with open_channel(f"localhost:{server.port}", tls=tls) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        with pytest.raises(grpc.aio.AioRpcError):
            await stub.Check(health_pb2.HealthCheckRequest(), timeout=20)
        folder.take(certificates.client, certificates.ca)
        assert (await stub.Check(health_pb2.HealthCheckRequest(), timeout=20)).status == 1
        watch = stub.Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == 1
        folder.take(certificates.stranger, certificates.ca)
        with pytest.raises(grpc.aio.AioRpcError):
            await stub.Check(health_pb2.HealthCheckRequest(), timeout=20)
        server.health.set("", serving=False)
        assert (await watch.read()).status == 2  # running calls end on their connection
        watch.cancel()
    await server.stop(0)


async def test_http_servers_use_renewed_files(folder: Folder, certificates: Any) -> None:
    folder.take(certificates.server, certificates.ca)
    settings = ProcessSettings(tls_cert=folder.cert, tls_key=folder.key, metrics_tls=True)
    async with serve_metrics(settings) as port:
        assert await served_over_tls(port, certificates.ca)
        folder.take(certificates.stranger, certificates.other_ca)
        assert await served_over_tls(port, certificates.other_ca)
        assert not await served_over_tls(port, certificates.ca)


async def served_over_tls(port: int, ca: Path) -> bool:
    context = ssl.create_default_context(cafile=ca)
    try:
        _reader, writer = await asyncio.open_connection("localhost", port, ssl=context)
    except ssl.SSLCertVerificationError:
        return False
    writer.close()
    return True


def changed(path: Path, text: str) -> None:
    """Replace a file, with another time on coarse clocks too."""
    new = path.with_suffix(".new")
    new.write_text(text)
    new.replace(path)
    os.utime(path, ns=(1, hash(text) % 10**9))


def test_a_file_is_read_again_only_after_a_change(tmp_path: Path) -> None:
    path = tmp_path / "a"
    reads = []

    def read() -> str:
        reads.append(path.read_text())
        return reads[-1]

    changed(path, "one")
    files = ChangingFiles([path, None], read)
    assert [files.current() for _ in range(3)] == 3 * ["one"]
    assert len(reads) == 1
    changed(path, "two")
    assert (files.current(), files.num_changes(), len(reads)) == ("two", 1, 2)


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: changed(path, "bad")], ids=["gone", "bad"])
def test_the_last_value_stays_until_the_file_is_good(damage: Callable[[Path], None], tmp_path: Path) -> None:
    path = tmp_path / "a"

    def read() -> str:
        if path.read_text() == "bad":
            raise FailedPrecondition("Bad.", reason="BAD_TLS")
        return path.read_text()

    changed(path, "one")
    files = ChangingFiles([path], read)
    damage(path)
    assert [files.current(), files.current()] == ["one", "one"]
    changed(path, "two")
    assert files.current() == "two"
