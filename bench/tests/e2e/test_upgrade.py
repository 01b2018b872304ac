"""A newer Pagoda over an older one, while people are being answered."""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import openai
import pytest
from conftest import LINGER_S, ROOT, Installation, install, ready_routers
from kube import eventually, names
from traffic import steady_traffic

sys.path.insert(0, str(ROOT / "bench/tests"))
from releases import earlier_version

pytestmark = pytest.mark.usefixtures("addresses")


@contextmanager
def long_streams(installation: Installation) -> Iterator[list[str]]:
    """One after the other, seconds each: how they ended."""
    endings: list[str] = []
    stopping = threading.Event()

    def run() -> None:
        with installation.client() as client:
            while not stopping.is_set():
                try:
                    stream = client.completions.create(
                        model="tiny", prompt="copy: a b c d", max_tokens=900, stream=True, extra_body={"ignore_eos": True}
                    )
                    endings.append(str([chunk.choices[0].finish_reason for chunk in stream][-1]))
                except openai.OpenAIError as error:
                    endings.append(repr(error))

    thread = threading.Thread(target=run, name="long streams")
    thread.start()
    try:
        yield endings
    finally:
        stopping.set()
        thread.join(timeout=90)


def test_an_upgrade_costs_no_request_and_no_stream(installation: Installation, tmp_path: Path) -> None:
    """As long as there is no release, from this checkout's own charts: going back to a version that nobody runs is nobody's way."""
    models, earlier = installation.models, earlier_version()
    if earlier is not None and earlier.is_release:
        print(f"upgrading from {earlier.name}")
        install(charts=earlier.unpack_charts(tmp_path))
    eventually(lambda: models.is_settled("tiny"), within_s=120, of="settled under the earlier version")
    document = models.get("inferencemodel", "tiny")
    workers, routers = names(models.pods("worker", "tiny")), names(models.pods("router"))
    with long_streams(installation) as endings, steady_traffic(installation.url, installation.api_key, "tiny") as traffic:
        eventually(lambda: traffic.count("before") >= 10, within_s=60, of="traffic flows")
        traffic.mark("upgrading")
        install("--set", f"router.lingerSeconds={LINGER_S + 1}")  # a value of the routers' template, so that they roll too
        eventually(lambda: len(fresh := ready_routers(models)) == 2 and not names(fresh) & routers, within_s=120, of="the routers are new")
        traffic.mark("after")
        eventually(lambda: traffic.count("after") >= 10, within_s=60, of="traffic flows on")
    assert traffic.bad() == [], traffic.report()
    assert endings
    assert set(endings) == {"length"}
    after = models.get("inferencemodel", "tiny")
    assert (after["metadata"]["uid"], after["spec"]) == (document["metadata"]["uid"], document["spec"])
    assert names(models.pods("worker", "tiny")) == workers, "no worker moved"
