"""Names and addresses of Services, by dnsmasq and nftables."""

import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.k8s.objects import Object, Pod, selects

DOMAIN = "svc.cluster.local"


def endpoints(service: Object, pods: Sequence[Pod]) -> list[str]:
    """Return the addresses of the ready pods of a Service."""
    spec = service["spec"]
    selector = spec.get("selector")
    if not selector:
        return []
    found = [pod for pod in pods if selects({"matchLabels": selector}, pod.labels)]
    everybody = spec.get("publishNotReadyAddresses", False)
    return sorted(pod.ip for pod in found if pod.ip and (pod.serves or everybody))


def is_headless(service: Object) -> bool:
    """Return whether a Service is headless."""
    return bool(service["spec"].get("clusterIP") == "None")


def host_names(service: Object) -> str:
    """Return the full name of a Service."""
    return f"{service['metadata']['name']}.{service['metadata'].get('namespace', 'default')}.{DOMAIN}"


def forwarding(service: Object, address: str, targets: Sequence[str]) -> list[str]:
    """Return nftables rules that spread connections of a cluster address.

    Without a ready pod, connections are refused.
    """
    rules = []
    for port in service["spec"]["ports"]:
        assert port.get("targetPort", port["port"]) in (port["port"], port.get("name")), "other target ports"
        match = f"ip daddr {address} tcp dport {port['port']}"
        if targets:
            choices = ", ".join(f"{number} : {target}" for number, target in enumerate(targets))
            rules.append(f"{match} dnat to numgen random mod {len(targets)} map {{ {choices} }}")
    return rules


def ruleset(forwards: Sequence[str], network: str) -> str:
    """Return an nftables file that replaces the rules at once.

    Args:
        forwards: rules of all Services.
        network: the cluster addresses. Those without a rule refuse connections.
    """
    lines = ["table ip services", "flush table ip services", "table ip services {"]
    for hook in ("prerouting", "output"):
        lines += [f"chain {hook} {{", f"type nat hook {hook} priority -100;", *forwards, "}"]
    for hook in ("forward", "output"):
        lines += [f"chain refuse_{hook} {{", f"type filter hook {hook} priority 0;"]
        lines += [f"ip daddr {network} meta l4proto tcp reject with tcp reset", "}"]
    return "\n".join([*lines, "}", ""])


class NameServer:
    """A dnsmasq process that answers for the cluster's names alone."""

    def __init__(self, folder: Path, address: str) -> None:
        self._hosts = folder / "hosts"
        self.address = address
        self._process: subprocess.Popen[bytes] | None = None
        self._text = ""

    def start(self) -> None:
        """Start it without a change of its user.

        A user namespace does not permit one.
        """
        self._hosts.write_text("")
        self._process = subprocess.Popen(
            [
                *("dnsmasq", "--no-daemon", "--conf-file=/dev/null", "--no-resolv", "--no-hosts"),
                *("--user=root", "--pid-file=", "--bind-interfaces", f"--listen-address={self.address}"),
                *(
                    "--local=/cluster.local/",
                    "--local-ttl=5",
                    f"--addn-hosts={self._hosts}",
                    "--log-facility=/dev/null",
                ),
            ],
            stderr=subprocess.DEVNULL,
        )

    def publish(self, names: dict[str, list[str]]) -> None:
        """Answer with these addresses from now on."""
        text = "".join(f"{address} {name}\n" for name, addresses in names.items() for address in addresses)
        if text != self._text and self._process is not None:
            # In one step: dnsmasq may be reading the file for the change before.
            new = self._hosts.with_suffix(".new")
            new.write_text(text)
            new.replace(self._hosts)
            self._text = text
            self._process.send_signal(signal.SIGHUP)

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
