"""What the Dockerfiles and docker-compose.yaml promise, read from the files; and how the build script chooses. No builder is needed.

The images themselves run in `make e2e`: read-only, as uid 10001, in pods of the restricted profile.
"""

import importlib.util
import json
import re
import stat
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from pagoda_router.discovery.snapshot import parse_snapshot
from pagoda_router.settings import parse_settings as router_settings
from pagoda_worker.fetch.settings import parse_settings as fetch_settings
from pagoda_worker.settings.worker import parse_settings as worker_settings

ROOT = Path(__file__).parents[2]
IMAGES = ROOT / "images"
COMPONENTS = ("operator", "router", "worker")
COMPILERS = re.compile(r"\b(gcc|g\+\+|clang|build-essential|cargo|rustc|golang|apt-get|apk)\b")
ADDRESS = re.compile(r"\w+://|\b[\w-]+(\.[\w-]+)*\.(io|com|org|net|dev|cloud)(:\d+)?/")
"""Of a registry or an index."""


@dataclass
class Stage:
    base: str
    instructions: list[tuple[str, str]] = field(default_factory=list)

    def values(self, name: str) -> list[str]:
        return [value for instruction, value in self.instructions if instruction == name]


def instructions(component: str) -> list[tuple[str, str]]:
    text = re.sub(r"^\s*#.*\n", "", (IMAGES / f"{component}.Dockerfile").read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in lines if line.strip())]


def stages(component: str) -> dict[str, Stage]:
    """By name, in order; the last is the image."""
    found: dict[str, Stage] = {}
    for word, rest in instructions(component):
        if word == "FROM":
            base, _, name = rest.partition(" AS ")
            current = found[name or "final"] = Stage(base)
        elif found:
            current.instructions.append((word, rest))
    return found


def lineage(component: str) -> list[Stage]:
    """The final stage and those it is built on: what is in the image."""
    named, chain = stages(component), ["final"]
    while (base := named[chain[-1]].base) in named:
        chain.append(base)
    return [named[name] for name in chain]


@pytest.mark.parametrize("component", COMPONENTS)
class TestDockerfile:
    def test_the_base_is_an_argument_with_a_short_public_name(self, component: str) -> None:
        word, value = instructions(component)[0]
        name, _, default = value.partition("=")
        assert (word, name) == ("ARG", "BASE_IMAGE")
        assert re.fullmatch(r"python:[\w.-]+", default)
        assert lineage(component)[-1].base == "${BASE_IMAGE}"

    def test_it_runs_one_process_as_a_user_without_rights(self, component: str) -> None:
        final = stages(component)["final"]
        assert final.values("USER") == ["10001:10001"]
        assert [json.loads(entry) for entry in final.values("ENTRYPOINT")] == [["python", "-m", f"pagoda_{component}"]]
        assert final.values("CMD") == []
        last_copy = max(i for i, (word, _) in enumerate(final.instructions) if word in ("COPY", "RUN"))
        assert final.instructions.index(("USER", "10001:10001")) > last_copy, "what comes after USER would be the user's to change"

    def test_python_is_that_of_the_pinned_environment_and_nothing_is_written_to_the_root(self, component: str) -> None:
        settings = " ".join(stages(component)["final"].values("ENV"))
        assert "PATH=/opt/pagoda/bin:$PATH" in settings
        folders = re.findall(r"\b(\w*(?:HOME|CACHE_DIR))=(\S+)", settings)
        assert "HOME" in dict(folders)
        assert {folder for _, folder in folders if not folder.startswith("/tmp")} == set()

    def test_a_compiler_is_added_for_triton_alone(self, component: str) -> None:
        runs = [run for stage in lineage(component) for run in stage.values("RUN") if COMPILERS.search(run)]
        assert len(runs) == (component == "worker")
        assert all(run.startswith('if [ "${FLAVOUR}" = cuda ]') for run in runs)

    def test_it_is_labelled(self, component: str) -> None:
        labels = dict(re.findall(r'([\w.]+)="([^"]*)"', " ".join(stages(component)["final"].values("LABEL"))))
        assert labels["org.opencontainers.image.title"] == f"pagoda-{component}"
        assert labels["org.opencontainers.image.version"] == "${VERSION}"
        assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"

    def test_dependencies_are_keyed_by_the_lock_and_our_code_comes_after(self, component: str) -> None:
        dependencies = stages(component)["dependencies"]
        assert dependencies.values("COPY") == []
        assert f"source={component}/requirements.lock" in " ".join(dependencies.values("RUN"))
        assert f"source={component}," not in " ".join(dependencies.values("RUN"))
        assert "SOURCE_DIGEST" not in " ".join(dependencies.values("ARG"))
        assert stages(component)["final"].values("COPY") == ["--from=package /opt/package /opt/package"]

    def test_certificates_and_indexes_of_the_builder_are_mounts_that_no_layer_keeps(self, component: str) -> None:
        for stage in stages(component).values():
            for command in stage.values("RUN"):
                for path in re.findall(r"/build/[\w.]+", re.sub(r"--mount=\S+", "", command)):
                    assert path == "/build/install.sh"
                for mount in re.findall(r"--mount=(\S+)", command):
                    assert "target=/build/" in mount
            assert not any("/build" in value for value in stage.values("COPY"))


