"""The cluster's own CA and what it signs, made by openssl; they live and die with the cluster."""

import subprocess
from pathlib import Path

from devcluster.errors import DevclusterError

# Without a file of ours openssl adds extensions from the machine's openssl.cnf, and the CA's constraints would be in twice.
_CONFIG = "[req]\ndistinguished_name = name\n[name]\n"


def make_all(folder: Path, addresses: tuple[str, ...]) -> None:
    """ca, apiserver (for `addresses`), kubelet-client (as system:masters) and service-account (a bare key) in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "openssl.cnf").write_text(_CONFIG)
    _certificate(folder, "ca", "/CN=pagoda-devcluster", "basicConstraints=critical,CA:TRUE", "keyUsage=critical,keyCertSign,cRLSign")
    names = ("localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local")
    alternatives = ",".join([*(f"DNS:{name}" for name in names), *(f"IP:{address}" for address in addresses)])
    _certificate(folder, "apiserver", "/CN=kube-apiserver", "extendedKeyUsage=serverAuth", f"subjectAltName={alternatives}", signed=True)
    _certificate(folder, "kubelet-client", "/O=system:masters/CN=kube-apiserver", "extendedKeyUsage=clientAuth", signed=True)
    _openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", str(folder / "service-account.key"))


def _certificate(folder: Path, name: str, subject: str, *extensions: str, signed: bool = False) -> None:
    signer = ("-CA", str(folder / "ca.crt"), "-CAkey", str(folder / "ca.key")) if signed else ()
    constraints = ("basicConstraints=critical,CA:FALSE",) if signed else ()
    added = [option for extension in (*constraints, *extensions) for option in ("-addext", extension)]
    _openssl(
        *("req", "-x509", "-config", str(folder / "openssl.cnf"), "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
        *("-keyout", str(folder / f"{name}.key"), "-out", str(folder / f"{name}.crt"), "-days", "3650", "-subj", subject),
        *("-addext", "subjectKeyIdentifier=hash", "-addext", "authorityKeyIdentifier=keyid", *added, *signer),
    )


def _openssl(*arguments: str) -> None:
    done = subprocess.run(["openssl", *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise DevclusterError(
            f"openssl {arguments[0]} failed: {done.stderr.strip().splitlines()[-1] if done.stderr.strip() else 'no message'}"
        )
