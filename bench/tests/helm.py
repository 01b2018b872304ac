"""The real helm, and the charts of this checkout through it. Tests that need it skip with one line where it is not, also under
PAGODA_REQUIRE_ALL: CI says in a line of its own that prebuilt programs are missing."""

import functools
import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
CHARTS = ROOT / "charts"
NAMESPACE = "pagoda-system"

Object = dict[str, Any]


def find_program(name: str) -> str | None:
    """In PAGODA_KUBE_BIN when that is set, else on PATH."""
    return shutil.which(name, path=os.environ.get("PAGODA_KUBE_BIN") or None)


NO_HELM = "needs helm: PAGODA_KUBE_BIN names no folder that has it, and it is not on PATH"
needs_helm = pytest.mark.skipif(find_program("helm") is None, reason=NO_HELM)


def skip_without_helm() -> None:
    """For a whole module, which then takes one line."""
    if find_program("helm") is None:
        pytest.skip(NO_HELM, allow_module_level=True)


class HelmFailed(Exception):
    """helm ended with an error; the text is what it wrote."""


def helm(*words: str, stdin: str | None = None, env: Mapping[str, str] | None = None) -> str:
    program = find_program("helm")
    assert program is not None
    environment = {**os.environ, **(env or {})}
    done = subprocess.run([program, *words], input=stdin, capture_output=True, text=True, check=False, timeout=180, env=environment)
    if done.returncode != 0:
        raise HelmFailed(f"{done.stderr}{done.stdout}")
    return done.stdout


@functools.cache
def _rendered(chart: str, values: str, extra: tuple[str, ...]) -> str:
    # A helm built from source takes an old Kubernetes for granted when it is not told of a newer one.
    words = ("template", "pagoda", str(CHARTS / chart), "--namespace", NAMESPACE, "--kube-version", "1.30.0")
    return helm(*words, "--values", "-", *extra, stdin=values)


def render(values: Object | None = None, *extra: str, chart: str = "pagoda") -> list[Object]:
    """What `helm template` makes of the values; without a cluster. Raises HelmFailed."""
    return [document for document in yaml.safe_load_all(render_text(values, *extra, chart=chart)) if document]


def render_text(values: Object | None = None, *extra: str, chart: str = "pagoda") -> str:
    return _rendered(chart, json.dumps(values or {}), extra)


def one(objects: list[Object], kind: str, name: str | None = None) -> Object:
    found = [each for each in objects if each["kind"] == kind and name in (None, each["metadata"]["name"])]
    assert len(found) == 1, f"{len(found)} objects of {kind} {name or ''}"
    return found[0]


def plain_environment(deployment: Object) -> dict[str, str]:
    """The container's variables that are written out, not taken from a Secret or from the pod."""
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    return {each["name"]: each["value"] for each in container["env"] if "value" in each}
