"""`pagoda adapters`: what is asked of the router, and how its answers read."""

import json
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from pagoda_operator.commands import app

LISTED = {
    "name": "sql", "model": "tiny", "rank": 8, "version": "0123abcd", "source": "file:///sql", "declared": False,
    "workers": [{"worker": "tiny-default-0", "resident": True}, {"worker": "tiny-default-1", "resident": False}],
}  # fmt: skip


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, Any]]:
    """(method, URL, body); answered as a router would."""
    asked: list[tuple[str, str, Any]] = []

    def request(method: str, url: str, **given: Any) -> httpx.Response:
        asked.append((method, url, given["json"]))
        workers = [{"worker": "tiny-default-0", "rank": 8, "version": "0123abcd"}]
        if given["json"] and given["json"]["name"] == "half":
            workers.append({"worker": "tiny-default-1", "error": "no such folder"})
        answer = {"data": [LISTED]} if method == "GET" else {"workers": workers}
        return httpx.Response(200, content=json.dumps(answer), request=httpx.Request(method, url))

    monkeypatch.setattr(httpx, "request", request)
    monkeypatch.setenv("PAGODA_ROUTER", "http://router:8000")
    monkeypatch.setenv("COLUMNS", "200")
    return asked


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["adapters", *arguments])
    return result.exit_code, result.output


def test_the_list_tells_workers_and_how_many_have_it_on_the_device(asked: list[Any]) -> None:
    status, output = run("list")
    assert status == 0
    assert output.splitlines()[1].split() == ["sql", "tiny", "8", "0123abcd", "file:///sql", "loaded", "2", "(1)"]


def test_a_folder_is_meant_from_here_and_a_hubs_name_stays(asked: list[Any], tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("load", "sql", "adapters/sql", "--model", "tiny") == (0, "tiny-default-0: rank 8, version 0123abcd\n")
    run("load", "sql", "hf://org/sql", "--model", "tiny")
    assert [body["source"] for _, _, body in asked] == [f"file://{tmp_path}/adapters/sql", "hf://org/sql"]
    assert asked[0][:2] == ("POST", "http://router:8000/admin/v1/adapters")


def test_a_worker_that_could_not_fails_the_command(asked: list[Any]) -> None:
    result = CliRunner().invoke(app, ["adapters", "load", "half", "/sql", "--model", "tiny"])
    assert result.exit_code != 0
    assert str(result.exception) == "half is not on 1 of 2 workers"


def test_unloading_names_the_adapter_in_the_path(asked: list[Any]) -> None:
    assert run("unload", "acme:sql") == (0, "acme:sql is unloaded\n")
    assert asked[0][:2] == ("DELETE", "http://router:8000/admin/v1/adapters/acme%3Asql")
