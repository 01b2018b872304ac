"""What NetworkPolicies allow, by the rules of networking.k8s.io/v1 and no others: a pure function from a flow to a verdict with its reason.

Knows nothing of Pagoda. Used by tests, because the cluster they run on enforces no policies.

A flow passes when the sender's side lets it out and the receiver's side lets it in. A side that is a pod: with no policy of that
direction selecting it, everything passes; else what any of these policies names. A side that is no pod is not ours to judge.
"""

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Direction = Literal["Ingress", "Egress"]
Object = Mapping[str, Any]


class PolicyError(ValueError):
    """A policy that the API server would not have accepted."""


@dataclass(frozen=True, kw_only=True)
class Pod:
    namespace: str
    name: str
    labels: Mapping[str, str] = field(default_factory=dict)
    address: str = "10.0.0.1"
    ports: Mapping[str, tuple[int, str]] = field(default_factory=dict)
    """Named container ports: (number, protocol). A policy may name them; the receiving pod says what they are."""
    host_network: bool = False
    """In the node's own network: policies neither select nor find it."""

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, kw_only=True)
class Outside:
    """An address that is no pod's: a node, the API server, a host of the internet."""

    address: str

    def __str__(self) -> str:
        return self.address


Peer = Pod | Outside


@dataclass(frozen=True, kw_only=True)
class Flow:
    """A connection, by its first packet; answers belong to it and need no rule."""

    source: Peer
    target: Peer
    port: int
    protocol: str = "TCP"

    def __str__(self) -> str:
        return f"{self.source} → {self.target}:{self.port}/{self.protocol}"


@dataclass(frozen=True, slots=True)
class Verdict:
    allowed: bool
    reason: str
    """What let it through on both sides, or which side stopped it."""


def allows(flow: Flow, policies: Sequence[Object], namespaces: Mapping[str, Mapping[str, str]]) -> Verdict:
    """`policies`: NetworkPolicy objects. `namespaces`: labels of each by its name; kubernetes.io/metadata.name is added as the API
    server does."""
    if isinstance(flow.source, Pod) and flow.source == flow.target:
        return Verdict(True, "a pod always reaches itself")
    out = _side(flow, "Egress", policies, namespaces)
    if not out.allowed:
        return out
    into = _side(flow, "Ingress", policies, namespaces)
    return Verdict(into.allowed, f"{out.reason}; {into.reason}" if into.allowed else into.reason)


def _side(flow: Flow, direction: Direction, policies: Sequence[Object], namespaces: Mapping[str, Mapping[str, str]]) -> Verdict:
    judged, other = (flow.source, flow.target) if direction == "Egress" else (flow.target, flow.source)
    word = direction.lower()
    if not isinstance(judged, Pod) or judged.host_network:
        return Verdict(True, f"{word}: {judged} is not subject to policies")
    selecting = [policy for policy in policies if selects(policy, judged) and direction in policy_types(policy)]
    if not selecting:
        return Verdict(True, f"{word}: no policy selects {judged}")
    for policy in selecting:
        for rule in policy["spec"].get(word) or ():
            if _rule_allows(rule, direction, policy["metadata"]["namespace"], flow, other, namespaces):
                return Verdict(True, f"{word}: {policy['metadata']['name']}")
    names = ", ".join(sorted(policy["metadata"]["name"] for policy in selecting))
    return Verdict(False, f"{word}: {judged} is selected by {names}, and none of them names this flow")


def selects(policy: Object, pod: Pod) -> bool:
    """Only pods of its own namespace; an empty selector means all of them."""
    return policy["metadata"]["namespace"] == pod.namespace and matches(policy["spec"].get("podSelector") or {}, pod.labels)


def policy_types(policy: Object) -> tuple[str, ...]:
    """As the API server defaults them: always Ingress, and Egress when there are such rules."""
    spec = policy["spec"]
    return tuple(spec.get("policyTypes") or ("Ingress", *(("Egress",) if spec.get("egress") else ())))


