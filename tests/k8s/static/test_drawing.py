"""The image of the dashboard in docs/kubernetes.md."""

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import tandem
from tandem.stack import Stack
from tests.k8s.static.conftest import IMAGES, Prometheus
from tests.k8s.static.drawing import draw

pytestmark = [pytest.mark.k8s, pytest.mark.slow, pytest.mark.timeout(300)]

COMMAND = (sys.executable, "-m", "tandem")


@pytest.mark.skipif("TANDEM_DRAW" not in os.environ, reason="TANDEM_DRAW names the file to write")
def test_the_dashboard_is_drawn_under_load(stack: Stack, prometheus: Prometheus) -> None:
    """Thirty streams ask while traffic moves to the newer release."""
    end_s = time.monotonic() + 90

    def ask(number: int) -> None:
        with tandem.Client(stack.address) as client:
            while time.monotonic() < end_s:
                client.ask("Is the bag made of leather?", images=[IMAGES[number % 2]], max_tokens=16)
                time.sleep(0.5)

    with ThreadPoolExecutor(30) as pool:
        asking = [pool.submit(ask, number) for number in range(30)]
        time.sleep(20)
        subprocess.run(
            [*COMMAND, "rollout", "set", "tandem-demo-v1.1.0", "--steps", "10:20s,50:10m,100"],
            check=True,
            env={**os.environ, "TANDEM_ADDRESS": stack.address},
        )
        for each in asking:
            each.result()
    draw(Path(os.environ["TANDEM_DRAW"]), prometheus.query_range)
