"""Room for messages that are being received."""

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from chassis import pauses, receiving
from chassis.errors import DeadlineExceeded, ResourceExhausted, TandemError
from chassis.receiving import ReceiveBudget
from chassis.sender import Sender


def sender(host: int, port: int = 1, caller: str = "") -> Sender:
    return Sender.of(f"ipv4:10.0.0.{host}:{port}", caller)


class Reads:
    """Reads that end when the test says so."""

    def __init__(self, budget: ReceiveBudget) -> None:
        self.budget = budget
        self.begun: list[Sender] = []
        self.ends: dict[int, asyncio.Event] = {}
        self.tasks: list[asyncio.Task[str]] = []

    def start(self, sender: Sender) -> int:
        """Start a read and return its number."""
        number = len(self.tasks)
        end = self.ends[number] = asyncio.Event()

        async def read() -> str:
            self.begun.append(sender)
            await end.wait()
            return "message"

        self.tasks.append(asyncio.create_task(self.budget.receive(read, sender)))
        return number

    async def end(self, number: int) -> str:
        self.ends[number].set()
        return await self.tasks[number]

    def reason(self, number: int) -> str | None:
        """Return why a read was refused, or None."""
        task = self.tasks[number]
        error = task.exception() if task.done() else None
        return error.reason if isinstance(error, TandemError) else None


