"""Builds pagoda/{operator,router,worker}:VERSION with buildah, docker or podman, whichever exists. `make images` calls it; stdlib only.

    python3 images/build.py build [COMPONENT…]     images in the builder's own storage
    python3 images/build.py load [--only COMPONENT] [--present "COMMAND…"] -- COMMAND…
                                                   pipes each image, as a docker-archive, into COMMAND, except those that --present lists

Environment: PAGODA_BUILDER (which of the three), PAGODA_BASE_IMAGE (else the Dockerfiles' own, or, where no registry answers and buildah
builds, a Debian base that mmdebstrap makes), TORCH_INDEX and TORCH_FLAVOUR (another torch for the worker, and the word for it),
IMAGE_REGISTRY, PAGODA_IMAGES_DIR (buildah's storage). A package index and certificates of this machine's own (PIP_*, UV_*) reach the build
as secrets and stay out of the images.
"""

import argparse
import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COMPONENTS = ("operator", "router", "worker")
BUILDERS = ("buildah", "docker", "podman")
PUBLIC_BASE = "python:3.11-slim-bookworm"
OWN_BASE = "localhost/pagoda/base:bookworm"
DEBIAN_PACKAGES = "python3,python3-venv,ca-certificates"
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
INDEX_SETTINGS = re.compile(r"(PIP|UV)_(.*INDEX.*|TRUSTED_HOST|INSECURE_HOST|DEFAULT_TIMEOUT|HTTP_TIMEOUT)")
"""Environment variables that say where packages come from."""


class BuildError(Exception):
    """One line for the person who ran this."""


@dataclass(frozen=True)
class Builder:
    program: str
    environment: Mapping[str, str]
    folder: Path

    def run(self, *words: str) -> None:
        done = subprocess.run([self.program, *words], env=self.environment, check=False, cwd=ROOT)
        if done.returncode != 0:
            raise BuildError(f"{self.program} {words[0]} failed with {done.returncode}; its words are above")

    def read(self, *words: str) -> str:
        return read([self.program, *words], self.environment).strip()

    def image_id(self, name: str) -> str:
        image_format = "{{.FromImageID}}" if self.program == "buildah" else "{{.Id}}"
        try:
            return self.read("inspect", "--type", "image", "--format", image_format, name)
        except BuildError:
            raise BuildError(f"there is no {name}: run `make images` first") from None

    def answers(self, *words: str) -> bool:
        return subprocess.run([self.program, *words], env=self.environment, check=False, capture_output=True).returncode == 0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    building = commands.add_parser("build")
    building.add_argument("components", nargs="*", default=COMPONENTS, metavar="COMPONENT")
    building.set_defaults(run=lambda given: build(given.components))
    loading = commands.add_parser("load")
    loading.add_argument("--only", action="append", choices=COMPONENTS)
    loading.add_argument("--present", help="a command that prints one line per image: name and ID")
    loading.add_argument("command", nargs="+", metavar="COMMAND")
    loading.set_defaults(run=lambda given: load(given.command, given.only or COMPONENTS, given.present))
    given = parser.parse_args(arguments)
    try:
        given.run(given)
    except BuildError as error:
        print(f"images: {error}", file=sys.stderr)
        return 1
    return 0


def build(components: Sequence[str]) -> None:
    builder = find_builder()
    base = choose_base(builder)
    with tempfile.NamedTemporaryFile("w", suffix=".env") as index:
        index.write(index_settings(os.environ))
        index.flush()
        for component in components:
            began = time.monotonic()
            if component == "worker":  # by the host's compiler: no image holds one, and the libraries need nothing but glibc
                subprocess.run([sys.executable, str(ROOT / "worker/src/pagoda_worker/native/build.py")], check=True)
            builder.run(*build_command(builder, component, base, Path(index.name)))
            print(f"images: {image_name(component)} built in {time.monotonic() - began:.0f} s", flush=True)
    if builder.program == "buildah":
        _forget_old_layers(builder, components)


def _forget_old_layers(builder: Builder, components: Sequence[str]) -> None:
    """Of dependencies that a lock no longer names: gigabytes each. The stages of our own code, which go too, take seconds."""
    stamps = {builder.folder / f"{component}.lock": lock_digest(component) for component in components}
    if any(not stamp.is_file() or stamp.read_text() != key for stamp, key in stamps.items()):
        builder.read("rmi", "--prune")
    for stamp, key in stamps.items():
        stamp.write_text(key)


