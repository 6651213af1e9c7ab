"""Show a rollout's state and both releases side by side."""

from google.protobuf.descriptor import EnumDescriptor
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tandem.v1 import rollout_pb2

_PHASE_STYLES = {"running": "yellow", "preparing": "yellow", "promoted": "green", "rolled back": "red"}
_LIVE = (rollout_pb2.ROLLOUT_PHASE_PREPARING, rollout_pb2.ROLLOUT_PHASE_RUNNING)
_VERDICT_STYLES = {"within": "green", "beyond": "red", "open": "yellow"}
# How a metric's values and its effect are written. The other metrics are rates.
_TIME, _RATE = ("{:.1f} ms", 1000, "{:.2f}x", 1), ("{:.2f} %", 100, "{:+.2f} pp", 100)
_FORMATS = {
    rollout_pb2.ROLLOUT_METRIC_FIRST_TOKEN: _TIME,
    rollout_pb2.ROLLOUT_METRIC_INTER_TOKEN: _TIME,
    rollout_pb2.ROLLOUT_METRIC_LENGTH: ("{:.1f}", 1, "{:.2f}x", 1),
    rollout_pb2.ROLLOUT_METRIC_LOGPROB: ("{:.3f}", 1, "{:.3f}", 1),
}
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
    "constraint_failures",
    "constraint_faults",
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
    if rollout.only_here:
        parts.append(Text("The rollback is in force at this gateway only, until the store can take it.", "red"))
    if not rollout.id:
        return Group(*parts, Text(f"No rollout yet; {rollout.in_force} answers everything."))
    parts += [_heading(rollout, now_s), _side_by_side(rollout)]
    if rollout.HasField("probes"):
        parts.append(_probes(rollout.probes, is_live=rollout.phase in _LIVE))
    if rollout.HasField("shadow"):
        parts.append(_mirrored("mirrored to the canary", rollout.shadow))
    if rollout.HasField("shadow_stable"):
        parts.append(_mirrored("mirrored to stable", rollout.shadow_stable))
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
    stable, canary = rollout.stable, rollout.canary
    for name in _SIGNS:
        if getattr(stable, name) or getattr(canary, name):
            table.add_row(name.replace("_", " "), f"{getattr(stable, name):,}", f"{getattr(canary, name):,}")
    if rollout.shadow.compared or rollout.shadow_stable.compared:
        # Of the requests of each release, the answers that the other one gives in the same words.
        table.add_row("agreement", *map(_agreement, (rollout.shadow, rollout.shadow_stable)))
    if stable.HasField("mean_tokens") or canary.HasField("mean_tokens"):
        table.add_row(
            "mean tokens", *(f"{one.mean_tokens:.1f}" if one.mean_tokens else "-" for one in (stable, canary))
        )
    if stable.HasField("mean_logprob") or canary.HasField("mean_logprob"):
        table.add_row(
            "mean logprob", *(f"{one.mean_logprob:.3f}" if one.mean_logprob else "-" for one in (stable, canary))
        )
    _add_findings(table, rollout)
    return table


def _add_findings(table: Table, rollout: rollout_pb2.Rollout) -> None:
    # An ended rollout shows the numbers behind its last decision.
    findings = rollout.findings or (rollout.changes[-1].findings if rollout.changes else ())
    for finding in findings:
        if not finding.slice:
            table.add_row(*_finding_row(finding))
    # The slices with the largest drop.
    worst = sorted((finding for finding in findings if finding.slice), key=lambda finding: -finding.effect)
    for finding in worst[:_MAX_SLICES]:
        table.add_row(*_finding_row(finding))


def _agreement(shadow: rollout_pb2.RolloutShadowCounts) -> str:
    return f"{100 * shadow.equal / shadow.compared:.1f} %" if shadow.compared else "-"


def _finding_row(finding: rollout_pb2.RolloutFinding) -> list[str | Text]:
    verdict = plain_name(rollout_pb2.RolloutVerdict.DESCRIPTOR, finding.verdict)
    value, value_scale, effect, effect_scale = _FORMATS.get(finding.metric, _RATE)
    return [
        _row_name(finding),
        value.format(value_scale * finding.stable) if finding.HasField("stable") else "-",
        value.format(value_scale * finding.canary) if finding.HasField("canary") else "-",
        effect.format(effect_scale * finding.effect) if finding.HasField("effect") else "-",
        effect.format(effect_scale * finding.bound),
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


def _probes(probes: rollout_pb2.RolloutProbes, *, is_live: bool) -> Text:
    """Return the answers to the probes in words."""
    more = f" {probes.remaining} are not asked yet." if probes.remaining and is_live else ""
    problem = f" {probes.problem}" if probes.problem else ""
    if not probes.judged + probes.unjudged:
        return Text(f"quality (probes):{problem or ' not asked yet'}{more}")
    unjudged = f", {probes.unjudged} without verdict" if probes.unjudged else ""
    lost = f"; lost: {', '.join(probes.lost_ids[:3])}{', ...' if probes.lost > 3 else ''}" if probes.lost_ids else ""
    return Text(
        f"quality (probes): of {probes.judged} answers stable has {probes.stable_wrong} wrong, the canary "
        f"{probes.canary_wrong}{unjudged}{lost}.{problem}{more}"
    )


def _mirrored(name: str, shadow: rollout_pb2.RolloutShadowCounts) -> Text:
    """Return the numbers of one direction in words."""
    first = f", first token {1000 * shadow.first_token_s:.1f} ms" if shadow.HasField("first_token_s") else ""
    between = f", between tokens {1000 * shadow.inter_token_s:.1f} ms" if shadow.HasField("inter_token_s") else ""
    equal = f", {shadow.equal} of {shadow.compared} greedy answers equal" if shadow.compared else ""
    if shadow.worse or shadow.better:
        equal += f" (the canary's worse in {shadow.worse}, better in {shadow.better})"
    counts = shadow.counts
    return Text(
        f"{name}: {counts.requests} requests, {counts.errors} errors{first}{between}{equal}, {shadow.dropped} dropped"
    )
