"""Show a rollout's state and both releases side by side."""

from google.protobuf.descriptor import EnumDescriptor
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tandem.v1 import rollout_pb2

_PHASE_STYLES = {"running": "yellow", "preparing": "yellow", "promoted": "green", "rolled back": "red"}
_VERDICT_STYLES = {"within": "green", "beyond": "red", "open": "yellow"}
# The other metrics are rates.
_TIMES = (rollout_pb2.ROLLOUT_METRIC_FIRST_TOKEN, rollout_pb2.ROLLOUT_METRIC_INTER_TOKEN)
_MAX_SLICES = 4
_COUNTS = ("requests", "errors", "overdue", "empty", "waiting")
_SIGNS = (
    "looped",
    "cut_off",
    "wrong_script",
    "same_text",
    "filtered",
    "rated",
    "disliked",
)  # rows only where there are some


def rollout_view(rollout: rollout_pb2.Rollout, now_s: float) -> RenderableType:
    """Return a rollout's state, counts and guard findings.

    Args:
        rollout: as the gateway reports it.
        now_s: Unix time, seconds.
    """
    parts: list[RenderableType] = []
    if not rollout.store_reachable:
        parts.append(Text("This gateway cannot reach the store; this is the last known state.", "red"))
    if not rollout.id:
        return Group(*parts, Text(f"No rollout yet; {rollout.in_force} answers everything."))
    parts += [_heading(rollout, now_s), _side_by_side(rollout)]
    if rollout.HasField("probes"):
        parts.append(_probes(rollout.probes))
    if rollout.HasField("shadow"):
        parts.append(_mirrored(rollout.shadow))
    parts.append(Text(rollout.changes[-1].reason, "dim"))
    return Group(*parts)


def plain_name(enum: EnumDescriptor, number: int) -> str:
    """Return an enum value in words.

    ROLLOUT_PHASE_ROLLED_BACK becomes 'rolled back'.
    """
    prefix = {"RolloutPhase": "ROLLOUT_PHASE_", "RolloutEvent": "ROLLOUT_EVENT_", "RolloutMetric": "ROLLOUT_METRIC_"}
    value = enum.values_by_number.get(number)
    name = value.name.removeprefix(prefix.get(enum.name, "ROLLOUT_VERDICT_")) if value else str(number)
    return name.replace("_", " ").lower()


def _heading(rollout: rollout_pb2.Rollout, now_s: float) -> Text:
    phase = plain_name(rollout_pb2.RolloutPhase.DESCRIPTOR, rollout.phase)
    text = Text.assemble((phase, _PHASE_STYLES.get(phase, "")), f": {rollout.plan.stable} to {rollout.plan.canary}")
    if rollout.phase == rollout_pb2.ROLLOUT_PHASE_RUNNING:
        step = rollout.plan.steps[rollout.step]
        text.append(f", step {rollout.step + 1} of {len(rollout.plan.steps)}, ")
        text.append(f"{now_s - rollout.step_started_s:.0f} s of {step.seconds:g} s")
        if step.requests:
            text.append(f", {rollout.canary.requests} answers of {step.requests}")
    else:
        text.append(f"; {rollout.in_force} answers")
    return text


def _side_by_side(rollout: rollout_pb2.Rollout) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("", no_wrap=True)
    for column in ("stable", "canary", "effect", "bound", "p beyond", "p within"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True, min_width=len("beyond"))
    weight = rollout.weight_percent
    table.add_row("weight", f"{100 - weight:g} %", f"{weight:g} %")
    for name in _COUNTS:
        table.add_row(
            name.replace("_", " "), f"{getattr(rollout.stable, name):,}", f"{getattr(rollout.canary, name):,}"
        )
    for name in _SIGNS:
        stable, canary = getattr(rollout.stable, name), getattr(rollout.canary, name)
        if stable or canary:
            table.add_row(name.replace("_", " "), f"{stable:,}", f"{canary:,}")
    # An ended rollout shows the numbers behind its last decision.
    findings = rollout.findings or (rollout.changes[-1].findings if rollout.changes else ())
    for finding in findings:
        if not finding.slice:
            table.add_row(*_finding_row(finding))
    # The slices with the largest drop.
    worst = sorted((finding for finding in findings if finding.slice), key=lambda finding: -finding.effect)
    for finding in worst[:_MAX_SLICES]:
        table.add_row(*_finding_row(finding))
    return table


def _finding_row(finding: rollout_pb2.RolloutFinding) -> list[str | Text]:
    is_rate = finding.metric not in _TIMES
    verdict = plain_name(rollout_pb2.RolloutVerdict.DESCRIPTOR, finding.verdict)
    sign, times = ("+", " pp") if is_rate else ("", "x")
    scale = 100 if is_rate else 1
    return [
        _row_name(finding),
        _value(finding.stable, is_rate) if finding.HasField("stable") else "-",
        _value(finding.canary, is_rate) if finding.HasField("canary") else "-",
        f"{scale * finding.effect:{sign}.2f}{times}" if finding.HasField("effect") else "-",
        f"{scale * finding.bound:{sign}.2f}{times}",
        f"{finding.p_beyond:.2g}",
        f"{finding.p_within:.2g}",
        Text(verdict, _VERDICT_STYLES.get(verdict, "")),
    ]


def _row_name(finding: rollout_pb2.RolloutFinding) -> str:
    if finding.slice:
        return f"  {finding.slice}"
    if finding.metric == rollout_pb2.ROLLOUT_METRIC_QUALITY:
        return "quality (probes)"
    return plain_name(rollout_pb2.RolloutMetric.DESCRIPTOR, finding.metric)


def _probes(probes: rollout_pb2.RolloutProbes) -> Text:
    """Return the answers to the probes in words."""
    if not probes.judged + probes.unjudged:
        return Text(f"quality (probes): {probes.problem or 'not asked yet'}")
    unjudged = f", {probes.unjudged} without verdict" if probes.unjudged else ""
    lost = f"; lost: {', '.join(probes.lost_ids[:3])}{', ...' if probes.lost > 3 else ''}" if probes.lost_ids else ""
    return Text(
        f"quality (probes): of {probes.judged} answers stable has {probes.stable_wrong} wrong, the canary "
        f"{probes.canary_wrong}{unjudged}{lost}. {probes.problem}".rstrip()
    )


def _value(value: float, is_rate: bool) -> str:
    return f"{100 * value:.2f} %" if is_rate else f"{1000 * value:.1f} ms"


def _mirrored(shadow: rollout_pb2.RolloutShadowCounts) -> Text:
    first = f", first token {1000 * shadow.first_token_s:.1f} ms" if shadow.HasField("first_token_s") else ""
    between = f", between tokens {1000 * shadow.inter_token_s:.1f} ms" if shadow.HasField("inter_token_s") else ""
    equal = f", {shadow.equal} of {shadow.compared} greedy answers equal" if shadow.compared else ""
    if shadow.worse or shadow.better:
        equal += f" (of the others {shadow.worse} are worse and {shadow.better} better)"
    counts = shadow.counts
    return Text(
        f"mirrored: {counts.requests} requests, {counts.errors} errors{first}{between}{equal}, {shadow.dropped} dropped"
    )
