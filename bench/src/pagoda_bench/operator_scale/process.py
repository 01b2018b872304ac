"""The operator under test: the real process, its metrics and its memory."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import psutil

from pagoda_bench.lifeline import Mark

NAMESPACE = "pagoda-system"
_SAMPLE = re.compile(r"^(?P<name>[a-z_]+)(?:\{(?P<labels>[^}]*)\})? (?P<value>\S+)$", re.MULTILINE)


class OperatorProcess:
    def __init__(self, facts: Mapping[str, Any], name: str, log: Path, port: int, mark: Mark) -> None:
        environment = {key: value for key, value in os.environ.items() if not key.startswith("PAGODA_")} | {
            "KUBECONFIG": facts["kubeconfig"],
            "PAGODA_VERSION": "0.1.0",
            "PAGODA_MASTER_KEY": "benchmark-key-of-32-characters-..",
            "PAGODA_POD_NAME": name,
            "PAGODA_POD_NAMESPACE": NAMESPACE,
            "PAGODA_CANARY": f"{NAMESPACE}/pagoda-canary",
            "PAGODA_HEALTH_PORT": str(port),
            "PAGODA_METRICS_PORT": str(port + 1),
            mark.name: mark.value,
        }
        self.name = name
        self.log = log
        self.restarts = 0
        """By keep(): it ends itself when it cannot renew its Lease, and kubelet would start it again."""
        self._environment = environment
        self._start()
        self._metrics = httpx.Client(base_url=f"http://127.0.0.1:{port + 1}", trust_env=False, timeout=10)
        self._peak = 0

    def _start(self) -> None:
        self.started, self.started_at = time.monotonic(), time.time()
        with self.log.open("ab") as output:
            command = [sys.executable, "-m", "pagoda_operator"]
            self._process = subprocess.Popen(command, env=self._environment, stdout=output, stderr=output)

    def keep(self) -> None:
        """Start it again when it has ended."""
        if self._process.poll() is not None:
            self.restarts += 1
            self._start()

    def kill(self) -> None:
        self._peak = self.peak_memory_bytes
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        if self._process.poll() is None:
            self._peak = self.peak_memory_bytes
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self.kill()

    @property
    def peak_memory_bytes(self) -> int:
        """The kernel's own high-water mark, so that no peak falls between two looks."""
        try:
            status = Path(f"/proc/{self._process.pid}/status").read_text()
        except OSError:
            return self._peak
        found = re.search(r"VmHWM:\s+(\d+) kB", status)
        return int(found.group(1)) << 10 if found else self._peak

    @property
    def memory_bytes(self) -> int:
        return int(psutil.Process(self._process.pid).memory_info().rss)

    @property
    def cpu_s(self) -> float:
        times = psutil.Process(self._process.pid).cpu_times()
        return float(times.user + times.system)

    def samples(self) -> dict[tuple[str, str], float]:
        """Metric and its labels as text → value; empty while it does not answer. Raises when the process has ended."""
        if self._process.poll() is not None:
            raise RuntimeError(f"the operator {self.name} ended with status {self._process.returncode}: see {self.log}")
        try:
            text = self._metrics.get("/metrics").text
        except httpx.HTTPError:
            return {}
        return {(match["name"], match["labels"] or ""): float(match["value"]) for match in _SAMPLE.finditer(text)}

    def total(self, metric: str, label: str = "") -> float:
        return sum(value for (name, labels), value in self.samples().items() if name == metric and label in labels)

    @property
    def leads(self) -> bool:
        return self.total("pagoda_operator_leader") == 1

    def calls(self) -> dict[str, float]:
        """API calls by "VERB resource", without those that go on anyway: watches, the Lease, the canary's beat cannot be told apart."""
        found: dict[str, float] = {}
        for (name, labels), value in self.samples().items():
            if name == "pagoda_operator_api_calls_total" and 'verb="WATCH"' not in labels and 'resource="leases"' not in labels:
                words = dict(re.findall(r'(\w+)="([^"]*)"', labels))
                key = f"{words['verb']} {words['resource']}"
                found[key] = found.get(key, 0) + value
        return found
