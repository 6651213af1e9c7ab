"""A simulated cell: gateways, replicas of both stages, one Redis, and users."""

import asyncio
import itertools
from collections.abc import Callable

import numpy as np

from benchmarks.tools.simulated_gateway import CellPlan, Choose, Gateway, SimulatedRedis, Stages, Tally
from benchmarks.tools.simulated_replicas import BLOCK, LanguageReplica, Prompt, Times, VisionReplica
from benchmarks.tools.simulated_rollout import SimulatedRollout
from gateway.stages.balance import by_prefix

ZONES = 3
# After three late lists of models, a replica is the last choice. Keepalive ends the calls in flight there.
NOTICED_AFTER_S, HANGS_FOR_S = 9.0, 30.0


class Cell:
    """Gateways that share replicas and a Redis, in simulated time."""

    def __init__(
        self,
        plan: CellPlan,
        times: Times,
        random: np.random.Generator,
        *,
        router: Callable[[], Choose] = lambda: by_prefix,
    ) -> None:
        """Start idle.

        Args:
            plan: size and traffic.
            times: of the replicas' work.
            random: draws the traffic.
            router: makes the rule of one gateway, from calls in flight by replica and a prefix to a replica.
        """
        self.plan = plan
        self._times, self._random = times, random
        self._loop = asyncio.get_running_loop()
        self.language = {f"10.0.{n // 256}.{n % 256}:50052": self._language(n) for n in range(plan.language)}
        self.vision = {
            f"10.1.{n // 256}.{n % 256}:50051": VisionReplica(str(n), times, cache_entries=plan.vision_entries)
            for n in range(plan.vision)
        }
        self.redis = SimulatedRedis(plan)
        stages = Stages(self.language, self.vision, self.redis, times, random)
        self.gateways = [Gateway(plan, stages, router()) for _ in range(plan.gateways)]
        self._refreshing = [self._loop.create_task(gateway.refresh()) for gateway in self.gateways]
        popularity = np.arange(1, plan.images + 1, dtype=np.float64) ** -plan.zipf
        self._popularity = np.cumsum(popularity) / popularity.sum()
        self._hot: tuple[int, float] | None = None
        self._rollout: SimulatedRollout | None = None
        self._conversations = itertools.count()
        self._tasks: set[asyncio.Task[None]] = set()
        self._tally = Tally()
        self._is_open = True

    @property
    def now_s(self) -> float:
        """Simulated seconds."""
        return self._loop.time()

    def _language(self, number: int) -> LanguageReplica:
        plan = self.plan
        return LanguageReplica(
            str(number),
            self._times,
            num_blocks=plan.kv_blocks,
            max_running=plan.max_running,
            max_waiting=plan.max_waiting,
            jitter=self._random.random,
        )

    def make_hot(self, image: int, share: float) -> None:
        """Let a share of new conversations ask about one image."""
        self._hot = (image, share)

    def start_rollout(self, error_rate: float) -> SimulatedRollout:
        """Give 1 % of the conversations to a failing canary."""
        self._rollout = SimulatedRollout(error_rate, self._random)
        return self._rollout

    def lose_zone(self) -> None:
        """Lose a third of all processes, without a goodbye."""
        lost = [name for number, name in enumerate(self.language) if number % ZONES == 0]
        lost_vision = [name for number, name in enumerate(self.vision) if number % ZONES == 0]
        for name in lost:
            self.language[name].lose(HANGS_FOR_S)
        for name in lost_vision:
            self.vision[name].lose(HANGS_FOR_S)
        gone, self.gateways = self.gateways[::ZONES], [g for n, g in enumerate(self.gateways) if n % ZONES]
        self._loop.call_later(NOTICED_AFTER_S, self._leave_out, {*lost, *lost_vision})
        for gateway in gone:
            gateway.is_lost = True

    def _leave_out(self, lost: set[str]) -> None:
        for gateway in self.gateways:
            gateway.leave_out(lost)

    async def play(self, rate: float, seconds: float) -> Tally:
        """Let requests arrive for a while, and return them.

        Args:
            rate: requests per second, once conversations that began before have had their turns.
            seconds: simulated.
        """
        self._tally = tally = Tally(seconds=seconds)
        end_s = self.now_s + seconds
        mean_gap_s = self.plan.turns / rate
        while True:
            gaps = self._random.exponential(mean_gap_s, 1024)
            images = np.searchsorted(self._popularity, self._random.random(1024))
            for gap, image in zip(gaps.tolist(), images.tolist(), strict=True):
                if self.now_s + gap > end_s:
                    await asyncio.sleep(end_s - self.now_s)
                    return tally
                await asyncio.sleep(gap)
                if self._hot is not None and self._random.random() < self._hot[1]:
                    image = self._hot[0]
                task = self._loop.create_task(self._converse(image))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Wait for the answers in flight. No further turns begin."""
        self._is_open = False
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def _converse(self, image: int) -> None:
        """Ask questions about an image."""
        plan, random = self.plan, self._random
        name = next(self._conversations)
        length = plan.system_tokens + plan.image_tokens
        while self._is_open:
            length += plan.question_tokens
            answer_tokens = 1 + int(random.exponential(plan.answer_tokens - 1))
            self._tally.arrived += 1
            gateway = self.gateways[int(random.integers(len(self.gateways)))]
            prompt = Prompt(length, self._hashes(name, image, length + answer_tokens))
            if self._rollout is not None and not self._rollout.lets_pass(name):
                self._tally.failures["CANARY"] += 1
                return
            work = await gateway.answer(image, prompt, answer_tokens, self._tally)
            if self._rollout is not None:
                self._rollout.count(name, work)
            if work is None:
                return
            length += answer_tokens
            if random.random() >= 1 - 1 / plan.turns:
                return
            await asyncio.sleep(random.exponential(plan.think_s))

    def _hashes(self, conversation: int, image: int, num_tokens: int) -> list[bytes]:
        """Return hashes of full blocks. Equal tokens have equal ones."""
        plan = self.plan
        system = plan.system_tokens // BLOCK
        shared = (plan.system_tokens + plan.image_tokens) // BLOCK
        return [
            b"%d" % block
            if block < system
            else b"i%d:%d" % (image, block)
            if block < shared
            else b"c%d:%d" % (conversation, block)
            for block in range(num_tokens // BLOCK)
        ]
