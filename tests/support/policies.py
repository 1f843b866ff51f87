"""What NetworkPolicies say, read as Kubernetes' documentation defines it: may this pod connect, or be connected to?

Pure. For policies that no network of the tests enforces.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Object = Mapping[str, Any]


@dataclass(frozen=True)
class Peer:
    """A pod, or whatever has an address (then without labels)."""

    labels: Mapping[str, str] = field(default_factory=dict)
    namespace: str = ""
    address: str = ""


def may_come(policies: Iterable[Object], to: Peer, peer: Peer, port: int, named: Mapping[str, int]) -> bool:
    """Whether `peer` may connect to `port` (TCP) of the pod `to`, whose container ports are `named`."""
    rules = _rules("Ingress", policies, to)
    return rules is None or any(
        _of_port(rule.get("ports"), port, named) and _of_peer(rule.get("from"), to.namespace, peer) for rule in rules
    )


def may_go(policies: Iterable[Object], pod: Peer, peer: Peer, port: int) -> bool:
    """Whether the pod may connect to `port` (TCP) of `peer`."""
    rules = _rules("Egress", policies, pod)
    return rules is None or any(
        _of_port(rule.get("ports"), port, {}) and _of_peer(rule.get("to"), pod.namespace, peer) for rule in rules
    )


def _rules(kind: str, policies: Iterable[Object], pod: Peer) -> list[Object] | None:
    """All policies that select the pod add up; what none of them opens is closed. None, without any: all is open."""
    specs = [one["spec"] for one in policies if kind in one["spec"]["policyTypes"]]
    selecting = [spec for spec in specs if _selects(spec["podSelector"], pod.labels)]
    return [rule for spec in selecting for rule in spec.get(kind.lower()) or []] if selecting else None


def _selects(selector: Object, labels: Mapping[str, str]) -> bool:
    assert set(selector) <= {"matchLabels"}, "only what the policies at hand use"
    return (selector.get("matchLabels") or {}).items() <= labels.items()


def _of_port(ports: Sequence[Object] | None, port: int, named: Mapping[str, int]) -> bool:
    if not ports:
        return True
    tcp = [one["port"] for one in ports if one.get("protocol", "TCP") == "TCP"]
    return port in [named.get(one) if isinstance(one, str) else one for one in tcp]


def _of_peer(peers: Sequence[Object] | None, namespace: str, peer: Peer) -> bool:
    if not peers:
        return True
    return any(_block(one["ipBlock"], peer) if "ipBlock" in one else _pod(one, namespace, peer) for one in peers)


def _block(block: Object, peer: Peer) -> bool:
    def within(network: str) -> bool:
        return bool(peer.address) and ipaddress.ip_address(peer.address) in ipaddress.ip_network(network)

    return within(block["cidr"]) and not any(within(one) for one in block.get("except", []))


def _pod(selectors: Object, namespace: str, peer: Peer) -> bool:
    if not peer.namespace:
        return False
    if "namespaceSelector" in selectors:
        # Kubernetes labels every namespace with its name; these tests know no other labels of one.
        if not _selects(selectors["namespaceSelector"], {"kubernetes.io/metadata.name": peer.namespace}):
            return False
    elif peer.namespace != namespace:
        return False
    return _selects(selectors.get("podSelector", {}), peer.labels)