@pytest.mark.parametrize("file", sorted(path.name for path in IMAGES.iterdir() if path.suffix not in (".md", ".pyc") and path.is_file()))
def test_no_registry_or_index_is_named(file: str) -> None:
    text = (IMAGES / file).read_text()
    own = ("localhost/", "127.0.0.1", "builtin://", "hf://", "s3://", "http://127", "pagoda.dev/")
    named = [found[0] for found in ADDRESS.finditer(text) if not any(text.startswith(word, found.start()) for word in own)]
    assert named == []


def test_operator_and_router_hold_no_torch() -> None:
    for component in ("operator", "router"):
        assert re.findall(r"^(torch|triton|nvidia\S*|numpy)==", (ROOT / component / "requirements.lock").read_text(), re.MULTILINE) == []


def test_the_tools_of_the_build_are_pinned_by_hash() -> None:
    """install.sh takes uv and hatchling, with all it needs, from the bench's lock by these names."""
    script = (IMAGES / "install.sh").read_text()
    lock = (ROOT / "bench/requirements.lock").read_text()
    names = {name for names in re.findall(r"only '([^']+)' /build/tools.lock", script) for name in names.split("|")}
    assert {"uv", "hatchling"} <= names
    for name in names:
        assert re.search(rf"^{name}==\S+ \\\n    --hash=sha256:", lock, re.MULTILINE), name


def test_the_cpu_flavour_leaves_out_exactly_what_only_cuda_needs() -> None:
    script = (IMAGES / "install.sh").read_text()
    program = next(line.split("'")[1] for line in script.splitlines() if "skip" in line)
    lock = ROOT / "worker/requirements.lock"
    kept = subprocess.run(["awk", program, str(lock)], check=True, capture_output=True, text=True).stdout
    pinned = re.compile(r"^([A-Za-z0-9_.-]+)(?:\[\S+\])?==", re.MULTILINE)
    left_out = set(pinned.findall(lock.read_text())) - set(pinned.findall(kept))
    assert {"torch", "triton"} <= left_out
    assert all(re.match(r"torch$|triton$|nvidia-|cuda-", name) for name in left_out)
    assert {"numpy", "grpcio", "safetensors"} <= set(pinned.findall(kept))
    assert kept.count("--hash=") == lock.read_text().count("--hash=") - _hashes(lock, left_out)


def _hashes(lock: Path, names: set[str]) -> int:
    blocks = re.split(r"^(?=[A-Za-z])", lock.read_text(), flags=re.MULTILINE)
    return sum(block.count("--hash=") for block in blocks if re.split(r"[=\[]", block)[0] in names)


