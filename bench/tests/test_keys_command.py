"""`pagoda keys` and `pagoda usage` against a real router process: made, used, listed, limited, revoked, and what it says otherwise."""

import json
import os
import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import NamedTuple

import pytest


def without_pagoda() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("PAGODA_")}


@pytest.fixture(scope="module")
def router(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("router")
    (folder / "fleet.json").write_text('{"version": 1, "models": [], "endpointSlices": []}')
    settings = {
        "PAGODA_HTTP_PORT": "0",
        "PAGODA_INTERNAL_PORT": "0",
        "PAGODA_FLEET_FILE": str(folder / "fleet.json"),
        "PAGODA_CACHE_DIR": str(folder / "cache"),
        "PAGODA_API_KEY": "root",
    }
    command = [sys.executable, "-m", "pagoda_router"]
    with subprocess.Popen(command, env={**without_pagoda(), **settings}, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            for line in process.stderr:
                if found := re.search(r"listening http=(\S+)", line):
                    yield f"http://{found[1]}"
                    break
        finally:
            process.kill()


class Said(NamedTuple):
    stdout: str
    stderr: str


COMMANDS = """
import contextlib, io, json, os, sys
from pagoda_operator.commands import run
for line in sys.stdin:
    asked = json.loads(line)
    os.environ["PAGODA_API_KEY"] = asked["key"]
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        status = run(asked["arguments"])
    print(json.dumps([status, out.getvalue(), err.getvalue()]), flush=True)
"""


class CommandLine:
    """Runs one command after another in a process of its own: to start it anew costs each of them half a second."""

    def __init__(self, process: "subprocess.Popen[str]", router: str) -> None:
        self.router = router
        self._process = process

    def keys(self, *arguments: str, key: str = "root", expect: int = 0) -> Said:
        return self.pagoda("keys", *arguments, key=key, expect=expect)

    def pagoda(self, *arguments: str, key: str = "root", expect: int = 0) -> Said:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"arguments": arguments, "key": key}) + "\n")
        self._process.stdin.flush()
        status, stdout, stderr = json.loads(self._process.stdout.readline())
        assert status == expect, stderr
        return Said(stdout, stderr)


@pytest.fixture(scope="module")
def command_line(router: str) -> Iterator[CommandLine]:
    environment = {**without_pagoda(), "PAGODA_ROUTER": router}
    command = [sys.executable, "-c", COMMANDS]
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield CommandLine(process, router)


def status_of(router: str, key: str) -> int:
    request = urllib.request.Request(f"{router}/v1/models", headers={"Authorization": f"Bearer {key}"})
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_a_key_is_made_used_listed_and_revoked(command_line: CommandLine) -> None:
    made = command_line.keys("create", "ci", "--tenant", "blue", "--class", "throughput", "--model", "tiny", "--rpm", "9", "--days", "7")
    secret, key_id = made.stdout.strip(), made.stderr.splitlines()[-1].split()[0]
    assert status_of(command_line.router, secret) == 200
    assert made.stderr.splitlines()[0] == "tiny: no model is served by this name now; the key reaches it once one is"
    listed = command_line.keys("list").stdout
    assert re.search(rf"{key_id} +{re.escape(secret[:12])}… +ci +blue +throughput +tiny +9 requests/min +no +valid until ", listed)
    assert secret not in listed
    assert command_line.keys("revoke", key_id).stdout == f"{key_id} is revoked\n"
    assert status_of(command_line.router, secret) == 401
    assert f"{key_id} " in command_line.keys("list").stdout


def test_a_key_is_named_by_its_prefix_and_its_secret_never_said_again(command_line: CommandLine) -> None:
    secret = command_line.keys("create", "leaked").stdout.strip()
    for arguments in (["keys", "revoke"], ["keys", "limit", "--rpm", "5"], ["usage", "--key"]):
        refused = command_line.pagoda(*arguments, secret, expect=2)
        assert f"write its prefix, {secret[:12]}," in refused.stderr
        assert secret not in refused.stdout + refused.stderr
        refused = command_line.pagoda(*arguments, "sk-SECRET", expect=2)
        assert "write ID (key-…) or PREFIX (pgd-…)" in refused.stderr
        assert "SECRET" not in refused.stdout + refused.stderr
    assert "no key begins with pgd-00000000" in command_line.keys("revoke", "pgd-00000000", expect=1).stderr
    assert command_line.keys("revoke", f"{secret[:12]}…").stdout.endswith(" is revoked\n")
    assert status_of(command_line.router, secret) == 401


@pytest.mark.parametrize("written", ["pgd-SEC\nRET", "pgd-SEC RET", "pgd-SECRET…"])
def test_a_key_that_cannot_be_sent_is_not_shown(command_line: CommandLine, written: str) -> None:
    refused = command_line.keys("list", key=written, expect=1).stderr
    assert refused.startswith("pagoda: PAGODA_API_KEY has a space, a line break or a character outside ASCII")
    assert "SEC" not in refused


def test_a_line_break_behind_the_key_is_left_away(command_line: CommandLine) -> None:
    assert "PREFIX" in command_line.keys("list", key="root\n").stdout


def test_what_may_not_be_is_one_line(command_line: CommandLine) -> None:
    plain = command_line.keys("create", "plain").stdout.strip()
    assert command_line.keys("create", "more", key=plain, expect=1).stderr.startswith("pagoda: /admin/v1/keys needs an admin key")
    assert "not the right one" in command_line.keys("list", key="wrong", expect=1).stderr
    assert "there is no key key-0" in command_line.keys("revoke", "key-0", expect=1).stderr


def test_a_key_gets_other_limits_and_loses_them(command_line: CommandLine) -> None:
    made = command_line.keys("create", "team", "--tpm", "5000", "--monthly-tokens", "1000000", "--monthly-usd", "12.5")
    key_id = made.stderr.split()[0]
    assert "5000 tokens/min, 1000000 tokens/month, 12.5 USD/month" in command_line.keys("list").stdout
    limited = command_line.keys("limit", key_id, "--rpm", "60", "--monthly-usd", "20", "--remove", "tpm")
    assert limited.stdout == f"{key_id}: 60 requests/min, 1000000 tokens/month, 20 USD/month\n"
    assert "write rpm, tpm, monthly-tokens, monthly-usd" in command_line.keys("limit", key_id, "--remove", "everything", expect=2).stderr
    assert "nothing to change" in command_line.keys("limit", key_id, expect=2).stderr
    command_line.keys("revoke", key_id)
    assert "that works" in command_line.keys("limit", key_id, "--rpm", "1", expect=1).stderr


def test_usage_is_a_table_or_csv_and_wrong_questions_are_one_line(command_line: CommandLine) -> None:
    head, total = command_line.pagoda("usage").stdout.splitlines()
    assert head.split() == ["START", "KEY", "NAME", "MODEL", "REQUESTS", "PROMPT", "CACHED", "OUTPUT", "USD"]
    assert total.split() == ["total", "0", "0", "0", "0", "0.000000"]
    titles = "start,key,name,tenant,model,requests,prompt_tokens,cached_tokens,completion_tokens,cost_usd\n"
    assert command_line.pagoda("usage", "--csv", "--by", "hour", "--from", "2026-01-01").stdout == titles
    assert "--by week: write hour, day or total" in command_line.pagoda("usage", "--by", "week", expect=2).stderr
    assert "from is 'soon': use a date such as" in command_line.pagoda("usage", "--from", "soon", expect=1).stderr
    plain = command_line.keys("create", "nobody").stdout.strip()
    assert "needs an admin key" in command_line.pagoda("usage", key=plain, expect=1).stderr