@pytest.fixture
async def reads() -> AsyncIterator[Callable[..., Reads]]:
    made: list[Reads] = []

    def make(num_places: int, timeout_s: float = 60) -> Reads:
        made.append(Reads(ReceiveBudget(num_places=num_places, timeout_s=timeout_s, patience_s=receiving.PATIENCE_S)))
        return made[-1]

    yield make
    for one in made:
        for task in one.tasks:
            task.cancel()
        await asyncio.gather(*one.tasks, return_exceptions=True)
        assert (one.budget.num_reads, one.budget.num_waiting) == (0, 0)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Count every read as slow at once."""
    monkeypatch.setattr(receiving, "PATIENCE_S", 0)


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_a_message_is_returned(reads: Callable[..., Reads]) -> None:
    one = reads(4)
    assert await one.end(one.start(sender(1))) == "message"


async def test_no_more_messages_arrive_at_once_than_have_room(reads: Callable[..., Reads]) -> None:
    one = reads(8)
    for number in range(40):
        one.start(sender(number % 10, number))
    await settle()
    assert (len(one.begun), one.budget.num_reads, one.budget.num_waiting) == (8, 8, 32)
    await one.end(0)
    await settle()
    assert (len(one.begun), one.budget.num_reads, one.budget.num_waiting) == (9, 8, 31)


@pytest.mark.parametrize(
    ("senders", "num_begun"),
    [
        ([sender(1)] * 8, 2),  # a connection has a quarter
        ([sender(1, port) for port in range(8)], 4),  # a host of strangers has half
        ([sender(host, caller="a") for host in range(8)], 4),  # a caller has half, wherever it is
        ([sender(1, port, caller=f"{port}") for port in range(8)], 8),  # callers behind one proxy have their own
    ],
)
async def test_one_sender_has_a_share_and_another_does_not_wait_for_it(
    reads: Callable[..., Reads], senders: list[Sender], num_begun: int
) -> None:
    one = reads(8)
    for each in senders:
        one.start(each)
    await settle()
    assert len(one.begun) == num_begun
    if num_begun < 8:
        assert await one.end(one.start(sender(2, 9, caller="b"))) == "message"


async def test_waiting_hosts_take_turns(reads: Callable[..., Reads]) -> None:
    one = reads(2)
    occupied = [one.start(sender(host)) for host in (1, 2)]
    for host in (3, 3, 3, 4):
        one.start(sender(host))
    await settle()
    for number in occupied:
        await one.end(number)
    await settle()
    assert one.begun[2:] == [sender(3), sender(4)]


async def test_a_cancelled_call_in_the_queue_frees_its_turn(reads: Callable[..., Reads]) -> None:
    one = reads(2)
    occupied = [one.start(sender(host)) for host in (1, 2)]
    gone, next_one = one.start(sender(3)), one.start(sender(3))
    await settle()
    one.tasks[gone].cancel()
    await settle()
    assert one.budget.num_waiting == 1
    await one.end(occupied[0])
    assert await one.end(next_one) == "message"


@pytest.mark.usefixtures("impatient")
async def test_a_slow_read_keeps_its_place_while_nobody_needs_it(reads: Callable[..., Reads]) -> None:
    one = reads(4)
    numbers = [one.start(sender(host)) for host in range(4)]
    await asyncio.sleep(0.05)
    assert [one.reason(number) for number in numbers] == [None] * 4
    assert await one.end(numbers[0]) == "message"


@pytest.mark.usefixtures("impatient")
async def test_the_oldest_slow_read_leaves_for_a_call_that_waits(reads: Callable[..., Reads]) -> None:
    one = reads(4)
    numbers = [one.start(sender(host)) for host in range(4)]
    await asyncio.sleep(0.05)
    assert await one.end(one.start(sender(9))) == "message"
    assert [one.reason(number) for number in numbers] == ["RECEIVING_BUSY", None, None, None]


async def test_a_read_has_seconds_even_while_others_wait(reads: Callable[..., Reads]) -> None:
    """Honest messages take longer on a busy machine."""
    one = reads(4)
    numbers = [one.start(sender(host)) for host in range(8)]
    await asyncio.sleep(0.2)
    assert [one.reason(number) for number in numbers] == [None] * 8
    for number in numbers:
        assert await one.end(number) == "message"


@pytest.mark.usefixtures("impatient")
async def test_no_read_leaves_for_a_call_that_could_not_take_its_place(reads: Callable[..., Reads]) -> None:
    one = reads(8)
    others = [one.start(sender(host)) for host in (1, 2, 3)]
    await settle()
    first, second = one.start(sender(4)), one.start(sender(4))
    await asyncio.sleep(0.05)
    waiting = one.start(sender(4))  # its connection has its share
    await asyncio.sleep(0.05)
    assert [one.reason(number) for number in (*others, first, second)] == [None] * 3 + ["RECEIVING_BUSY", None]
    assert await one.end(waiting) == "message"


async def test_a_message_that_does_not_arrive_is_refused(reads: Callable[..., Reads]) -> None:
    one = reads(4, timeout_s=0.01)
    with pytest.raises(DeadlineExceeded) as raised:
        await one.tasks[one.start(sender(1))]
    assert raised.value.reason == "RECEIVE_TIMEOUT"


async def test_a_full_queue_refuses_at_once(reads: Callable[..., Reads], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receiving, "MAX_WAITING", 8)
    one = reads(2)
    for host in (1, 2):
        one.start(sender(host))
    waiting = [one.start(sender(3)) for _ in range(4)]
    await settle()
    with pytest.raises(ResourceExhausted) as raised:  # half of the queue may be of one owner
        await one.tasks[one.start(sender(3))]
    assert raised.value.retry_after_s is not None
    one.start(sender(4))
    await settle()
    assert one.budget.num_waiting == len(waiting) + 1


async def test_the_sender_of_an_oversized_message_waits_and_others_do_not(
    reads: Callable[..., Reads], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pauses, "PAUSE_S", 0.2)
    one = reads(1)
    one.budget.pause(sender(1, 1))
    held = [one.start(sender(1, port)) for port in (1, 2)]  # a new connection is no way around it
    assert await one.end(one.start(sender(2))) == "message"
    assert (one.begun, one.budget.num_waiting) == ([sender(2)], 2)
    async with asyncio.timeout(60):
        assert [await one.end(number) for number in held] == ["message"] * 2


async def test_a_connection_of_good_messages_does_not_wait_for_others_behind_its_proxy(
    reads: Callable[..., Reads],
) -> None:
    one = reads(1)
    for port in (1, 2):
        one.budget.accept(sender(9, port))
    one.budget.pause(sender(9, 1))
    waiting = one.start(sender(9, 1))
    assert await one.end(one.start(sender(9, 2))) == "message"
    assert one.reason(waiting) is None
    assert one.begun == [sender(9, 2)]


async def test_pauses_add_up_to_a_limit_and_few_calls_wait_for_their_end(
    reads: Callable[..., Reads], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receiving, "MAX_PAUSED", 3)
    one = pauses.Pauses()
    lengths = [one.begin(sender(1)) for _ in range(100)]
    assert lengths[0] == pytest.approx(pauses.PAUSE_S)
    assert lengths[1] == pytest.approx(2 * pauses.PAUSE_S, abs=1)
    assert lengths[-1] == pytest.approx(pauses.LONGEST_PAUSE_S)

    two = reads(1)
    two.budget.pause(sender(1))
    for _ in range(3):
        two.start(sender(1))
    await settle()
    with pytest.raises(ResourceExhausted):
        await two.tasks[two.start(sender(1))]


def test_addresses_of_one_ipv6_network_are_one_host() -> None:
    first, second, other = (
        Sender.of(f"ipv6:%5B2001:db8:0:{net}::{last}%5D:7") for net, last in ((1, 1), (1, 2), (2, 1))
    )
    assert first.owner == second.owner != other.owner
    assert Sender.of("ipv4:10.0.0.1:7").owner == "10.0.0.1"
    assert Sender.of("unix:").owner == "unix:"
