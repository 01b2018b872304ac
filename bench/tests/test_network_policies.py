"""The rules of NetworkPolicy: a table, and what holds for all policies. What our own policies mean is in test_network_flows.py."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagoda_bench.network_policies import Flow, Outside, Peer, Pod, PolicyError, allows

Object = dict[str, Any]

NAMESPACES = {"shop": {"team": "blue"}, "bank": {"team": "red"}, "empty": {}}
WEB = Pod(namespace="shop", name="web", labels={"app": "web"}, address="10.0.1.1", ports={"http": (8080, "TCP"), "dns": (53, "UDP")})
DB = Pod(namespace="shop", name="db", labels={"app": "db", "tier": "back"}, address="10.0.1.2", ports={"http": (5432, "TCP")})
TELLER = Pod(namespace="bank", name="teller", labels={"app": "web"}, address="10.0.2.1")
ON_NODE = Pod(namespace="shop", name="agent", labels={"app": "web"}, address="192.168.0.7", host_network=True)
INTERNET = Outside(address="93.184.216.34")
V6 = Outside(address="2001:db8::1")


def policy(name: str = "p", namespace: str = "shop", *, pods: Object | None = None, **spec: Any) -> Object:
    return {"metadata": {"name": name, "namespace": namespace}, "spec": {"podSelector": pods or {}, **spec}}


def into(target: Pod = WEB, *, source: Peer = DB, port: int = 8080, protocol: str = "TCP") -> Flow:
    return Flow(source=source, target=target, port=port, protocol=protocol)


def ingress(*rules: Object, **more: Any) -> Object:
    return policy(policyTypes=["Ingress"], ingress=list(rules), **more)


def egress(*rules: Object, **more: Any) -> Object:
    return policy(policyTypes=["Egress"], egress=list(rules), **more)


BACK = {"matchExpressions": [{"key": "tier", "operator": "Exists"}]}
RULES: list[tuple[str, Flow, list[Object], bool]] = [
    ("without policies everything passes", into(), [], True),
    ("a policy of another namespace selects nothing here", into(), [ingress(namespace="bank")], True),
    ("a policy whose selector misses leaves all open", into(), [ingress(pods={"matchLabels": {"app": "db"}})], True),
    ("a policy without rules closes its direction", into(), [ingress()], False),
    ("closing ingress leaves egress open", into(DB, source=WEB), [ingress(pods={"matchLabels": {"app": "web"}})], True),
    ("closing egress of the sender is enough", into(), [egress(pods={"matchLabels": {"app": "db"}})], False),
    ("an empty rule opens the direction", into(), [ingress({})], True),
    ("policies add up", into(), [ingress(name="deny"), ingress({"from": [{"podSelector": {}}]}, name="allow")], True),
    ("both sides must agree", into(), [ingress({}), egress(name="deny")], False),
    ("without policyTypes it is ingress", into(DB, source=WEB), [policy(pods={"matchLabels": {"app": "web"}})], True),
    ("without policyTypes egress rules make it egress too", into(DB, source=WEB), [policy(egress=[{"ports": [{"port": 1}]}])], False),
    ("a podSelector alone means the policy's own namespace", into(source=TELLER), [ingress({"from": [{"podSelector": {}}]})], False),
    ("a namespaceSelector alone means all its pods", into(source=TELLER), [ingress({"from": [{"namespaceSelector": {}}]})], True),
    (
        "both in one peer must hold",
        into(source=TELLER),
        [ingress({"from": [{"namespaceSelector": {"matchLabels": {"team": "red"}}, "podSelector": {"matchLabels": {"app": "db"}}}]})],
        False,
    ),
    (
        "as two peers either is enough",
        into(source=TELLER),
        [ingress({"from": [{"namespaceSelector": {"matchLabels": {"team": "red"}}}, {"podSelector": {"matchLabels": {"app": "db"}}}]})],
        True,
    ),
    (
        "every namespace carries its name",
        into(source=TELLER),
        [ingress({"from": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "bank"}}}]})],
        True,
    ),
    ("no peers means any peer", into(source=INTERNET), [ingress({"ports": [{"port": 8080}]})], True),
    ("pod selectors never find an outside address", into(source=INTERNET), [ingress({"from": [{"namespaceSelector": {}}]})], False),
    ("an ipBlock does", into(source=INTERNET), [ingress({"from": [{"ipBlock": {"cidr": "93.184.0.0/16"}}]})], True),
    (
        "but not its exceptions",
        into(source=INTERNET),
        [ingress({"from": [{"ipBlock": {"cidr": "0.0.0.0/0", "except": ["93.184.216.0/24"]}}]})],
        False,
    ),
    ("an IPv4 block holds no IPv6 address", into(source=V6), [ingress({"from": [{"ipBlock": {"cidr": "0.0.0.0/0"}}]})], False),
    ("a protocol is TCP when not given", into(port=53, protocol="UDP"), [ingress({"ports": [{"port": 53}]})], False),
    ("and matters when given", into(port=53, protocol="UDP"), [ingress({"ports": [{"port": 53, "protocol": "UDP"}]})], True),
    ("a port entry without port means all of the protocol", into(port=9), [ingress({"ports": [{"protocol": "TCP"}]})], True),
    ("endPort is included", into(port=90), [ingress({"ports": [{"port": 80, "endPort": 90}]})], True),
    ("and is the last", into(port=91), [ingress({"ports": [{"port": 80, "endPort": 90}]})], False),
    ("a named port is the receiver's", into(), [ingress({"ports": [{"port": "http"}]})], True),
    ("also for egress", into(DB, source=WEB, port=5432), [egress({"ports": [{"port": "http"}]})], True),
    ("and of its protocol", into(port=53), [ingress({"ports": [{"port": "dns"}]})], False),
    ("a name that the receiver lacks matches nothing", into(TELLER, source=WEB), [egress({"ports": [{"port": "http"}]})], False),
    ("ports and peers of one rule must both hold", into(port=1), [ingress({"from": [{"podSelector": {}}], "ports": [{"port": 2}]})], False),
    ("Exists", into(), [ingress({"from": [{"podSelector": BACK}]})], True),
    ("a pod on the node's network is not selected", into(DB, source=ON_NODE), [egress()], True),
    ("nor found by selectors", into(source=ON_NODE), [ingress({"from": [{"podSelector": {}}]})], False),
    ("but by its address", into(source=ON_NODE), [ingress({"from": [{"ipBlock": {"cidr": "192.168.0.0/24"}}]})], True),
    ("a pod always reaches itself", into(WEB, source=WEB), [ingress(), egress()], True),
]


@pytest.mark.parametrize(("flow", "policies", "allowed"), [pytest.param(*rest, id=name) for name, *rest in RULES])
def test_the_rules_of_network_policies(flow: Flow, policies: list[Object], allowed: bool) -> None:
    verdict = allows(flow, policies, NAMESPACES)
    assert verdict.allowed is allowed, verdict.reason


@pytest.mark.parametrize(
    ("operator", "values", "found"),
    [("In", ["web"], True), ("In", ["db"], False), ("NotIn", ["web"], False), ("NotIn", ["db"], True), ("DoesNotExist", [], False)],
)
def test_expressions_over_a_label(operator: str, values: list[str], found: bool) -> None:
    selector = {"matchExpressions": [{"key": "app", "operator": operator, "values": values}]}
    assert allows(into(DB, source=WEB), [ingress({"from": [{"podSelector": selector}]})], NAMESPACES).allowed is found


@pytest.mark.parametrize(
    "rule",
    [
        {"from": [{}]},
        {"from": [{"ipBlock": {"cidr": "0.0.0.0/0"}, "podSelector": {}}]},
        {"from": [{"podSelector": {"labels": {}}}]},
        {"from": [{"podSelector": {"matchExpressions": [{"key": "a", "operator": "Like"}]}}]},
        {"ports": [{"port": "http", "endPort": 9}]},
        {"ports": [{"port": 1.5}]},
    ],
    ids=str,
)
def test_what_the_api_server_would_refuse_is_an_error_and_no_verdict(rule: Object) -> None:
    with pytest.raises(PolicyError):
        allows(into(), [ingress(rule)], NAMESPACES)


LABELS = st.dictionaries(st.sampled_from(["app", "tier"]), st.sampled_from(["a", "b"]), max_size=2)
SELECTORS = LABELS.map(lambda labels: {"matchLabels": labels})
PEERS = st.one_of(
    st.builds(lambda pods: {"podSelector": pods}, SELECTORS),
    st.builds(lambda pods: {"namespaceSelector": {}, "podSelector": pods}, SELECTORS),
    st.sampled_from(["10.0.0.0/8", "10.0.1.0/24", "0.0.0.0/0"]).map(lambda cidr: {"ipBlock": {"cidr": cidr}}),
)
PORTS = st.sampled_from([{"port": 80}, {"port": 80, "endPort": 82}, {"protocol": "UDP"}, {"port": "web"}])
DIRECTIONS = st.sampled_from(["Ingress", "Egress"])
PODS = st.builds(
    Pod,
    namespace=st.sampled_from(["shop", "bank"]),
    name=st.sampled_from(["one", "two"]),
    labels=LABELS,
    address=st.sampled_from(["10.0.1.1", "10.0.2.1"]),
    ports=st.just({"web": (81, "TCP")}),
)
FLOWS = st.builds(
    Flow, source=st.one_of(PODS, st.just(INTERNET)), target=PODS, port=st.integers(79, 83), protocol=st.sampled_from(["TCP", "UDP"])
)


@st.composite
def some_policies(draw: st.DrawFn) -> Object:
    direction = draw(DIRECTIONS)
    peers, ports = draw(st.lists(PEERS, max_size=2)), draw(st.lists(PORTS, max_size=2))
    sides = {"Ingress": {"from": peers, "ports": ports}, "Egress": {"to": peers, "ports": ports}}
    return policy(
        draw(st.sampled_from(["x", "y"])),
        draw(st.sampled_from(["shop", "bank"])),
        pods=draw(SELECTORS),
        policyTypes=[direction],
        **{direction.lower(): draw(st.sampled_from([[], [sides[direction]]]))},
    )


POLICIES = st.lists(some_policies(), max_size=4)


@given(FLOWS, POLICIES, st.randoms())
def test_the_order_of_policies_means_nothing(flow: Flow, policies: list[Object], random: Any) -> None:
    shuffled = list(policies)
    random.shuffle(shuffled)
    assert allows(flow, shuffled, NAMESPACES).allowed == allows(flow, policies, NAMESPACES).allowed


@given(FLOWS, POLICIES, some_policies())
def test_beside_a_default_deny_another_policy_only_ever_opens(flow: Flow, policies: list[Object], more: Object) -> None:
    deny = [policy("deny", namespace, policyTypes=["Ingress", "Egress"]) for namespace in ("shop", "bank")]
    if allows(flow, [*deny, *policies], NAMESPACES).allowed:
        assert allows(flow, [*deny, *policies, more], NAMESPACES).allowed


@given(FLOWS, POLICIES)
def test_a_default_deny_never_opens_and_alone_stops_everything(flow: Flow, policies: list[Object]) -> None:
    deny = policy("deny", flow.target.namespace, policyTypes=["Ingress"]) if isinstance(flow.target, Pod) else policy()
    if allows(flow, [*policies, deny], NAMESPACES).allowed:
        assert allows(flow, policies, NAMESPACES).allowed
    assert flow.source == flow.target or not allows(flow, [deny], NAMESPACES).allowed
