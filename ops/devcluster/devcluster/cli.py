"""The command line: words in, one clear line out on failure."""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from devcluster import build, cluster, control_plane, programs
from devcluster.cluster import Cluster
from devcluster.errors import DevclusterError

KWOK_STAGES = Path(__file__).resolve().parent.parent / "kwok" / "stages.yaml"


def main(arguments: list[str] | None = None) -> int:
    parsed = _parser().parse_args(arguments)
    try:
        parsed.run(parsed)
    except DevclusterError as error:
        print(f"devcluster: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # `… status | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="devcluster", description="A real Kubernetes for tests.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: object, summary: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=summary, description=summary)
        added.set_defaults(run=run)
        return added

    command("up", _up, "start the cluster (a no-op when it runs); with KUBECONFIG set, check that one instead")
    command("down", _down, "remove the cluster and everything it left, also after a crash")
    command("status", _status, "what runs, and where its files are").add_argument("--json", action="store_true")
    run = command("exec", _exec, "run a command in the cluster's network, with KUBECONFIG and PATH set")
    run.add_argument("words", nargs=argparse.REMAINDER, metavar="-- COMMAND …")
    command("load", _load, "give the node an image").add_argument("archive", help="a docker-archive tar; - reads it from standard input")
    command("images", _images, "the node's images: name and ID")
    for name, action in (("stop", _stop), ("start", _start)):
        help_text = f"{name} one component"
        command(name, action, help_text).add_argument("component", type=_component, metavar="|".join(cluster.NAMES))
    command("build", _build, "compile the programs into the cache").add_argument(
        "programs", nargs="*", choices=["hyperkube", *build.MODULES, []]
    )
    plane = command("control-plane", _control_plane, "etcd and an API server alone, on free loopback ports, until stdin closes or SIGTERM")
    plane.add_argument("--dir", type=Path, required=True, help="a folder of its own; removed at the end")
    plane.add_argument("--controller-manager", action="store_true")
    plane.add_argument("--scheduler", action="store_true")
    plane.add_argument(
        "--kwok", nargs="?", const=KWOK_STAGES, type=Path, metavar="STAGES", help="fake nodes and pods by these Stage objects"
    )
    return parser


def _up(parsed: argparse.Namespace) -> None:
    if given := _foreign_kubeconfig():
        _check(given)
        return
    cluster.require_root()
    folder, began = cluster.state_folder(), time.monotonic()
    with cluster.alone(folder):
        running = Cluster(folder, programs.find(programs.FULL))
        try:
            running.up()
        except DevclusterError as error:
            raise DevclusterError(f"{error}; `make devcluster-down` removes what was started") from error
    print(f"devcluster: ready after {time.monotonic() - began:.0f} s; kubeconfig {running.kubeconfig}, state {folder}")
    print("devcluster: it has a network of its own: python3 ops/devcluster exec -- kubectl get nodes")


def _down(parsed: argparse.Namespace) -> None:
    if given := _foreign_kubeconfig():
        print(f"devcluster: KUBECONFIG={given} is not ours: left alone")
        return
    cluster.require_root()
    folder = cluster.state_folder()
    with cluster.alone(folder):
        removed = cluster.down(folder)
    print(f"devcluster: {'removed' if removed else 'nothing to remove'}")


def _status(parsed: argparse.Namespace) -> None:
    if given := _foreign_kubeconfig():
        _check(given)
        return
    running = _made()
    facts = {
        "kubeconfig": str(running.kubeconfig),
        "state": str(running.folder),
        "auditLog": str(running.site.audit_log),
        "networkNamespace": running.name,
        "components": {item.name: {"running": item.running, "memoryBytes": item.memory_bytes} for item in running.components()},
    }
    if parsed.json:
        print(json.dumps(facts))
        return
    for name in ("kubeconfig", "state", "auditLog", "networkNamespace"):
        print(f"{name:18} {facts[name]}")
    for item in running.components():
        words = f"{item.memory_bytes >> 20} MiB" if item.running else "not running"
        print(f"{item.name:24} {words:12} {running.folder / item.name}.log")


def _exec(parsed: argparse.Namespace) -> None:
    words = parsed.words[1:] if parsed.words[:1] == ["--"] else parsed.words
    if not words:
        raise DevclusterError("exec what? For example: python3 ops/devcluster exec -- kubectl get nodes")
    if _foreign_kubeconfig():
        environment = programs.environment()
    else:
        running = _made()
        running.enter()
        environment = running.environment()
    found = shutil.which(words[0], path=environment.get("PATH"))
    if found is None:
        raise DevclusterError(f"there is no {words[0]} in PATH")
    os.execve(found, words, environment)  # noqa: S606  a shell is what must not be in between


def _load(parsed: argparse.Namespace) -> None:
    _ours_only("push the image to a registry that its nodes read (IMAGE_REGISTRY)")
    _made().load(parsed.archive)


def _images(parsed: argparse.Namespace) -> None:
    _ours_only("push its images to a registry that its nodes read (IMAGE_REGISTRY)")
    for name, image_id in sorted(_made().images().items()):
        print(name, image_id)


def _stop(parsed: argparse.Namespace) -> None:
    _ours_only("its components are left alone")
    _made().stop(parsed.component)


def _start(parsed: argparse.Namespace) -> None:
    _ours_only("its components are left alone")
    _made().start(parsed.component)


def _build(parsed: argparse.Namespace) -> None:
    build.run(parsed.programs)


def _control_plane(parsed: argparse.Namespace) -> None:
    stages = parsed.kwok.resolve() if parsed.kwok else None
    if stages is not None and not stages.is_file():
        raise DevclusterError(f"{stages} is not a file of kwok Stage objects")
    control_plane.run(
        control_plane.Options(
            folder=parsed.dir, controller_manager=parsed.controller_manager, scheduler=parsed.scheduler, kwok_stages=stages
        )
    )


def _component(word: str) -> str:
    name = word if word in cluster.NAMES else f"kube-{word}"
    if name not in cluster.NAMES:
        raise argparse.ArgumentTypeError(f"{word} is none of {' '.join(cluster.NAMES)}")
    return name


def _made() -> Cluster:
    cluster.require_root()
    folder = cluster.state_folder()
    found = cluster.programs_of(folder)
    if found is None or not (running := Cluster(folder, found)).made:
        raise DevclusterError(f"there is no cluster in {folder}: make devcluster")
    return running


def _foreign_kubeconfig() -> str | None:
    """KUBECONFIG, unless it names our own cluster, as it does for what `exec` runs."""
    given = os.environ.get("KUBECONFIG")
    ours = cluster.state_folder() / "admin.kubeconfig"
    return given if given and Path(given).resolve() != ours else None


def _ours_only(words: str) -> None:
    if given := _foreign_kubeconfig():
        raise DevclusterError(f"KUBECONFIG={given} is not ours: {words}; unset KUBECONFIG to mean the development cluster")


def _check(kubeconfig: str) -> None:
    kubectl = shutil.which("kubectl") or str(programs.find(["kubectl"]) / "kubectl")
    done = subprocess.run([kubectl, "get", "--raw", "/version", "--request-timeout=10s"], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        words = done.stderr.strip().splitlines() or ["no message"]
        raise DevclusterError(f"the cluster of KUBECONFIG={kubeconfig} does not answer: {words[-1]}")
    print(f"devcluster: using KUBECONFIG={kubeconfig}, Kubernetes {json.loads(done.stdout)['gitVersion']}")
