"""What runs on the one node: containerd, kubelet, kube-proxy, with their configuration. Pure: text and command lines."""

import json
from dataclasses import dataclass

from devcluster import images
from devcluster.access import NODE
from devcluster.components import DNS_SERVICE, Command, Site
from devcluster.network import NODE_ADDRESS, POD_RANGE


@dataclass(frozen=True)
class Node:
    site: Site
    name: str
    """The cluster's: of its network namespace, its cgroup and its CNI network."""

    @property
    def containerd_folder(self) -> str:
        return str(self.site.folder / "containerd")

    @property
    def containerd_socket(self) -> str:
        return f"{self.containerd_folder}/containerd.sock"

    @property
    def cni_folder(self) -> str:
        return str(self.site.folder / "cni")


def files(node: Node) -> dict[str, str]:
    """Path below the state folder → content."""
    return {
        "containerd/config.toml": _containerd(node),
        "cni/10-pods.conflist": json.dumps(_cni(node), indent=1),
        "kubelet.json": json.dumps(_kubelet(node), indent=1),
    }


def containerd(node: Node) -> Command:
    return Command("containerd", ("containerd", "--config", f"{node.containerd_folder}/config.toml"))


def kubelet(node: Node) -> Command:
    site = node.site
    return Command(
        "kubelet",
        (
            str(site.programs / "kubelet"),
            f"--config={site.folder / 'kubelet.json'}",
            f"--kubeconfig={site.kubeconfig('kubelet')}",
            f"--root-dir={site.folder / 'kubelet'}",
            f"--cert-dir={site.folder / 'kubelet-pki'}",
            f"--hostname-override={NODE}",
            f"--node-ip={NODE_ADDRESS}",
        ),
    )


def kube_proxy(node: Node) -> Command:
    return Command(
        "kube-proxy",
        (
            str(node.site.programs / "kube-proxy"),
            f"--kubeconfig={node.site.kubeconfig('kube-proxy')}",
            f"--hostname-override={NODE}",
            "--proxy-mode=iptables",
            f"--cluster-cidr={POD_RANGE}",
            "--healthz-bind-address=127.0.0.1:10256",
            "--metrics-bind-address=127.0.0.1:10249",
            "--oom-score-adj=0",
            # 0 leaves the machine's own conntrack limits alone: they are not per namespace
            "--conntrack-max-per-core=0",
            "--conntrack-tcp-timeout-established=0",
            "--conntrack-tcp-timeout-close-wait=0",
        ),
    )


def _containerd(node: Node) -> str:
    folder = node.containerd_folder
    # restrict_oom_score_adj: where a negative oom_score_adj may not be set, every sandbox would fail with
    #   "can't get final child's PID from pipe: EOF".
    # netns_mounts_under_state_dir: else pods' namespaces are files in /run/netns that nobody can tell from another cluster's.
    return f"""\
version = 2
root = "{folder}/root"
state = "{folder}/state"
disabled_plugins = ["io.containerd.internal.v1.opt", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.aufs"]

[grpc]
address = "{node.containerd_socket}"

[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{images.PAUSE}"
restrict_oom_score_adj = true
netns_mounts_under_state_dir = true
stream_server_address = "127.0.0.1"

[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "overlayfs"
default_runtime_name = "runc"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
SystemdCgroup = false
Root = "{folder}/runc"

[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
conf_dir = "{node.cni_folder}"
"""


def _cni(node: Node) -> dict[str, object]:
    # A routed veth per pod, not a bridge: two pods on a bridge answer each other past the node's NAT unless the kernel has br_netfilter,
    # and then no pod can use a Service whose pod is on the same node.
    addresses = {
        "type": "host-local",
        "dataDir": f"{node.cni_folder}/addresses",
        "ranges": [[{"subnet": POD_RANGE}]],
        "routes": [{"dst": "0.0.0.0/0"}],
    }
    return {
        "cniVersion": "0.4.0",
        "name": node.name,
        "plugins": [
            {"type": "ptp", "ipMasq": True, "ipam": addresses},
            {"type": "portmap", "capabilities": {"portMappings": True}},
        ],
    }


def _kubelet(node: Node) -> dict[str, object]:
    folder = node.site.folder
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": NODE_ADDRESS,
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(node.site.certificates / "ca.crt")},
        },
        "authorization": {"mode": "Webhook"},
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{node.name}",
        "failCgroupV1": False,
        "failSwapOn": False,
        "oomScoreAdj": 0,
        "resolvConf": "",
        "clusterDNS": [DNS_SERVICE],
        "clusterDomain": "cluster.local",
        "containerRuntimeEndpoint": f"unix://{node.containerd_socket}",
        "podLogsDir": str(folder / "pod-logs"),
        "volumePluginDir": str(folder / "volume-plugins"),
        "healthzPort": 0,
        "maxPods": 250,
        # Loaded images cannot be pulled again: never collect them; and a nearly full disk is the developer's affair.
        "imageGCHighThresholdPercent": 100,
        "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "nodefs.inodesFree": "1%", "imagefs.available": "1%"},
    }
