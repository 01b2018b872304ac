"""What a Prometheus on this machine is given: the supervisor's files, while processes come and go."""

import json
from pathlib import Path
from typing import Any

import yaml
from stacks import eventually
from test_supervisor import Running
from test_supervisor import running as running

from pagoda_operator.local.files import write_whole
from pagoda_operator.local.home import Home
from pagoda_operator.local.scrape import ScrapeFiles, configuration
from pagoda_operator.local.secret_files import api_key_file

PROMISE = {"slo": {"ttft": "500ms"}}


def read(running: Running, name: str) -> Any:
    return yaml.safe_load((running.supervisor.home.prometheus / name).read_text())


async def test_every_process_is_a_target_labelled_as_in_a_cluster(running: Running) -> None:
    running.apply()
    await eventually(running.settled)
    (router,), (worker,) = read(running, "routers.json"), read(running, "workers.json")
    assert router["targets"] == [f"127.0.0.1:{running.port}"]
    assert router["labels"]["namespace"] == worker["labels"]["namespace"] == "default"
    assert worker["labels"] | {"pod": ""} == {"namespace": "default", "pod": "", "pagoda_dev_model": "m", "pagoda_dev_variant": "default"}
    (pod,) = running.pods()
    assert pod.now.launch is not None
    assert worker["targets"] == [f"127.0.0.1:{pod.now.launch.ports[pod.template.ports['http']]}"]


async def test_rules_follow_the_promise(running: Running) -> None:
    running.apply(**PROMISE)
    await eventually(running.settled)
    alerts = {rule.get("alert") for group in read(running, "rules.yml")["groups"] for rule in group["rules"]} - {None}
    assert alerts == {"PagodaAvailabilityBurn", "PagodaTtftBurn"}
    running.apply()
    await eventually(lambda: read(running, "rules.yml") == {"groups": []})


def test_a_file_that_says_the_same_is_not_written_again(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.create()
    files = ScrapeFiles(home)
    files.publish([], [])
    before = {path.name: path.stat().st_ino for path in home.prometheus.iterdir()}
    files.publish([], [])
    assert {path.name: path.stat().st_ino for path in home.prometheus.iterdir()} == before
    assert before.keys() == {"routers.json", "workers.json", "rules.yml", "prometheus.yml"}
    assert json.loads((home.prometheus / "workers.json").read_text()) == []


def test_only_routers_are_shown_the_api_key_and_only_where_there_is_one(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.create()
    assert "authorization" not in str(configuration(home))
    write_whole(api_key_file(home.secrets), "key")
    router, worker = configuration(home)["scrape_configs"]
    assert router["authorization"] == {"credentials_file": str(api_key_file(home.secrets))}
    assert "authorization" not in worker
