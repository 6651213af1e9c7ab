"""Translate NetworkPolicies into nftables rules."""

import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from tests.k8s.objects import Object, Pod, selects

Namespaces = Mapping[str, Mapping[str, str]]  # labels by name


@dataclass(frozen=True, slots=True)
class Direction:
    """One direction, as policies and nftables name it."""

    policy_type: str
    rules: str
    peers: str
    own: str  # where a packet holds the address of the selected pod
    other: str


INGRESS = Direction("Ingress", "ingress", "from", "daddr", "saddr")
EGRESS = Direction("Egress", "egress", "to", "saddr", "daddr")


def rules(policies: Sequence[Object], pods: Sequence[Pod], namespaces: Namespaces, direction: Direction) -> list[str]:
    """Return the rules of one direction.

    A packet that no policy concerns passes. A pod that a policy selects gets only packets that some policy allows.

    Args:
        policies: all NetworkPolicies.
        pods: all pods with an address.
        namespaces: labels of the namespaces.
        direction: INGRESS or EGRESS.
    """
    lines = []
    for pod in pods:
        concerned = [one for one in policies if _concerns(one, pod, direction)]
        for policy in concerned:
            for rule in policy["spec"].get(direction.rules) or []:
                lines += _allow(rule, policy, pod, pods, namespaces, direction)
        if concerned:
            lines.append(f"ip {direction.own} {pod.ip} counter drop")
    return lines


def ruleset(policies: Sequence[Object], pods: Sequence[Pod], namespaces: Namespaces) -> str:
    """Return an nftables file that replaces the rules at once.

    The node itself reaches every pod, as kubelets must.
    """
    ingress = rules(policies, pods, namespaces, INGRESS)
    egress = rules(policies, pods, namespaces, EGRESS)
    chains = {"egress": [*egress, "return"], "ingress": [*ingress, "return"]}
    hooks = {
        hook: ["ct state established,related accept", "jump egress", "jump ingress"] for hook in ("forward", "input")
    }
    lines = ["table ip policies", "flush table ip policies", "table ip policies {"]
    for name, body in chains.items():
        lines += [f"chain {name} {{", *body, "}"]
    for name, body in hooks.items():
        lines += [f"chain {name} {{", f"type filter hook {name} priority 0; policy accept;", *body, "}"]
    return "\n".join([*lines, "}", ""])


def _concerns(policy: Object, pod: Pod, direction: Direction) -> bool:
    spec = policy["spec"]
    types = spec.get("policyTypes") or ["Ingress", *(["Egress"] if "egress" in spec else [])]
    return (
        direction.policy_type in types
        and policy["metadata"].get("namespace", "default") == pod.namespace
        and selects(spec.get("podSelector", {}), pod.labels)
    )


def _allow(
    rule: Object, policy: Object, pod: Pod, pods: Sequence[Pod], namespaces: Namespaces, direction: Direction
) -> list[str]:
    """Return the lines that accept the packets of one rule."""
    peers = rule.get(direction.peers)
    own = f"ip {direction.own} {pod.ip}"
    home = policy["metadata"].get("namespace", "default")
    # Leaving the chain lets the other direction decide, too.
    sources = (
        [""] if not peers else [one for peer in peers for one in _sources(peer, home, pods, namespaces, direction)]
    )
    return [f"{own} {source}{port} return" for source in sources for port in _ports(rule.get("ports"))]


def _sources(
    peer: Object, home: str, pods: Sequence[Pod], namespaces: Namespaces, direction: Direction
) -> Iterable[str]:
    if block := peer.get("ipBlock"):
        excluded = "".join(f"ip {direction.other} != {one} " for one in block.get("except", []))
        return [f"ip {direction.other} {ipaddress.ip_network(block['cidr'])} {excluded}"]
    if "namespaceSelector" in peer:
        chosen = [name for name, labels in namespaces.items() if selects(peer["namespaceSelector"], labels)]
    else:
        chosen = [home]
    found = [one.ip for one in pods if one.namespace in chosen and selects(peer.get("podSelector", {}), one.labels)]
    return [f"ip {direction.other} {{ {', '.join(sorted(found))} }} "] if found else []


def _ports(ports: Sequence[Object] | None) -> list[str]:
    if not ports:
        return [""]
    found = []
    for port in ports:
        protocol = port.get("protocol", "TCP").lower()
        number = port.get("port")
        assert number is None or isinstance(number, int), "named ports need the port's number here"
        last = f"-{port['endPort']}" if "endPort" in port else ""
        found.append(f"meta l4proto {protocol}" if number is None else f"{protocol} dport {number}{last}")
    return found
