"""Services and policies of the test controller follow the rules of Kubernetes."""

from typing import Any

from tests.k8s.network_policies import EGRESS, INGRESS, rules
from tests.k8s.objects import Pod
from tests.k8s.services import endpoints, forwarding, host_names

GATEWAY = Pod("gateway-1", "tandem", {"app": "gateway"}, {}, ip="198.18.0.2", ready=True)
VISION = Pod("vision-1", "tandem", {"app": "vision"}, {}, ip="198.18.0.3", ready=True)
STRANGER = Pod("stranger", "default", {"app": "gateway"}, {}, ip="198.18.0.4", ready=True)
PODS = [GATEWAY, VISION, STRANGER]
NAMESPACES = {"tandem": {"team": "a"}, "default": {}}


def policy(**spec: Any) -> dict[str, Any]:
    return {"metadata": {"name": "p", "namespace": "tandem"}, "spec": spec}


def to_vision(*peers: dict[str, Any], **rule: Any) -> list[str]:
    ingress = [{"from": list(peers), **rule}] if peers else [rule]
    selected = policy(podSelector={"matchLabels": {"app": "vision"}}, policyTypes=["Ingress"], ingress=ingress)
    return rules([selected], PODS, NAMESPACES, INGRESS)


def test_pods_without_a_policy_have_no_rules() -> None:
    assert rules([], PODS, NAMESPACES, INGRESS) == []


def test_a_policy_without_rules_drops_everything_in_its_namespace() -> None:
    deny = policy(podSelector={}, policyTypes=["Ingress", "Egress"])
    assert rules([deny], PODS, NAMESPACES, EGRESS) == [
        "ip saddr 198.18.0.2 counter drop",
        "ip saddr 198.18.0.3 counter drop",
    ]


def test_a_pod_selector_means_pods_of_the_policys_namespace() -> None:
    allowed = to_vision({"podSelector": {"matchLabels": {"app": "gateway"}}}, ports=[{"port": 50051}])
    assert allowed == [
        "ip daddr 198.18.0.3 ip saddr { 198.18.0.2 } tcp dport 50051 return",
        "ip daddr 198.18.0.3 counter drop",
    ]


def test_both_selectors_of_one_peer_must_match() -> None:
    peer = {"namespaceSelector": {}, "podSelector": {"matchLabels": {"app": "gateway"}}}
    assert "{ 198.18.0.2, 198.18.0.4 }" in to_vision(peer)[0]
    team = {"namespaceSelector": {"matchLabels": {"team": "a"}}}
    assert "{ 198.18.0.2, 198.18.0.3 }" in to_vision(team)[0]


def test_peers_that_match_no_pod_allow_nothing() -> None:
    assert to_vision({"podSelector": {"matchLabels": {"app": "absent"}}}) == ["ip daddr 198.18.0.3 counter drop"]


def test_a_rule_without_peers_allows_everybody() -> None:
    allowed = to_vision(ports=[{"port": 53, "protocol": "UDP"}, {"port": 80, "endPort": 90}])
    assert [line.removeprefix("ip daddr 198.18.0.3 ") for line in allowed[:2]] == [
        "udp dport 53 return",
        "tcp dport 80-90 return",
    ]


def service(**spec: Any) -> dict[str, Any]:
    return {"metadata": {"name": "vision", "namespace": "tandem"}, "spec": {"selector": {"app": "vision"}, **spec}}


def test_endpoints_are_ready_pods_that_do_not_end() -> None:
    pods = [Pod(str(n), "tandem", {"app": "vision"}, {}, ip=f"198.18.0.{n}", ready=n != 3) for n in (2, 3, 4)]
    pods[2].deleting = True
    assert endpoints(service(), pods) == ["198.18.0.2"]
    assert len(endpoints(service(publishNotReadyAddresses=True), pods)) == 3


def test_a_cluster_address_spreads_connections_over_the_endpoints() -> None:
    one = service(ports=[{"port": 6379}])
    assert forwarding(one, "198.19.1.1", ["198.18.0.2", "198.18.0.3"]) == [
        "ip daddr 198.19.1.1 tcp dport 6379 dnat to numgen random mod 2 map { 0 : 198.18.0.2, 1 : 198.18.0.3 }"
    ]
    assert forwarding(one, "198.19.1.1", []) == []
    assert host_names(one) == "vision.tandem.svc.cluster.local"
