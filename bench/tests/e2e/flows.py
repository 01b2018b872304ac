"""Which connections there really were, by the kernel's own table, from the first test to the last.

The network plugin of the test cluster enforces no NetworkPolicy, so nothing is stopped; what was seen is judged afterwards by
pagoda_bench.network_policies. An entry stays in the table for half a minute or more after its connection has ended: looking every two
seconds misses none.
"""

import json
import re
import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from foreign import IN_DEVCLUSTER
from kube import CommandFailed, Object, run

from pagoda_bench.network_policies import Flow, Outside, Pod, Verdict, allows, pod_of

TABLE = Path("/proc/net/nf_conntrack")
EVERY_S = 2.0
_ENTRY = re.compile(
    r"^ipv[46] +\d+ +(?P<protocol>tcp|udp) .*?src=(?P<source>\S+) dst=\S+ sport=\d+ dport=\d+ "
    r".*?src=(?P<target>\S+) dst=\S+ sport=(?P<port>\d+)"
)
"""The first pair of addresses is what the sender asked for, the second who answered: a Service's address is resolved."""

Seen = tuple[str, str, int, str]
"""Source address, target address, port, protocol."""
Alternatives = tuple[Flow, ...]
"""One connection: a flow for each pair of pods that ever had its two addresses. Never empty."""


def read(table: str) -> set[Seen]:
    matches = (_ENTRY.match(line) for line in table.splitlines())
    return {(m["source"], m["target"], int(m["port"]), m["protocol"].upper()) for m in matches if m}


@dataclass
class Recorder:
    seen: set[Seen] = field(default_factory=set)
    pods: dict[str, dict[str, Pod]] = field(default_factory=lambda: defaultdict(dict))
    """By address and uid: all that ever had it."""
    policies: dict[tuple[str, str], Object] = field(default_factory=dict)
    """By namespace and name; those too whose model is gone."""

    def verdict(self, flow: Flow, namespaces: Mapping[str, Mapping[str, str]]) -> Verdict:
        return allows(flow, list(self.policies.values()), namespaces)

    def look(self) -> None:
        self.seen |= read(TABLE.read_text())
        try:
            self.learn(json.loads(run("kubectl", "get", "pods,networkpolicies", "--all-namespaces", "-o", "json"))["items"])
        except CommandFailed:  # a test has stopped the API server
            return

    def learn(self, items: list[Object]) -> None:
        for item in items:
            namespace, name = item["metadata"]["namespace"], item["metadata"]["name"]
            if item["kind"] == "NetworkPolicy":
                self.policies[namespace, name] = item
            elif (address := item["status"].get("podIP")) and not item["spec"].get("hostNetwork"):
                self.pods[address][item["metadata"]["uid"]] = pod_of(item, namespace=namespace, name=name, address=address)

    def everybody(self) -> list[Pod]:
        return [pod for pods in self.pods.values() for pod in pods.values()]

    def flows(self) -> list[Alternatives]:
        """Those that pods began. Not those from the node itself: its own probes, which no plugin stops, and these tests; nor those to
        a pod that came and went between two looks, as nobody knows what it was.

        An address that is given out again makes alternatives. The table outlives both the connection and its pod, so no time says which
        pod it was; a flow is wrong only if it would be for every one of them.
        """
        networks = {address.rpartition(".")[0] for address in self.pods}
        return [
            tuple(
                Flow(source=began, target=answered, port=port, protocol=protocol)
                for began in self.pods[source].values()
                for answered in (self.pods[target].values() if target in self.pods else (Outside(address=target),))
            )
            for source, target, port, protocol in sorted(self.seen)
            if source in self.pods and (target in self.pods or target.rpartition(".")[0] not in networks)
        ]


@contextmanager
def recording() -> Iterator[Recorder | None]:
    """None where the kernel's table cannot be read or is another network's, such as outside the development cluster's."""
    if not IN_DEVCLUSTER or not TABLE.is_file():
        yield None
        return
    recorder, stopping = Recorder(), threading.Event()

    def watch() -> None:
        while not stopping.wait(EVERY_S):
            recorder.look()

    thread = threading.Thread(target=watch, name="flows")
    thread.start()
    try:
        yield recorder
    finally:
        stopping.set()
        thread.join()
