"""A client process that asks questions until SIGTERM, then prints the outcomes.

python -m tests.k8s.load dns:///gateway.tandem.svc.cluster.local:50050 30 12
"""

import asyncio
import itertools
import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict, dataclass
from types import TracebackType

from tests.end_to_end.load import LoadGenerator, count_outcomes


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """The outcomes of all requests."""

    requests: int
    failed: dict[str, int]  # by code and reason
    longest_s: float  # of any request
    longest_gap_s: float  # between two answers of all streams

    def row(self, name: str) -> str:
        """Return a row of a table."""
        failed = sum(self.failed.values())
        why = f" {self.failed}" if failed else ""
        return f"{name:55} {self.requests:6} {failed:4} {self.longest_s:7.1f} {self.longest_gap_s:7.1f}{why}"


HEADER = f"{'under 30 streams':55} {'asked':>6} {'fail':>4} {'longest':>7} {'gap':>7}"


class Load:
    """Streams of questions in a process of their own."""

    def __init__(self, address: str, api_key: str, *, streams: int = 30, max_tokens: int = 12) -> None:
        self._summary: Summary | None = None
        self._command = [sys.executable, "-m", "tests.k8s.load", address, str(streams), str(max_tokens)]
        self._environment = {**os.environ, "TANDEM_API_KEY": api_key}

    @property
    def summary(self) -> Summary:
        """The outcomes, after the block."""
        assert self._summary is not None
        return self._summary

    def __enter__(self) -> "Load":
        self._process = subprocess.Popen(self._command, env=self._environment, stdout=subprocess.PIPE, encoding="utf-8")
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "answered\n", "the load got no answer"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None:
            self._process.kill()
        self._process.terminate()
        out, _error = self._process.communicate(timeout=120)
        if kind is None:
            self._summary = Summary(**json.loads(out))


async def main(address: str, streams: int, max_tokens: int) -> None:
    """Ask until SIGTERM."""
    key = os.environ.get("TANDEM_API_KEY") or None
    load = LoadGenerator({"gateway": address}, streams=streams, max_tokens=max_tokens, api_key=key)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, load.stop)
    asking = asyncio.create_task(load.run())
    await load.wait_for_outcomes(streams)
    print("answered", flush=True)
    await asking
    ends = sorted(one.ended_at for one in load.outcomes if one.error is None)
    counts = count_outcomes(load.outcomes)
    counts.pop("answered", None)
    summary = Summary(
        requests=len(load.outcomes),
        failed=counts,
        longest_s=max(one.seconds for one in load.outcomes),
        longest_gap_s=max(after - before for before, after in itertools.pairwise(ends)),
    )
    print(json.dumps(asdict(summary)), flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
