"""The routers that are measured: how each is started before the mocks, on its core. One entry of STARTERS is one system.

Raises PeerUnavailable with the reason where one cannot run here. Called by run.py.
"""

import json
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import httpx

from pagoda_bench.local_stack import free_port
from pagoda_bench.peers.environment import interpreter, versions
from pagoda_bench.peers.system import PeerUnavailable
from pagoda_bench.router_load.pinned import Pinned
from pagoda_bench.router_load.scenarios import DIRECT, OURS, RELAYING, WORDS

START_TIMEOUT_S = 120.0
KEY = "sk-router-bench"
MODELS = ("mock-0ms", "mock-1ms", "mock-10ms", WORDS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """What a router is put in front of, and where."""

    backends: Sequence[str]
    """URLs of the mock backend."""
    workers: Mapping[str, Sequence[int]]
    """Ports of mock workers by model."""
    scratch: Path
    cores: Sequence[int]
    processes: int = 1
    source: Path | None = None
    """Of our router: router/src of another commit. None: the installed one."""
    interpreter: Path | None = None
    """What it runs on, an environment's python with what the router needs. None: what runs this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterSystem:
    name: str
    url: str
    processes: tuple[Pinned, ...] = ()
    """Empty: there is no router."""
    behind: str = "backend"
    """Which mock answers: backend or worker."""
    key: str = KEY
    setting: str = ""

    def stop(self) -> None:
        for process in self.processes:
            process.stop()

    def pause(self) -> None:
        for process in self.processes:
            process.pause()

    def resume(self) -> None:
        for process in self.processes:
            process.resume()

    def cpu_s(self) -> float:
        return sum(process.cpu_s() for process in self.processes)

    def rss_bytes(self) -> int:
        return sum(process.rss_bytes() for process in self.processes)


def direct(site: Site) -> RouterSystem:
    return RouterSystem(name=DIRECT, url=site.backends[0], setting="load generator straight to the mock backend")


def nginx(site: Site) -> RouterSystem:
    program = shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/bin")
    if program is None:
        raise PeerUnavailable("nginx is not installed (Debian's nginx-light)")
    port, folder = free_port(), site.scratch / "nginx"
    folder.mkdir()
    servers = "".join(f"server {url.removeprefix('http://')};" for url in site.backends)
    temporary = "".join(f"{kind}_temp_path {folder};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    (folder / "nginx.conf").write_text(
        f"worker_processes 1; pid {folder}/pid; error_log {folder}/error.log; events {{worker_connections 4096;}}"
        f"http {{access_log off; keepalive_requests 1000000; client_max_body_size 10m; client_body_buffer_size 1m; {temporary}"
        f"upstream mock {{{servers} keepalive 512; keepalive_requests 1000000;}}"
        f"server {{listen 127.0.0.1:{port} backlog=2048; location / {{proxy_pass http://mock; proxy_http_version 1.1;"
        'proxy_set_header Connection ""; proxy_buffering off;}}}\n'
    )
    command = [program, "-p", str(folder), "-c", "nginx.conf", "-g", "daemon off;"]
    return _started(site, "nginx", command, port, setting="one worker, keep-alive to the mock, no access log")


def pagoda(site: Site) -> RouterSystem:
    setting = (
        "gRPC sessions to mock workers; a stored key, usage in SQLite, admission, placement, tokenizer, metrics and traces as by default"
    )
    return _pagoda(site, fleet(site.workers), name=OURS, behind="worker", setting=setting)


def pagoda_before_vllm(site: Site) -> RouterSystem:
    ports = [int(url.rpartition(":")[2]) for url in site.backends]
    setting = "relays to the mock backend as to vLLM's servers; the same key, usage, admission, placement, metrics and traces"
    return _pagoda(site, fleet(dict.fromkeys(MODELS, ports), backend="vllm"), name=RELAYING, behind="backend", setting=setting)


def _pagoda(site: Site, document: Mapping[str, object], *, name: str, behind: str, setting: str) -> RouterSystem:
    port, folder = free_port(), site.scratch / name.replace(" ", "-")
    folder.mkdir(parents=True)
    (folder / "fleet.json").write_text(json.dumps(document))
    env = {
        "PAGODA_HTTP_PORT": str(port),
        "PAGODA_INTERNAL_PORT": "0",
        "PAGODA_FLEET_FILE": str(folder / "fleet.json"),
        "PAGODA_CACHE_DIR": str(folder / "cache"),
        "PAGODA_API_KEY": KEY,
        "PAGODA_LOG_LEVEL": "WARNING",
    }
    if site.source is not None:
        env["PYTHONPATH"] = str(site.source.resolve())
    command = [str(site.interpreter or sys.executable), "-m", "pagoda_router"]
    if site.processes == 1:
        one = _started(site, name, command, port, env=env, behind=behind, setting=setting)
        return replace(one, key=_stored_key(one.url))
    several: list[RouterSystem] = []
    key = ""
    for i in range(site.processes):
        internal_port = free_port()
        own = {**env, "PAGODA_REUSE_PORT": "on", "PAGODA_INTERNAL_PORT": str(internal_port)}
        several.append(_started(site, f"{name}-{i}", command, port, env=own, behind=behind))
        key = key or _stored_key(several[0].url)  # the second finds it in the database
        _await_links(internal_port, sum(map(len, site.workers.values())))
    processes = tuple(process for system in several for process in system.processes)
    return replace(several[0], name=f"{name} x{site.processes}", processes=processes, key=key)


def _stored_key(url: str) -> str:
    """The secret of a key that is one of the database's, as clients have them."""
    answer = httpx.post(f"{url}/admin/v1/keys", json={"name": "bench"}, headers={"authorization": f"Bearer {KEY}"})
    if answer.status_code != 201:
        raise PeerUnavailable(f"no key could be made: {answer.status_code}: {answer.text[:200]}")
    secret: str = answer.json()["key"]
    return secret


def counted_usage(system: RouterSystem) -> str:
    """What the database has of that key, told by the router itself."""
    query = {"by": "total"}
    told = httpx.get(f"{system.url}/admin/v1/usage", params=query, headers={"authorization": f"Bearer {KEY}"}, timeout=30).json()
    rows = [row for row in told["data"] if row["name"] == "bench"]
    requests, tokens = (sum(row[name] for row in rows) for name in ("requests", "completion_tokens"))
    return f"{system.name}: usage of the key, as its database has it after the run: {requests:,} requests, {tokens:,} tokens"


def _await_links(internal_port: int, workers: int) -> None:
    """Until this very process routes to all workers: on a shared port another one may answer."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        try:
            told = httpx.get(f"http://127.0.0.1:{internal_port}/internal/v1/fleet").json()
            if sum(sum(model["routable"].values()) for model in told["models"].values()) == workers:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise PeerUnavailable("a second router did not connect to its workers")


def fleet(workers: Mapping[str, Sequence[int]], *, backend: str = OURS) -> dict[str, object]:
    """A fleet.json of these mock workers. `backend`: as in spec.engine.backend."""
    models = [{"metadata": {"name": name}, "spec": {"model": {"source": "mock://"}, "engine": {"backend": backend}}} for name in workers]
    slices = [
        {
            "metadata": {"name": f"{name}-{port}", "labels": {"pagoda.dev/model": name, "pagoda.dev/backend": backend}},
            "ports": [{"name": "grpc" if backend == OURS else "openai", "port": port}],
            "endpoints": [{"addresses": ["127.0.0.1"], "targetRef": {"name": f"{name}-{port}"}, "conditions": {"serving": True}}],
        }
        for name, ports in workers.items()
        for port in ports
    ]
    return {"version": 1, "models": models, "endpointSlices": slices}


def sglang_router(site: Site) -> RouterSystem:
    python, port = interpreter("sglang-router"), free_port()
    command = [str(python), "-m", "sglang_router.launch_router", *_rust_options(site, port), "--log-level", "warn"]
    return _started(site, "sglang-router", command, port, setting=_versions(python, "sglang-router") + ", cache_aware")


def vllm_router(site: Site) -> RouterSystem:
    python, port = interpreter("vllm-router"), free_port()
    command = [str(python.parent / "vllm-router"), *_rust_options(site, port), "--log-level", "warning"]
    return _started(site, "vllm-router", command, port, setting=_versions(python, "vllm-router") + ", cache_aware")


def _rust_options(site: Site, port: int) -> list[str]:
    """Both are one code's descendants."""
    options = ["--host", "127.0.0.1", "--port", str(port), "--worker-urls", *site.backends, "--policy", "cache_aware"]
    return [*options, "--prometheus-host", "127.0.0.1", "--prometheus-port", str(free_port())]


def litellm(site: Site) -> RouterSystem:
    python, port = interpreter("litellm"), free_port()
    deployments = [
        {"model_name": model, "litellm_params": {"model": f"openai/{model}", "api_base": f"{url}/v1", "api_key": "none"}}
        for model in MODELS
        for url in site.backends
    ]
    config = site.scratch / "litellm.yaml"  # JSON is YAML
    config.write_text(
        json.dumps({"model_list": deployments, "general_settings": {"master_key": KEY}, "litellm_settings": {"telemetry": False}})
    )
    env = {"LITELLM_LOG": "ERROR", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    command = [str(python.parent / "litellm"), "--config", str(config), "--host", "127.0.0.1", "--port", str(port)]
    return _started(site, "litellm", command, port, env=env, setting=_versions(python, "litellm") + ", one process, no database")


STARTERS: Mapping[str, Callable[[Site], RouterSystem]] = {
    DIRECT: direct,
    "nginx": nginx,
    OURS: pagoda,
    RELAYING: pagoda_before_vllm,
    "sglang-router": sglang_router,
    "vllm-router": vllm_router,
    "litellm": litellm,
}
"""In the order in which they take turns: LiteLLM last, what it is overloaded with lingers."""


def _versions(python: Path, distribution: str) -> str:
    return f"{distribution} {versions(python, (distribution,))[distribution]}"


def _started(
    site: Site,
    name: str,
    command: Sequence[str],
    port: int,
    *,
    env: Mapping[str, str] | None = None,
    behind: str = "backend",
    setting: str = "",
) -> RouterSystem:
    """Once each mock model answers through it. Raises PeerUnavailable with its last words."""
    process = Pinned(command, site.cores, log=site.scratch / f"{name}.log", env=env)
    system = RouterSystem(name=name, url=f"http://127.0.0.1:{port}", processes=(process,), behind=behind, setting=setting)
    deadline = time.monotonic() + START_TIMEOUT_S
    said = "nothing listened"
    for model in MODELS:
        while True:
            try:
                body = {"model": model, "max_tokens": 2, "messages": [{"role": "user", "content": "ready?"}]}
                headers = {"authorization": f"Bearer {KEY}"}
                answer = httpx.post(f"{system.url}/v1/chat/completions", json=body, headers=headers, timeout=10)
                if answer.status_code == 200:
                    break
                said = f"{answer.status_code}: {answer.text[:200]}"
            except httpx.TransportError as error:
                said = f"{type(error).__name__}: {error}"
            if process.ended() or time.monotonic() > deadline:
                last = process.last_words()
                process.stop()
                raise PeerUnavailable(f"{model} did not answer through it ({said}): {last}")
            time.sleep(0.2)
    return system