def load(command: Sequence[str], components: Sequence[str], present: str | None = None) -> None:
    builder = find_builder()
    listed = read(shlex.split(present), os.environ) if present else ""
    for component in components:
        began, name = time.monotonic(), image_name(component)
        if is_present(name, builder.image_id(name), listed):
            print(f"images: {name} is there already", flush=True)
            continue
        if builder.program == "buildah":
            save = [builder.program, "push", "--quiet", name, f"docker-archive:/dev/stdout:{name}"]
        else:
            save = [builder.program, "save", name]
        if shutil.which(command[0]) is None:
            raise BuildError(f"there is no {command[0]} to give the images to")
        with subprocess.Popen(save, env=builder.environment, stdout=subprocess.PIPE) as saving:
            taken = subprocess.run(command, stdin=saving.stdout, check=False)
        if saving.returncode != 0 or taken.returncode != 0:
            raise BuildError(
                f"{name} was not loaded: {builder.program} ended with {saving.returncode}, {command[0]} with {taken.returncode}"
            )
        print(f"images: {name} loaded in {time.monotonic() - began:.0f} s", flush=True)


def read(command: Sequence[str], environment: Mapping[str, str]) -> str:
    """What it prints. Its last word of trouble becomes ours: often it is a sentence of ops/devcluster's."""
    try:
        return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    except FileNotFoundError:
        raise BuildError(f"there is no {command[0]}") from None
    except subprocess.CalledProcessError as error:
        words = error.stderr.strip().splitlines() or [f"{shlex.join(command)} failed with {error.returncode}"]
        raise BuildError(words[-1]) from None


def is_present(name: str, image_id: str, listed: str) -> bool:
    """A runtime may list a name with the registry that it means by none."""
    rows = [line.split() for line in listed.splitlines()]
    there = {row[1].removeprefix("sha256:") for row in rows if len(row) == 2 and f"/{row[0]}".endswith(f"/{name}")}
    return there == {image_id.removeprefix("sha256:")}


def index_settings(environment: Mapping[str, str]) -> str:
    """As a shell reads them. uv knows pip's index where it was given none of its own."""
    given = {name: value for name, value in environment.items() if value and INDEX_SETTINGS.fullmatch(name)}
    if "PIP_INDEX_URL" in given and "UV_INDEX_URL" not in given:
        given.setdefault("UV_DEFAULT_INDEX", given["PIP_INDEX_URL"])
    return "".join(f"{name}={shlex.quote(value)}\n" for name, value in sorted(given.items()))


def find_builder() -> Builder:
    wanted = os.environ.get("PAGODA_BUILDER")
    names = (wanted,) if wanted else BUILDERS
    program = next((name for name in names if shutil.which(name)), None)
    if program is None:
        raise BuildError(f"there is no {' and no '.join(names)} here: install one of them, such as Debian's buildah")
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pagoda" / "images"
    folder = Path(os.environ.get("PAGODA_IMAGES_DIR") or default)
    environment = dict(os.environ)
    if program == "buildah":
        environment |= _own_storage(folder)
    return Builder(program, environment, folder)


def _own_storage(folder: Path) -> dict[str, str]:
    """buildah keeps images under our own folder: nothing of the machine's is touched, and removing the folder removes all."""
    folder.mkdir(parents=True, exist_ok=True)
    storage = folder / "storage.conf"
    storage.write_text(f'[storage]\ndriver = "overlay"\ngraphroot = "{folder}/graph"\nrunroot = "{folder}/run"\n')
    policy = folder / "policy.json"
    policy.write_text('{"default": [{"type": "insecureAcceptAnything"}]}\n')
    # BUILDAH_ISOLATION=chroot needs no cgroups and no namespaces of its own.
    return {"CONTAINERS_STORAGE_CONF": str(storage), "BUILDAH_ISOLATION": "chroot", "TMPDIR": str(folder)}


def choose_base(builder: Builder) -> str:
    if given := os.environ.get("PAGODA_BASE_IMAGE"):
        print(f"images: base image {given}, as PAGODA_BASE_IMAGE says")
        return given
    if builder.program != "buildah":
        print(f"images: base image {PUBLIC_BASE}")
        return PUBLIC_BASE
    if builder.answers("inspect", "--type", "image", OWN_BASE):
        print(f"images: base image {OWN_BASE}, made earlier by mmdebstrap")
        return OWN_BASE
    if builder.answers("pull", "--quiet", "--retry=0", PUBLIC_BASE):
        print(f"images: base image {PUBLIC_BASE}")
        return PUBLIC_BASE
    print(f"images: no registry gives {PUBLIC_BASE}: making {OWN_BASE} from Debian packages with mmdebstrap", flush=True)
    make_base(builder)
    return OWN_BASE


