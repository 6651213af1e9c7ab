"""`tandem rollout`: move live traffic to another release, or back."""

import json
import re
import time
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer
from google.protobuf.json_format import MessageToDict

from tandem.client import Rollouts
from tandem.commands import rollout_options as options
from tandem.commands.connection import DEFAULT_ADDRESS, Address, ApiKey, Ca, Cert, Key, TimeoutS
from tandem.commands.rollout_view import plain_name, rollout_view
from tandem.commands.terminal import live_display, show, table_console
from tandem.v1 import rollout_pb2

app = typer.Typer(no_args_is_help=True, help="Move live traffic to another release, or back.")

REFRESH_S = 1.0
_STEP = re.compile(r"(?P<weight>\d+(\.\d+)?)(:(?P<length>\d+(\.\d+)?)(?P<unit>[smh]))?(:(?P<requests>\d{1,9})r)?")
_UNIT_S = {"s": 1, "m": 60, "h": 3600}

Json = Annotated[bool, typer.Option("--json", help="Print the message of the contract as JSON.")]
Reason = Annotated[str, typer.Option(metavar="TEXT", help="Reason of the change, for the log.")]


@app.command("set")
def set_rollout(
    canary: options.Canary,
    steps: options.Steps = "1:5m,5:10m,25:20m,50:30m,100",
    stable: options.Stable = "",
    error_rate: options.ErrorRate = 0.02,
    empty_rate: options.EmptyRate = 0.02,
    first_token: options.FirstToken = 1.5,
    inter_token: options.InterToken = 1.5,
    min_requests: options.MinRequests = 50,
    overdue_s: options.OverdueS = 10,
    repetition: options.Repetition = 0.02,
    wrong_script: options.WrongScript = 0.02,
    cut_off: options.CutOff = 0,
    dislikes: options.Dislikes = 0.05,
    constraints: options.Constraints = 0.02,
    max_length_ratio: options.LengthRatio = 0,
    max_logprob_drop: options.LogprobDrop = 0,
    max_quality_drop: options.QualityDrop = 0.02,
    probe_timeout_s: options.ProbeTimeoutS = 0,
    probes_before_traffic: options.ProbesBefore = 0,
    shadow: options.Shadow = 0,
    shadow_canary: options.ShadowCanary = 0,
    json_output: Json = False,
    address: Address = DEFAULT_ADDRESS,
    ca: Ca = None,
    cert: Cert = None,
    key: Key = None,
    api_key: ApiKey = None,
    timeout_s: TimeoutS = 10.0,
) -> None:
    """Start to move traffic to another release."""
    guard = rollout_pb2.RolloutGuard(
        max_error_rate_increase=error_rate or None,
        max_empty_rate_increase=empty_rate or None,
        max_first_token_ratio=first_token or None,
        max_inter_token_ratio=inter_token or None,
        min_requests=min_requests,
        overdue_s=overdue_s,
        max_repetition_increase=repetition or None,
        max_wrong_script_increase=wrong_script or None,
        max_cut_off_increase=cut_off or None,
        max_dislike_increase=dislikes or None,
        max_constraint_increase=constraints or None,
        max_length_ratio=max_length_ratio or None,
        max_logprob_drop=max_logprob_drop or None,
        max_quality_drop=max_quality_drop or None,
        probe_timeout_s=probe_timeout_s,
        probes_before_traffic=probes_before_traffic,
    )
    plan = rollout_pb2.RolloutPlan(
        stable=stable,
        canary=canary,
        steps=parse_steps(steps),
        guard=guard,
        shadow_percent=shadow,
        shadow_canary_percent=shadow_canary,
    )
    with _connect(address, ca, cert, key, api_key, timeout_s) as rollouts:
        _show(rollouts.set(plan), json_output)


