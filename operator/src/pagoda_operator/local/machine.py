"""What this machine adds to a pod template: ports, hosts, paths, secrets, the device. Pure apart from reading no clock and no file.

Called by executor.py. Containers take all of these from PAGODA_* variables only, which is why rewriting variables is enough.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from pagoda_operator.local.errors import BadSettings
from pagoda_operator.local.template import FetchStep, PodTemplate, SecretKey

INHERITED = ("PATH", "HOME", "USER", "LANG", "LANGUAGE", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "LD_PRELOAD", "PYTHONPATH", "VIRTUAL_ENV")
INHERITED_PREFIXES = (
    "LC_",
    "XDG_",
    "HF_",
    "CUDA_",
    "NVIDIA_",
    "NCCL_",
    "OMP_",
    "MKL_",
    "KMP_",
    "GOMP_",
    "TORCH",
    "PYTORCH_",
    "TRITON_",
    "VLLM_",
)
"""Of the environment in which the supervisor was started; nothing else reaches a child, so that a stray variable changes nothing."""
PROGRAMS = {"vllm": "PAGODA_VLLM", "text-generation-launcher": "PAGODA_TGI", "trtllm-serve": "PAGODA_TENSORRT_LLM"}
"""Of other backends: the variable that says where this machine has the program. Without it, PATH does."""
LOOPBACK = ("127.0.0.1", "localhost", "::1")
DEVICES = ("auto", "cpu", "cuda")
OF_ROUTERS = "PAGODA_ROUTER_"
_REFERENCE = re.compile(r"\$\(([A-Za-z_][A-Za-z0-9_]*)\)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Choices:
    """What `pagoda up` says about this machine, kept with the objects."""

    host: str = "127.0.0.1"
    """Where the router listens. Beyond loopback needs an API key."""
    port: int = 8000
    device: str = "auto"
    """auto | cpu | cuda. auto: the GPU when there is one."""

    @property
    def client_host(self) -> str:
        return "127.0.0.1" if self.host in ("0.0.0.0", "::", "localhost") else self.host  # noqa: S104

    @property
    def endpoint(self) -> str:
        host = f"[{self.client_host}]" if ":" in self.client_host else self.client_host
        return f"http://{host}:{self.port}/v1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    choices: Choices
    home: str
    fleet_file: str
    cache_dir: str
    run_id: str
    log_level: str | None
    inherited: Mapping[str, str]
    programs: Mapping[str, str] = field(default_factory=dict)
    """Path of each of PROGRAMS that a variable names."""
    router_settings: Mapping[str, str] = field(default_factory=dict)
    """Variables that routers get beside their template's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """All that starting one process takes."""

    argv: tuple[str, ...]
    env: Mapping[str, str]
    host: str
    """Where its probes are asked."""
    ports: Mapping[int, int]
    """The template's port → the one the process listens on."""
    fetch: "Launch | None" = None
    """Runs first, and must end well."""


def check_choices(choices: Choices, api_key: str | None) -> None:
    """Raises BadSettings with one sentence."""
    if not 1 <= choices.port <= 65535:
        raise BadSettings(f"--port {choices.port}: a port is a number from 1 to 65535")
    if choices.device not in DEVICES:
        raise BadSettings(f"PAGODA_DEVICE={choices.device}: write one of {', '.join(DEVICES)}")
    if choices.host not in LOOPBACK and not api_key:
        raise BadSettings(f"--host {choices.host} is reachable from outside: set PAGODA_API_KEY, or leave --host away for 127.0.0.1")


def inherited_environment(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name in INHERITED or name.startswith(INHERITED_PREFIXES)}


def named_programs(environment: Mapping[str, str]) -> dict[str, str]:
    return {program: path for program, variable in PROGRAMS.items() if (path := environment.get(variable))}


def router_settings(environment: Mapping[str, str]) -> dict[str, str]:
    """PAGODA_ROUTER_X of whoever starts Pagoda is PAGODA_X of its routers, as `router.settings` of the chart is. A name that routers do not
    know ends them with the sentence that says so."""
    return {f"PAGODA_{name.removeprefix(OF_ROUTERS)}": value for name, value in environment.items() if name.startswith(OF_ROUTERS)}


def filled_in(argv: tuple[str, ...], env: Mapping[str, str]) -> tuple[str, ...]:
    """$(NAME) by the variable's value, as Kubernetes does it; a name that is not there stays as it is written."""
    return tuple(_REFERENCE.sub(lambda found: env.get(found[1], found[0]), word) for word in argv)


def fixed_ports(template: PodTemplate, choices: Choices) -> dict[int, int]:
    """Ports that clients know; all others are any free ones."""
    return {template.ports["http"]: choices.port} if template.component == "router" and "http" in template.ports else {}


def process_environment(
    template: PodTemplate, machine: Machine, *, pod_name: str, ports: Mapping[int, int], secret: Callable[[SecretKey], str | None]
) -> dict[str, str]:
    """The PAGODA_* variables of one process: the template's, with this machine's in their place."""
    # the rest is about the image's own folders
    env = {name: value for name, value in template.env.items() if name.startswith("PAGODA_") and name != "PAGODA_DISCOVERY"}
    for name, value in template.env.items():
        if name.startswith("PAGODA_") and name.endswith("_PORT"):
            env[name] = str(ports[int(value)])
    for name, key in template.secret_env.items():
        if (revealed := secret(key)) is not None:
            env[name] = revealed
    for name in template.pod_name_env:
        env[name] = pod_name
    if template.component == "router":
        env = {**machine.router_settings, **env}
    env["PAGODA_BIND_HOST"] = bind_host(template, machine.choices)
    if template.component == "router":
        env |= {"PAGODA_DISCOVERY": "file", "PAGODA_FLEET_FILE": machine.fleet_file, "PAGODA_CACHE_DIR": machine.cache_dir}
    else:
        env |= {"PAGODA_DEVICE": machine.choices.device}
    if machine.log_level:
        env["PAGODA_LOG_LEVEL"] = machine.log_level
    return env | {"PAGODA_POD_NAME": pod_name, "PAGODA_HOME": machine.home, "PAGODA_RUN_ID": machine.run_id}


def fetch_environment(step: FetchStep, machine: Machine, *, http_port: int, secrets: Mapping[str, str]) -> dict[str, str]:
    """Of the fetch step: the template's variables, with this machine's port and the secrets that only it gets."""
    env = {name: value for name, value in step.env.items() if name.startswith("PAGODA_")}
    if token := machine.inherited.get("HF_TOKEN"):
        env["PAGODA_HF_TOKEN"] = token
    env |= {**secrets, "PAGODA_BIND_HOST": "127.0.0.1", "PAGODA_HTTP_PORT": str(http_port)}
    if machine.log_level:
        env["PAGODA_LOG_LEVEL"] = machine.log_level
    return env | {"PAGODA_HOME": machine.home, "PAGODA_RUN_ID": machine.run_id}


def bind_host(template: PodTemplate, choices: Choices) -> str:
    return choices.host if template.component == "router" else "127.0.0.1"


def identity(template: PodTemplate, machine: Machine, secret: Callable[[SecretKey], str | None]) -> str:
    """Changes exactly when a running process must be replaced: with the template, this machine's choices, or a secret's value."""
    ports = {port: port for port in template.ports.values()} | fixed_ports(template, machine.choices)
    env = process_environment(template, machine, pod_name="", ports=ports, secret=secret)
    return hashlib.sha256(json.dumps([template.hash, template.argv, sorted(env.items())]).encode()).hexdigest()[:12]
