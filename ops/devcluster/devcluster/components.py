"""The command line of every component, as pure functions of where its files and addresses are. Starts nothing."""

from dataclasses import dataclass
from pathlib import Path

SERVICE_RANGE = "10.96.0.0/16"
KUBERNETES_SERVICE = "10.96.0.1"
DNS_SERVICE = "10.96.0.10"

# One line per finished request, without bodies. What Kubernetes' own parts call is left out: the log then reads as "who else called what".
AUDIT_POLICY = """\
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
  - level: None
    users: [system:apiserver, system:kube-controller-manager, system:kube-scheduler, system:kube-proxy, kwok]
  - level: None
    userGroups: [system:nodes, "system:serviceaccounts:kube-system"]
  - level: Metadata
"""


@dataclass(frozen=True, kw_only=True)
class Site:
    """Where one control plane keeps its files and listens."""

    folder: Path
    programs: Path
    address: str = "127.0.0.1"
    """The API server's. etcd always listens on loopback."""
    api_port: int = 6443
    etcd_port: int = 2379
    etcd_peer_port: int = 2380
    with_controllers: bool = True
    """False: nothing makes the default ServiceAccount, so the API server must not ask pods for one."""

    @property
    def url(self) -> str:
        return f"https://{self.address}:{self.api_port}"

    @property
    def certificates(self) -> Path:
        return self.folder / "certificates"

    @property
    def audit_log(self) -> Path:
        return self.folder / "audit.log"

    def kubeconfig(self, name: str = "admin") -> Path:
        return self.folder / f"{name}.kubeconfig"


@dataclass(frozen=True)
class Command:
    name: str
    argv: tuple[str, ...]


def etcd(site: Site) -> Command:
    client, peer = f"http://127.0.0.1:{site.etcd_port}", f"http://127.0.0.1:{site.etcd_peer_port}"
    return _command(
        site,
        "etcd",
        f"--data-dir={site.folder / 'etcd'}",
        "--unsafe-no-fsync",  # its data never outlives the machine's next boot
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=default={peer}",
        "--log-level=warn",
    )


def api_server(site: Site) -> Command:
    keys = site.certificates
    return _command(
        site,
        "kube-apiserver",
        f"--etcd-servers=http://127.0.0.1:{site.etcd_port}",
        f"--bind-address={site.address}",
        f"--advertise-address={site.address}",
        f"--secure-port={site.api_port}",
        f"--cert-dir={keys}",
        f"--tls-cert-file={keys / 'apiserver.crt'}",
        f"--tls-private-key-file={keys / 'apiserver.key'}",
        f"--token-auth-file={site.folder / 'tokens.csv'}",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        *(() if site.with_controllers else ("--disable-admission-plugins=ServiceAccount",)),
        f"--kubelet-client-certificate={keys / 'kubelet-client.crt'}",
        f"--kubelet-client-key={keys / 'kubelet-client.key'}",
        "--kubelet-preferred-address-types=InternalIP",
        f"--service-cluster-ip-range={SERVICE_RANGE}",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-account-key-file={keys / 'service-account.key'}",
        f"--service-account-signing-key-file={keys / 'service-account.key'}",
        f"--audit-policy-file={site.folder / 'audit-policy.yaml'}",
        f"--audit-log-path={site.audit_log}",
        "--audit-log-maxsize=4000",  # MB; the default rotates at 100, under a reader's feet
        "--profiling=false",
        "--allow-privileged",
    )


def controller_manager(site: Site) -> Command:
    return _command(
        site,
        "kube-controller-manager",
        f"--kubeconfig={site.kubeconfig('kube-controller-manager')}",
        "--use-service-account-credentials",
        f"--root-ca-file={site.certificates / 'ca.crt'}",
        f"--service-account-private-key-file={site.certificates / 'service-account.key'}",
        "--leader-elect=false",
        "--kube-api-qps=1000",
        "--kube-api-burst=2000",
        "--secure-port=0",
        f"--flex-volume-plugin-dir={site.folder / 'volume-plugins'}",  # else it makes a folder below /usr/libexec
    )


def scheduler(site: Site) -> Command:
    return _command(
        site,
        "kube-scheduler",
        f"--kubeconfig={site.kubeconfig('kube-scheduler')}",
        "--leader-elect=false",
        "--kube-api-qps=1000",
        "--kube-api-burst=2000",
        "--secure-port=0",
    )


def kwok(site: Site, stages: Path) -> Command:
    return _command(
        site,
        "kwok",
        f"--kubeconfig={site.kubeconfig('kwok')}",
        f"--config={stages}",
        "--manage-all-nodes=true",
        "--node-lease-duration-seconds=40",
    )


def _command(site: Site, name: str, *arguments: str) -> Command:
    return Command(name, (str(site.programs / name), *arguments))
