"""`pagoda up`: a supervisor of this code on the right port, the submission, the wait, and what to try next. Called by commands.py.

Every way it can fail ends in CommandError or LocalError with what to do; nothing starts before the manifests and the port are known good.
"""

import json
import os
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from pagoda_operator.local.client import call
from pagoda_operator.local.home import Home
from pagoda_operator.local.launch import ensure, exclusive
from pagoda_operator.local.machine import Choices
from pagoda_operator.local.processes import last_lines
from pagoda_operator.local.secret_files import read_api_key
from pagoda_operator.terminal.api_key import api_key_of
from pagoda_operator.terminal.errors import CommandError
from pagoda_operator.terminal.progress import Verdict, wait
from pagoda_operator.terminal.tables import notes

PROMPT = "What is 27 + 46?"
"""The models that ship with the worker were trained on such sums."""
LAST_LINES = 8
DEVICES = Path("/dev")


@dataclass(frozen=True, slots=True)
class Up:
    home: Home
    environment: Mapping[str, str]
    console: Console

    def submit(self, objects: Sequence[Mapping[str, Any]], wishes: Mapping[str, Any]) -> Choices:
        """Starts the supervisor when needed. `wishes` are the choices that the user made; the others stay as they are."""
        api_key = api_key_of(self.environment)
        with exclusive(self.home):
            supervised = ensure(self.home, self.environment, wishes, api_key, self._say)
        answer = call(self.home, "apply", objects=list(objects), choices=dict(wishes), apiKey=api_key)
        for name, outcome in answer["outcomes"].items():
            self._say(f"{name} {outcome}")
        return replace(supervised.choices, **wishes)

    def wait(self, names: Sequence[str], timeout_s: float) -> float:
        """The seconds it took. Raises CommandError with the reason, the last log lines and the next step."""
        began = time.monotonic()
        try:
            verdicts = wait(names, lambda: call(self.home, "get"), self.console, timeout_s)
        except KeyboardInterrupt:
            going_on = f"{', '.join(names)} go{'es' if len(names) == 1 else ''} on starting"
            raise CommandError(f"{going_on}: `{program()} get` says how far, `{program()} down` stops everything", status=130) from None
        if troubled := {name: verdict for name, verdict in verdicts.items() if verdict.failed or not verdict.done}:
            raise CommandError(*self._explain(troubled, time.monotonic() - began))
        return time.monotonic() - began

    def tell_what_next(self, documents: Sequence[Mapping[str, Any]], choices: Choices, took_s: float) -> None:
        names = [served_name(document) for document in documents]
        verb = "are" if len(names) > 1 else "is"
        pagoda = program()
        key = ' -H "Authorization: Bearer $PAGODA_API_KEY"' if read_api_key(self.home.secrets) else ""
        self._say(f"{', '.join(names)} {verb} ready at {choices.endpoint} ({took_s:.1f} s)")
        submitted = {document["metadata"]["name"] for document in documents}
        for document in call(self.home, "get")["objects"]:
            if document["metadata"]["name"] in submitted:
                for note in notes(document, has_gpu=any(DEVICES.glob("nvidia[0-9]*"))):
                    self._say(f"{document['metadata']['name']}: {note}")
        self._say("")
        self._say(f"  {curl_line(choices.endpoint, names[0], key)}")
        self._say("")
        self._say(f"  console     {choices.endpoint.removesuffix('/v1')}/")
        self._say(f"  chat        {pagoda} chat{f' {names[0]}' if len(names) > 1 else ''}")
        self._say(f"  stop        {pagoda} down")

    def _explain(self, troubled: Mapping[str, Verdict], waited_s: float) -> list[str]:
        pods = call(self.home, "get")["pods"]
        lines = []
        for name, verdict in troubled.items():
            waited = "" if verdict.failed else f" (waited {waited_s:.0f} s)"
            lines.append(f"{verdict.line}{waited}")
            for pod in pods:
                if not pod["ready"] and not pod["terminating"] and pod["model"] in (name, None):
                    lines += [f"  {pod['name']}: {line}" for line in last_lines(Path(pod["log"]), LAST_LINES)]
        lines.append(f"See `{program()} describe {next(iter(troubled))}`; correct it and run `up` again, or `{program()} down`.")
        return lines

    def _say(self, line: str) -> None:
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)


def curl_line(endpoint: str, model: str, key_option: str) -> str:
    body = {"model": model, "messages": [{"role": "user", "content": PROMPT}], "max_tokens": 64, "temperature": 0}
    return f"curl {endpoint}/chat/completions -H 'Content-Type: application/json'{key_option} -d '{json.dumps(body)}'"


def served_name(document: Mapping[str, Any]) -> str:
    return str(next(iter(document["spec"].get("servedNames") or [document["metadata"]["name"]])))


def program() -> str:
    """`pagoda` when that finds this program, else the path by which it was called."""
    called = Path(sys.argv[0])
    found = shutil.which("pagoda")
    if called.name != "pagoda" or (found is not None and Path(found).resolve() == called.resolve()):
        return "pagoda"
    relative = os.path.relpath(called)
    return relative if not relative.startswith("..") else os.path.normpath(called.absolute())