class TestCompose:
    """docker-compose.yaml and fleet.json, read by the very code that gets them at run time."""

    document = yaml.safe_load((IMAGES / "docker-compose.yaml").read_text())
    given: Mapping[str, str] = {"PAGODA_API_KEY": "pgd-1", "PAGODA_SESSION_TOKEN": "token-1"}

    def environment(self, service: str, **given: str) -> dict[str, str]:
        """As compose resolves it: ${NAME:-default}, ${NAME:?complaint}, and a name without a value from the shell."""
        shell = {**self.given, **given}

        def resolved(match: re.Match[str]) -> str:
            name, operator, rest = match.groups()
            if name not in shell and operator == ":?":
                raise KeyError(rest)
            return shell.get(name, rest)

        values = self.document["services"][service]["environment"]
        return {
            name: re.sub(r"\$\{(\w+)(:[-?])([^}]*)\}", resolved, value) if value is not None else shell[name]
            for name, value in values.items()
            if value is not None or name in shell
        }

    def test_the_router_understands_its_settings_and_insists_on_a_key(self) -> None:
        settings = router_settings(self.environment("router"))
        assert (settings.discovery, settings.api_key, settings.session_token) == ("file", "pgd-1", "token-1")
        (mount,) = self.document["services"]["router"]["volumes"]
        assert mount == f"./fleet.json:{settings.fleet_file}:ro"

    @pytest.mark.parametrize("name", ["PAGODA_API_KEY", "PAGODA_SESSION_TOKEN"])
    def test_without_a_secret_nothing_starts(self, name: str) -> None:
        text = (IMAGES / "docker-compose.yaml").read_text()
        uses = re.findall(rf"\$\{{{name}(..)", text)
        assert uses
        assert set(uses) == {":?"}

    def test_the_worker_understands_its_settings(self, tmp_path: Path) -> None:
        settings = worker_settings(self.environment("worker", PAGODA_ENGINE='{"maxModelLen": 512}'))
        assert settings.engine.max_model_len == 512
        assert settings.engine.device == "cuda"
        assert settings.session_token == "token-1"

    def test_the_fetch_step_understands_its_settings_and_writes_where_the_worker_reads(self) -> None:
        fetch = fetch_settings(self.environment("fetch", PAGODA_MODEL_SOURCE="hf://org/name"))
        assert str(fetch.cache) == self.environment("worker")["PAGODA_MODEL_CACHE"]
        volumes = {name: self.document["services"][name]["volumes"] for name in ("worker", "fetch")}
        assert volumes["worker"] == [f"{volumes['fetch'][0]}:ro"]

    def test_the_fleet_names_the_worker_service(self) -> None:
        snapshot = parse_snapshot(json.loads((IMAGES / "fleet.json").read_text()))
        assert snapshot.problems == ()
        (model,) = snapshot.models
        ((endpoint, takes_requests),) = snapshot.endpoints.items()
        settings = worker_settings(self.environment("worker"))
        assert model.name == settings.model_name
        assert (endpoint.model, takes_requests) == (model.name, True)
        assert endpoint.host in self.document["services"]
        assert endpoint.port == settings.grpc_port

    @pytest.mark.parametrize("service", ["router", "worker", "fetch"])
    def test_every_service_is_as_restricted_as_our_pods(self, service: str) -> None:
        made = self.document["services"][service]
        assert made["user"] == "10001:10001"
        assert made["read_only"] is True
        assert made["cap_drop"] == ["ALL"]
        assert made["tmpfs"][0].startswith("/tmp:")

    def test_only_the_router_is_reachable_from_outside_and_only_from_this_machine(self) -> None:
        services = self.document["services"]
        assert [name for name, service in services.items() if "ports" in service] == ["router"]
        assert services["router"]["ports"] == ["${PAGODA_LISTEN:-127.0.0.1:8000}:8000"]
        assert services["worker"]["networks"] == ["inside"]
        assert self.document["networks"]["inside"]["internal"] is True

    def test_the_worker_may_drain_to_the_end(self) -> None:
        for service in ("router", "worker"):
            grace = self.document["services"][service]["stop_grace_period"]
            assert int(grace.removesuffix("s")) > float(self.environment(service)["PAGODA_DRAIN_S"])


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("images_build", IMAGES / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH with nothing on it but what the test puts there, and an empty environment of ours."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setenv("PAGODA_IMAGES_DIR", str(tmp_path / "images"))
    for name in ("PAGODA_BUILDER", "PAGODA_BASE_IMAGE", "IMAGE_REGISTRY", "TORCH_INDEX", "TORCH_FLAVOUR"):
        monkeypatch.delenv(name, raising=False)
    return folder


def put(folder: Path, name: str, body: str) -> None:
    program = folder / name
    program.write_text(f"#!/bin/sh\n{body}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)


class TestBuildScript:
    @pytest.mark.parametrize(
        ("there", "wanted", "chosen"),
        [
            (("podman", "docker"), None, "docker"),
            (("podman", "docker", "buildah"), None, "buildah"),
            (("podman", "docker", "buildah"), "podman", "podman"),
        ],
    )
    def test_the_builder_is_the_first_that_is_there_or_the_one_named(
        self, script: ModuleType, programs: Path, monkeypatch: pytest.MonkeyPatch, there: tuple[str, ...], wanted: str | None, chosen: str
    ) -> None:
        for name in there:
            put(programs, name, "exit 0")
        if wanted:
            monkeypatch.setenv("PAGODA_BUILDER", wanted)
        assert script.find_builder().program == chosen

    def test_without_a_builder_one_line_says_what_to_install(
        self, script: ModuleType, programs: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert script.main(["build"]) == 1
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert "install one of them" in said

    @pytest.mark.parametrize(
        ("answers", "variable", "base", "said"),
        [
            ("exit 1", "mirror/python:3.11", "mirror/python:3.11", "as PAGODA_BASE_IMAGE says"),
            ('[ "$1" = pull ]', "", "python:3.11-slim-bookworm", "base image python:"),
            ('[ "$1" = inspect ]', "", "localhost/pagoda/base:bookworm", "made earlier"),
        ],
    )
    def test_the_choice_of_the_base_is_printed(
        self,
        script: ModuleType,
        programs: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        answers: str,
        variable: str,
        base: str,
        said: str,
    ) -> None:
        put(programs, "buildah", answers)
        if variable:
            monkeypatch.setenv("PAGODA_BASE_IMAGE", variable)
        assert script.choose_base(script.find_builder()) == base
        assert said in capsys.readouterr().out

    def test_no_registry_and_no_mmdebstrap_is_one_sentence(self, script: ModuleType, programs: Path) -> None:
        put(programs, "buildah", "exit 1")
        with pytest.raises(script.BuildError, match="install mmdebstrap, or set PAGODA_BASE_IMAGE"):
            script.choose_base(script.find_builder())

    @pytest.mark.parametrize(
        ("index", "given", "flavour"),
        [("", "", "cuda"), ("", "cuda", "cuda"), ("mirror/simple", "", "cpu"), ("mirror/cpu-and-more", "rocm6", "rocm6")],
    )
    def test_the_label_says_the_flavour_that_was_asked_for(
        self, script: ModuleType, programs: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, index: str, given: str, flavour: str
    ) -> None:
        put(programs, "docker", "exit 0")
        monkeypatch.setenv("TORCH_INDEX", index)
        monkeypatch.setenv("TORCH_FLAVOUR", given)
        (tmp_path / "index.env").touch()
        command = script.build_command(script.find_builder(), "worker", "base", tmp_path / "index.env")
        assert {f"FLAVOUR={flavour}", f"TORCH_INDEX={index}"} <= set(command)

    @pytest.mark.parametrize(
        ("index", "given", "words"),
        [
            ("mirror", "a b", "such as cpu"),
            ("", "cpu", "needs TORCH_INDEX"),
            ("mirror", "cuda", "with TORCH_INDEX the image holds no CUDA"),
        ],
    )
    def test_a_flavour_that_cannot_be_is_one_line(
        self,
        script: ModuleType,
        programs: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        index: str,
        given: str,
        words: str,
    ) -> None:
        put(programs, "docker", "exit 0")
        monkeypatch.setenv("TORCH_INDEX", index)
        monkeypatch.setenv("TORCH_FLAVOUR", given)
        assert script.main(["build", "worker"]) == 1
        said = capsys.readouterr().err
        assert words in said
        assert said.count("\n") == 1

    def test_images_are_named_as_the_operator_expects(self, script: ModuleType, programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        assert script.image_name("worker") == f"pagoda/worker:{script.version()}"
        monkeypatch.setenv("IMAGE_REGISTRY", "registry.example/team/")
        assert script.image_name("worker") == f"registry.example/team/pagoda/worker:{script.version()}"

    def test_all_distributions_have_the_version_of_the_images(self, script: ModuleType) -> None:
        for component in COMPONENTS:
            assert f'version = "{script.version()}"' in (ROOT / component / "pyproject.toml").read_text()

    def test_a_changed_file_changes_the_key_and_compiled_ones_do_not(
        self, script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(script, "ROOT", tmp_path)
        source, compiled = tmp_path / "a.py", tmp_path / "a.pyc"
        source.write_text("1")
        before = script.digest(source, compiled)
        compiled.write_text("x")
        assert script.digest(source, compiled) == before
        source.write_text("2")
        assert script.digest(source, compiled) != before

    def test_layers_of_an_older_lock_are_forgotten_once(self, script: ModuleType, programs: Path, tmp_path: Path) -> None:
        put(programs, "buildah", f'case "$1" in inspect) ;; *) echo $1 >> {tmp_path}/calls;; esac')
        assert script.main(["build", "router"]) == 0
        assert script.main(["build", "router"]) == 0
        (tmp_path / "images/router.lock").write_text("another")
        assert script.main(["build", "router"]) == 0
        assert (tmp_path / "calls").read_text().split() == ["bud", "rmi", "bud", "bud", "rmi"]

    def test_the_settings_of_an_index_reach_the_build_as_a_shell_reads_them(self, script: ModuleType, tmp_path: Path) -> None:
        settings = tmp_path / "index.env"
        settings.write_text(
            script.index_settings({"PIP_INDEX_URL": "mirror/a b'c", "PIP_CERT": "/x", "UV_EXTRA_INDEX_URL": "more", "HOME": "/root"})
        )
        read = subprocess.run(["/bin/sh", "-c", f". {settings}; set"], capture_output=True, text=True, check=True, env={}).stdout
        assert "UV_EXTRA_INDEX_URL='more'" in read
        assert "UV_DEFAULT_INDEX=" in read, "uv reads none of pip's settings"
        assert "PIP_CERT" not in read
        assert "HOME='/root'" not in read

    @pytest.mark.parametrize(
        ("listing", "taker", "said"),
        [
            ("echo 'devcluster: KUBECONFIG=/a is not ours' >&2; exit 1", "taken", "images: devcluster: KUBECONFIG=/a is not ours"),
            ("exit 3", "taken", "images: listing failed with 3"),
            (None, "taken", "images: there is no listing"),
            ("exit 0", "nothing", "images: there is no nothing to give the images to"),
        ],
    )
    def test_what_cannot_list_or_take_images_is_one_line(
        self, script: ModuleType, programs: Path, capsys: pytest.CaptureFixture[str], listing: str | None, taker: str, said: str
    ) -> None:
        put(programs, "docker", "echo sha256:aa")
        put(programs, "taken", "exit 0")
        if listing:
            put(programs, "listing", listing)
        assert script.main(["load", "--present", "listing", "--", taker]) == 1
        assert capsys.readouterr().err == f"{said}\n"

    def test_an_image_that_is_there_is_not_loaded_again(
        self, script: ModuleType, programs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        version = script.version()
        put(programs, "docker", 'case "$1" in inspect) echo sha256:aa;; save) echo archive;; esac')
        put(programs, "taken", f"read x; echo $x >> {tmp_path}/taken")
        put(programs, "listing", f"echo docker.io/pagoda/operator:{version} sha256:aa; echo docker.io/pagoda/router:{version} sha256:bb")
        assert script.main(["load", "--present", "listing", "--only", "operator", "--only", "router", "--", "taken"]) == 0
        assert (tmp_path / "taken").read_text() == "archive\n"
        said = capsys.readouterr().out
        assert f"pagoda/operator:{version} is there already" in said
        assert f"pagoda/router:{version} loaded" in said