def make_base(builder: Builder) -> None:
    if shutil.which("mmdebstrap") is None:
        raise BuildError("no registry answers and there is no mmdebstrap: apt-get install mmdebstrap, or set PAGODA_BASE_IMAGE")
    began, archive = time.monotonic(), builder.folder / "base.tar"
    words = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={DEBIAN_PACKAGES}", "bookworm", str(archive)]
    # Certificates of this machine's own do not belong into images; Debian's packages are signed anyway.
    if subprocess.run(words, check=False, stdin=subprocess.DEVNULL).returncode != 0:
        raise BuildError("mmdebstrap failed; its words are above")
    container = builder.read("from", "scratch")
    try:
        builder.run("add", "--quiet", container, str(archive), "/")
        builder.run(
            "config", "--env", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "--env", "LANG=C.UTF-8", container
        )
        builder.run("commit", "--quiet", container, OWN_BASE)
    finally:
        builder.run("rm", container)
        archive.unlink(missing_ok=True)
    print(f"images: {OWN_BASE} made in {time.monotonic() - began:.0f} s", flush=True)


def build_command(builder: Builder, component: str, base: str, index: Path) -> list[str]:
    source = digest(ROOT / component / "pyproject.toml", *sorted((ROOT / component / "src").rglob("*")))
    arguments = {"BASE_IMAGE": base, "VERSION": version(), "LOCK_DIGEST": lock_digest(component), "SOURCE_DIGEST": source}
    if component == "worker":
        arguments |= {"TORCH_INDEX": os.environ.get("TORCH_INDEX", ""), "FLAVOUR": flavour()}
    command = [
        "build" if builder.program != "buildah" else "bud",
        "--file",
        f"images/{component}.Dockerfile",
        "--tag",
        image_name(component),
    ]
    for name, value in arguments.items():
        command += ["--build-arg", f"{name}={value}"]
    if CERTIFICATES.is_file():
        command += ["--secret", f"id=ca,src={CERTIFICATES}"]
    if index.stat().st_size:
        command += ["--secret", f"id=index,src={index}"]
    if builder.program != "docker":
        command += ["--layers", "--network", "host", "--quiet", "--format", "docker"]
    return [*command, "."]


def flavour() -> str:
    """Of the worker image's label. The lock's torch is the one with CUDA, and TORCH_INDEX leaves out what only that needs (install.sh)."""
    index = os.environ.get("TORCH_INDEX", "")
    wanted = os.environ.get("TORCH_FLAVOUR") or ("cpu" if index else "cuda")
    if not re.fullmatch("[a-z0-9.]+", wanted):
        raise BuildError(f"TORCH_FLAVOUR is {wanted}: write one word of small letters, such as cpu")
    if wanted == "cuda" and index:
        raise BuildError("with TORCH_INDEX the image holds no CUDA: unset it (UV_DEFAULT_INDEX names a mirror), or TORCH_FLAVOUR")
    if wanted != "cuda" and not index:
        raise BuildError(f"TORCH_FLAVOUR={wanted} needs TORCH_INDEX, an index of such wheels: the lock's torch is the one with CUDA")
    return wanted


def lock_digest(component: str) -> str:
    return digest(ROOT / component / "requirements.lock", ROOT / "images/install.sh")


def digest(*files: Path) -> str:
    """Of names and contents; compiled files and folders do not count."""
    sha = hashlib.sha256()
    for file in files:
        if file.is_file() and file.suffix != ".pyc":
            sha.update(f"{file.relative_to(ROOT)}\0".encode() + file.read_bytes())
    return sha.hexdigest()[:16]


def image_name(component: str) -> str:
    registry = os.environ.get("IMAGE_REGISTRY", "").strip("/")
    return f"{registry + '/' if registry else ''}pagoda/{component}:{version()}"


def version() -> str:
    found = re.search(r'^version = "([^"]+)"', (ROOT / "worker/pyproject.toml").read_text(), re.MULTILINE)
    assert found is not None, "worker/pyproject.toml states a version"
    return found[1]


if __name__ == "__main__":
    sys.exit(main())