@app.command()
def status(
    watch: Annotated[bool, typer.Option("--watch", help="Refresh until Ctrl-C.")] = False,
    json_output: Json = False,
    address: Address = DEFAULT_ADDRESS,
    ca: Ca = None,
    cert: Cert = None,
    key: Key = None,
    api_key: ApiKey = None,
    timeout_s: TimeoutS = 10.0,
) -> None:
    """Show the rollout: weights, counts and the guard's findings."""
    with _connect(address, ca, cert, key, api_key, timeout_s) as rollouts:
        if not watch:
            _show(rollouts.get(), json_output)
            return
        if json_output:
            while True:
                _show(rollouts.get(), json_output)
                time.sleep(REFRESH_S)
        with live_display() as show:
            while True:
                show(rollout_view(rollouts.get(), time.time()))
                time.sleep(REFRESH_S)


@app.command()
def promote(
    reason: Reason = "",
    json_output: Json = False,
    address: Address = DEFAULT_ADDRESS,
    ca: Ca = None,
    cert: Cert = None,
    key: Key = None,
    api_key: ApiKey = None,
    timeout_s: TimeoutS = 10.0,
) -> None:
    """Send all traffic to the canary now, ignoring the guard."""
    with _connect(address, ca, cert, key, api_key, timeout_s) as rollouts:
        _show(rollouts.promote(reason), json_output)


@app.command()
def rollback(
    reason: Reason = "",
    json_output: Json = False,
    address: Address = DEFAULT_ADDRESS,
    ca: Ca = None,
    cert: Cert = None,
    key: Key = None,
    api_key: ApiKey = None,
    timeout_s: TimeoutS = 10.0,
) -> None:
    """Send all new requests to the stable release now.

    Running answers finish on the release where they started.
    """
    with _connect(address, ca, cert, key, api_key, timeout_s) as rollouts:
        _show(rollouts.roll_back(reason), json_output)


@app.command()
def watch(
    json_output: Json = False,
    address: Address = DEFAULT_ADDRESS,
    ca: Ca = None,
    cert: Cert = None,
    key: Key = None,
    api_key: ApiKey = None,
    timeout_s: TimeoutS = 10.0,
) -> None:
    """Print every change with its reason, until Ctrl-C.

    Past changes come first.
    """
    last = 0
    with _connect(address, ca, cert, key, api_key, timeout_s) as rollouts:
        for rollout in rollouts.watch():
            for change in rollout.changes:
                if change.number > last:
                    last = change.number
                    show(json.dumps(_plain(change)) if json_output else change_line(change))


def parse_steps(text: str) -> list[rollout_pb2.RolloutStep]:
    """Parse steps such as '1:5m,5:10m:200r,100'.

    Raises:
        typer.BadParameter: a step is malformed.
    """
    steps = []
    for part in text.split(","):
        match = _STEP.fullmatch(part.strip())
        if match is None:
            raise typer.BadParameter(f"{part!r} is not WEIGHT[:LENGTH(s|m|h)][:ANSWERSr], as in 5:10m:200r")
        seconds = float(match["length"]) * _UNIT_S[match["unit"]] if match["length"] else 0.0
        steps.append(
            rollout_pb2.RolloutStep(
                weight_percent=float(match["weight"]), seconds=seconds, requests=int(match["requests"] or 0)
            )
        )
    return steps


def change_line(change: rollout_pb2.RolloutChange) -> str:
    """Return one change as a line."""
    at = datetime.fromtimestamp(change.at_s).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    event = plain_name(rollout_pb2.RolloutEvent.DESCRIPTOR, change.event)
    return f"{at}  {event:11}  {change.weight_percent:5g} %  {change.reason}"


def _connect(
    address: str, ca: Path | None, cert: Path | None, key: Path | None, api_key: str | None, timeout_s: float
) -> Rollouts:
    return Rollouts(address, ca=ca, cert=cert, key=key, api_key=api_key, timeout_s=timeout_s)


def _show(rollout: rollout_pb2.Rollout, json_output: bool) -> None:
    if json_output:
        show(json.dumps(_plain(rollout)))
        return
    table_console().print(rollout_view(rollout, time.time()))


def _plain(message: rollout_pb2.Rollout | rollout_pb2.RolloutChange) -> dict[str, object]:
    plain: dict[str, object] = MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return plain
