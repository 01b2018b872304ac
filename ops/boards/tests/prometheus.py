"""A real Prometheus over the running stack's own configuration, made faster and given what a test machine lacks."""

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import yaml
from expositions import served

from boards.files import OPS
from pagoda_bench.local_stack import free_port

START_S = 30.0


class Prometheus:
    def __init__(self, client: httpx.Client) -> None:
        self._client = client

    def get(self, path: str, **parameters: str) -> Any:
        """The `data` of an answer. Raises AssertionError with Prometheus' words."""
        answer = self._client.get(f"/api/v1/{path}", params=parameters)
        body = answer.json()
        assert body["status"] == "success", f"{parameters}: {body.get('error')}"
        return body["data"]

    def query(self, expr: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.get("query", query=expr)["result"]
        return found

    def is_ready(self) -> bool:
        try:
            return self._client.get("/-/ready").status_code == 200
        except httpx.TransportError:
            return False


@contextmanager
def prometheus(program: str, home: Path, folder: Path) -> Iterator[Prometheus]:
    """`home`: the state folder of the stack, `folder`: for Prometheus' own files."""
    port = free_port()
    with served(OPS / "expositions") as (recorded_port, recorded_paths):
        config = folder / "prometheus.yml"
        config.write_text(yaml.safe_dump(_configuration(home / "prometheus", folder, recorded_port, recorded_paths)))
        command = [program, f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address=127.0.0.1:{port}"]
        with (folder / "log").open("w") as log, httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=20) as client:
            process = subprocess.Popen(command, stdout=log, stderr=log)
            try:
                started = Prometheus(client)
                assert eventually(lambda: process.poll() is not None or started.is_ready(), within_s=START_S), (folder / "log").read_text()
                assert process.poll() is None, (folder / "log").read_text()
                yield started
            finally:
                process.terminate()
                process.wait(timeout=30)


def _configuration(made: Path, folder: Path, recorded_port: int, recorded_paths: list[str]) -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load((made / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    for job in config["scrape_configs"]:
        for discovery in job["file_sd_configs"]:
            discovery["files"] = [str(made / name) for name in discovery["files"]]
    recorded = [
        {
            "job_name": f"recorded {path[1:]}",
            "metrics_path": path,
            # what a ServiceMonitor would add
            "static_configs": [
                {"targets": [f"127.0.0.1:{recorded_port}"], "labels": {"namespace": "default", "pod": f"recorded-{path[1:]}"}}
            ],
        }
        for path in recorded_paths
    ]
    config["scrape_configs"] += recorded
    config["rule_files"] = [str(_at_every_evaluation(path, folder)) for path in (made / "rules.yml", OPS / "rules/alerts.yaml")]
    return config


def _at_every_evaluation(path: Path, folder: Path) -> Path:
    document = yaml.safe_load(path.read_text())
    for group in document["groups"]:
        group.pop("interval", None)
    copy = folder / path.name
    copy.write_text(yaml.safe_dump(document))
    return copy


def eventually(check: Callable[[], Any], *, within_s: float, every_s: float = 0.1) -> Any:
    """The first true answer, or the last one."""
    until = time.monotonic() + within_s
    while not (answer := check()) and time.monotonic() < until:
        time.sleep(every_s)
    return answer
