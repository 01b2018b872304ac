"""A real Kubernetes for tests: `python3 ops/devcluster COMMAND`, with the Python 3.11 standard library alone.

up
    A one-node cluster (etcd, API server, controller-manager, scheduler, containerd, kubelet, kube-proxy, CoreDNS) in a network namespace
    of its own; a no-op when it runs. Needs root and Debian's containerd, runc, containernetworking-plugins, iproute2, iptables, openssl.
    With KUBECONFIG set it only checks that that cluster answers.
exec -- COMMAND …
    Runs COMMAND in the cluster's network with KUBECONFIG and PATH (kubectl, helm) set: the only way in.
load FILE.tar | load - < FILE.tar
    Gives the node an image from a docker-archive. Pods must not use imagePullPolicy Always: no registry can be reached.
status [--json]
    What runs, its memory, and where kubeconfig, audit log and logs are. The audit log has one JSON line per request, without those of
    Kubernetes' own components.
stop COMPONENT, start COMPONENT
    One of etcd, apiserver, controller-manager, scheduler, containerd, kubelet, kube-proxy; what the others do then is the test.
down
    Removes everything, also after kill -9 of anything. What was still running in the namespace is killed.
build [hyperkube|helm|kwok|coredns …]
    Compiles the programs (25 minutes on two cores) into $XDG_CACHE_HOME/pagoda/kube-bin.

control-plane --dir DIR [--controller-manager] [--scheduler] [--kwok [STAGES]]
    etcd and an API server alone, on free loopback ports; no root, no namespace. Prints one JSON line when ready
    ({"kubeconfig", "url", "ca", "token", "auditLog", "folder", "programs", "pids"}), runs until SIGTERM or until its standard input closes
    (a pipe's end; /dev/null is no end), then removes everything, DIR too. On standard input `stop kube-apiserver` and
    `start kube-apiserver` make an outage; each is answered by one JSON line.

KUBECONFIG         somebody else's cluster: up and status check it, exec uses it, down leaves it alone, all else refuses
PAGODA_KUBE_BIN    a folder with the programs of Kubernetes; else what `build` made
DEVCLUSTER_DIR     the state folder, default /tmp/pagoda-devcluster; two folders are two clusters, but one machine holds one kubelet

What it is not: the network does not enforce NetworkPolicy, there is no StorageClass (write a hostPath PersistentVolume by hand), no
LoadBalancer, no metrics-server, and no way out of it.
"""

import sys

from devcluster.cli import main

if __name__ == "__main__":
    sys.exit(main())