def matches(selector: Object, labels: Mapping[str, str]) -> bool:
    """A label selector: every one of matchLabels and matchExpressions. The empty one matches everything."""
    if unknown := set(selector) - {"matchLabels", "matchExpressions"}:
        raise PolicyError(f"a label selector has no {', '.join(sorted(unknown))}")
    wanted = selector.get("matchLabels") or {}
    return all(labels.get(key) == value for key, value in wanted.items()) and all(
        _expression_holds(expression, labels) for expression in selector.get("matchExpressions") or ()
    )


def _expression_holds(expression: Object, labels: Mapping[str, str]) -> bool:
    key, operator, values = expression["key"], expression["operator"], expression.get("values") or ()
    match operator:
        case "In":
            return key in labels and labels[key] in values
        case "NotIn":
            return key not in labels or labels[key] not in values
        case "Exists":
            return key in labels
        case "DoesNotExist":
            return key not in labels
        case _:
            raise PolicyError(f"a label selector knows no operator {operator}")


def _rule_allows(
    rule: Object, direction: Direction, namespace: str, flow: Flow, other: Peer, namespaces: Mapping[str, Mapping[str, str]]
) -> bool:
    """An empty or absent list means every port, or every peer; that is also why an empty rule allows all."""
    peers = rule.get("from" if direction == "Ingress" else "to") or ()
    ports = rule.get("ports") or ()
    return (not peers or any(_peer_matches(peer, namespace, other, namespaces) for peer in peers)) and (
        not ports or any(_port_matches(port, flow) for port in ports)
    )


def _peer_matches(peer: Object, namespace: str, other: Peer, namespaces: Mapping[str, Mapping[str, str]]) -> bool:
    if "ipBlock" in peer:
        if len(peer) > 1:
            raise PolicyError("a peer with an ipBlock has nothing beside it")
        return _in_block(peer["ipBlock"], other.address)
    if not peer.keys() & {"podSelector", "namespaceSelector"}:
        raise PolicyError("a peer has a podSelector, a namespaceSelector or an ipBlock")
    if not isinstance(other, Pod) or other.host_network:
        return False
    if (selector := peer.get("namespaceSelector")) is not None:
        labels = {**namespaces.get(other.namespace, {}), "kubernetes.io/metadata.name": other.namespace}
        if not matches(selector, labels):
            return False
    elif other.namespace != namespace:
        return False
    return matches(peer.get("podSelector") or {}, other.labels)


def _in_block(block: Object, address: str) -> bool:
    """NOTE: for pods' addresses plugins differ in what they support here; the text of the API makes no exception, and neither do we."""
    here = ipaddress.ip_address(address)

    def inside(cidr: str) -> bool:
        network = ipaddress.ip_network(cidr, strict=False)
        return here.version == network.version and here in network

    return inside(block["cidr"]) and not any(inside(cidr) for cidr in block.get("except") or ())


def _port_matches(port: Object, flow: Flow) -> bool:
    if port.get("protocol", "TCP") != flow.protocol:
        return False
    match port.get("port"):
        case None:
            return True
        case int(first):
            return first <= flow.port <= int(port.get("endPort", first))
        case str(name):
            if "endPort" in port:
                raise PolicyError("a named port has no endPort")
            # Of the pod that receives, in both directions.
            return isinstance(flow.target, Pod) and flow.target.ports.get(name) == (flow.port, flow.protocol)
        case other:
            raise PolicyError(f"a port is a number or a name, not {other!r}")


def pod_of(template: Object, *, namespace: str, name: str, address: str = "10.0.0.1") -> Pod:
    """A pod as a Deployment's template makes it: its labels and the ports that its containers name."""
    spec = template["spec"]
    containers = [*spec["containers"], *spec.get("initContainers", ())]
    ports = {
        port["name"]: (int(port["containerPort"]), str(port.get("protocol", "TCP")))
        for container in containers
        for port in container.get("ports", ())
        if "name" in port
    }
    labels = template["metadata"].get("labels") or {}
    return Pod(
        namespace=namespace, name=name, labels=labels, address=address, ports=ports, host_network=bool(spec.get("hostNetwork", False))
    )
