"""The `pagoda` command: options in, one call each, text out. What a command does stands in terminal/ and local/.

Errors are one line on stderr each and an exit status of 1 (2 for wrong usage), never a traceback.
"""

import os
import shutil
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from pagoda_operator.errors import OperatorError
from pagoda_operator.local.client import call
from pagoda_operator.local.errors import LocalError, NotRunning
from pagoda_operator.local.home import home_from
from pagoda_operator.local.launch import running, stop, stored_choices, stored_objects
from pagoda_operator.local.processes import last_lines
from pagoda_operator.local.secret_files import read_api_key
from pagoda_operator.local.version import distribution_version
from pagoda_operator.terminal import doctor as examination
from pagoda_operator.terminal import logs as logging_files
from pagoda_operator.terminal import tables
from pagoda_operator.terminal.adapters import adapters
from pagoda_operator.terminal.api_key import api_key_of
from pagoda_operator.terminal.errors import CommandError
from pagoda_operator.terminal.extensions import add_extensions
from pagoda_operator.terminal.keys import keys
from pagoda_operator.terminal.model_argument import as_yaml, manifest_for
from pagoda_operator.terminal.submission import check, load
from pagoda_operator.terminal.up import Up
from pagoda_operator.terminal.usage import usage

app = typer.Typer(
    name="pagoda", help="Serve language models on this machine.", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False
)
app.add_typer(keys)
app.add_typer(adapters)
EVENTS_SHOWN = 40
"""Enough for the last few edits of a model with several workers."""
out = Console(soft_wrap=True, highlight=False)

Files = Annotated[list[str] | None, typer.Argument(metavar="FILE…", help="InferenceModel manifests; - reads stdin.")]
Port = Annotated[int | None, typer.Option(envvar="PORT", help="Where the router listens; 8000 unless told.")]
Host = Annotated[str | None, typer.Option(help="127.0.0.1 unless told; anything beyond loopback needs PAGODA_API_KEY.")]
Name = Annotated[str | None, typer.Argument(metavar="NAME", help="An InferenceModel; all when left away.")]


@app.command()
def up(
    files: Files = None,
    model: Annotated[str | None, typer.Option(help="A Hugging Face folder, or hf://ORG/NAME from the local cache.")] = None,
    name: Annotated[str | None, typer.Option(help="With --model: what to call it.")] = None,
    port: Port = None,
    host: Host = None,
    timeout: Annotated[float, typer.Option(help="Seconds to wait until the models are ready.")] = 300,
) -> None:
    """Start models, wait until they are ready, and say how to ask them."""
    documents = _documents(files, model, name)
    ups = Up(home_from(os.environ), os.environ, out)
    if not documents and stored_objects(ups.home) == 0:
        raise CommandError("nothing to start: `pagoda up FILE…` or `pagoda up --model FOLDER`", status=2)
    choices = ups.submit(documents, _wishes(port, host))
    documents = documents or call(ups.home, "get")["objects"]
    took_s = ups.wait([document["metadata"]["name"] for document in documents], timeout)
    ups.tell_what_next(documents, choices, took_s)


@app.command()
def apply(files: Files = None, port: Port = None, host: Host = None) -> None:
    """Submit manifests without waiting for them."""
    if not files:
        raise CommandError("apply what? `pagoda apply FILE…`, or - for stdin", status=2)
    Up(home_from(os.environ), os.environ, out).submit(load(files, os.environ), _wishes(port, host))


@app.command()
def down(purge: Annotated[bool, typer.Option("--purge", help="Remove logs, caches and generated secrets too.")] = False) -> None:
    """Stop everything; leaves no process behind, whatever happened to its parent."""
    home = home_from(os.environ)
    ended = stop(home)
    if ended.left:
        raise CommandError(f"these processes could not be ended: {', '.join(map(str, ended.left))}")
    if purge and home.path.exists():
        shutil.rmtree(home.path)
    killed = f", {ended.killed} processes had to be killed" if ended.killed else ""
    out.print(f"stopped{killed}" if ended.terminated or ended.killed else "nothing was running")


@app.command()
def get(
    name: Name = None,
    output: Annotated[str, typer.Option("-o", "--output", help="table, json or yaml.")] = "table",
    watch: Annotated[bool, typer.Option("-w", "--watch", help="Print again whenever something changes.")] = False,
) -> None:
    """List models: ready or the reason why not, replicas, endpoint."""
    if output not in ("table", "json", "yaml"):
        raise CommandError(f"-o {output}: write table, json or yaml", status=2)
    home, shown = home_from(os.environ), None
    while True:
        objects = [_find(call(home, "get")["objects"], name)] if name else call(home, "get")["objects"]
        if (state := [item.get("status", {}) | {"name": item["metadata"]["name"]} for item in objects]) != shown:
            shown = state
            _plain(tables.table(objects, tables.now()) if output == "table" else tables.formatted(objects, output, single=name is not None))
        if not watch:
            return
        time.sleep(0.25)


@app.command()
def describe(name: Annotated[str, typer.Argument(metavar="NAME")]) -> None:
    """All that is known of one model: conditions, processes, events, and its last log lines when it is not ready."""
    home = home_from(os.environ)
    state = call(home, "get")
    document = _find(state["objects"], name)
    pods = [pod for pod in state["pods"] if pod["model"] == name or pod["component"] == "router"]
    subjects = [name, "machine", "plan", *(pod["name"] for pod in pods)]
    events = tables.events_of(document, call(home, "events", subjects=subjects)["events"])[-EVENTS_SHOWN:]
    _plain(tables.description(document, pods, events, tables.now()))
    for pod in pods:
        if not pod["ready"] and (lines := last_lines(Path(pod["log"]), 10)):
            _plain(f"\nLast lines of {pod['log']}:\n  " + "\n  ".join(lines))


@app.command()
def logs(
    name: Name = None,
    router: Annotated[bool, typer.Option("--router", help="The router's instead of the workers'.")] = False,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on with what is added.")] = False,
    tail: Annotated[int, typer.Option(help="Lines of each file to begin with.")] = 100,
) -> None:
    """Show the logs of a model's workers, or the router's."""
    home = home_from(os.environ)
    try:
        pods = call(home, "get")["pods"]
        wanted = "router" if router else "worker"
        files = [Path(pod["log"]) for pod in pods if pod["component"] == wanted and (router or name is None or pod["model"] == name)]
    except NotRunning:
        pattern = "pagoda-router-*.log" if router else f"{name or '*'}-*.log"
        files = [file for file in sorted(home.logs.glob(pattern)) if router or not file.name.startswith("pagoda-router-")]
    files = [file for file in files if file.exists()]
    if not files:
        raise CommandError(f"there are no logs{f' of {name}' if name else ''} in {home.logs}: see `pagoda get`")
    for line in logging_files.show(files, tail, follow=follow):
        _plain(line)


@app.command()
def chat(
    model: Annotated[str | None, typer.Argument(metavar="MODEL", help="Needed when several are served.")] = None,
    message: Annotated[str | None, typer.Option("-m", "--message", help="Ask this once and leave.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Longest answer.")] = None,
) -> None:
    """Talk to a model; answers stream. Ctrl-C stops an answer, Ctrl-D ends."""
    # imported here: an HTTP client is half of what starting this program would cost every other command
    from pagoda_operator.terminal import chat as chatting

    home = home_from(os.environ)
    supervised = running(home)
    if supervised is None:
        raise NotRunning("nothing runs here: start with `pagoda up FILE` or `pagoda up --model FOLDER`")
    with chatting.connect(supervised.choices.endpoint, api_key_of(os.environ) or read_api_key(home.secrets)) as client:
        conversation = chatting.Conversation(client, chatting.choose_model(client, model), max_tokens, out)
        if message is not None:
            if trouble := conversation.ask(message).trouble:
                raise CommandError(trouble, status=130 if trouble == "stopped" else 1)
            return
        chatting.converse(conversation)


@app.command()
def sleep(
    name: Annotated[str, typer.Argument(metavar="MODEL")],
    level: Annotated[
        int, typer.Option(min=1, max=2, help="1: weights to host memory. 2: weights dropped, read from the folder again.")
    ] = 1,
    timeout: Annotated[float, typer.Option(help="Seconds to wait until running requests have ended.")] = 60,
) -> None:
    """Let a model give its memory back; the next request wakes it."""
    _ask_router("sleep", name, timeout, level=level)


@app.command()
def wake(
    name: Annotated[str, typer.Argument(metavar="MODEL")],
    timeout: Annotated[float, typer.Option(help="Seconds to wait until it is loaded.")] = 300,
) -> None:
    """Load a model that sleeps before somebody asks it."""
    _ask_router("wake", name, timeout)


@app.command()
def delete(name: Annotated[str, typer.Argument(metavar="NAME")]) -> None:
    """Remove one model; the others go on."""
    call(home_from(os.environ), "delete", name=name)
    _plain(f"{name} deleted")


@app.command()
def doctor(port: Port = None, host: Host = None) -> None:
    """Check this machine and say what to mend."""
    home = home_from(os.environ)
    choices = stored_choices(home)
    findings = list(examination.examine(home, host or choices.host, port or choices.port, os.environ))
    for finding in findings:
        _plain(f"{finding.level:<5} {finding.subject:<16} {finding.text}")
    if any(finding.level == examination.Level.FAIL for finding in findings):
        raise typer.Exit(1)


@app.callback(invoke_without_command=True)
def options(version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False) -> None:
    if version:
        _plain(f"pagoda {distribution_version()}")
        raise typer.Exit


app.command()(usage)  # behind those that start and look, as everybody needs them first


def run(arguments: list[str]) -> int:
    """The exit status; whatever went wrong has been said."""
    try:
        add_extensions(app, arguments)
        return int(app(arguments, prog_name="pagoda", standalone_mode=False) or 0)
    except (OperatorError, LocalError, CommandError) as error:
        return _fail(str(error), getattr(error, "status", 1))
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except BrokenPipeError:
        return 0
    except Exception as error:
        # the outermost line of the program: a usage error of typer's, or a fault of ours, told in one line either way
        if (format_message := getattr(error, "format_message", None)) is not None:
            context = getattr(error, "ctx", None)
            command = context.command_path if context else "pagoda"
            return _fail(f"{' '.join(format_message().replace('Value error, ', '').split())} (see {command} --help)", 2)
        if os.environ.get("PAGODA_LOG_LEVEL", "").upper() == "DEBUG":
            raise
        return _fail(f"unexpected {type(error).__name__}: {error} (PAGODA_LOG_LEVEL=DEBUG shows where)", 1)


def _documents(files: list[str] | None, model: str | None, name: str | None) -> list[dict[str, Any]]:
    """Empty when the user named nothing: then what was submitted before goes on."""
    if model is not None and files:
        raise CommandError("give files or --model, not both", status=2)
    if model is None:
        if name is not None:
            raise CommandError("--name goes with --model; a file has its metadata.name", status=2)
        return load(files, os.environ) if files else []
    document = manifest_for(model, name)
    check(document, "--model", os.environ)
    _plain(as_yaml(document))
    return [document]


def _ask_router(action: str, model: str, timeout_s: float, **fields: Any) -> None:
    router = call(home_from(os.environ), "router")  # first: it says in one line when nothing runs
    # imported here, as in chat
    from pagoda_operator.terminal.sleep import ask

    for line in ask(router, action, model, timeout_s, **fields):
        _plain(line)


def _wishes(port: int | None, host: str | None) -> dict[str, Any]:
    wishes = {"port": port, "host": host, "device": os.environ.get("PAGODA_DEVICE") or None}
    return {key: value for key, value in wishes.items() if value is not None}


def _find(objects: list[dict[str, Any]], name: str) -> dict[str, Any]:
    for document in objects:
        if document["metadata"]["name"] == name:
            return document
    known = ", ".join(document["metadata"]["name"] for document in objects) or "none"
    raise CommandError(f"there is no InferenceModel {name}; there are: {known}")


def _plain(text: str) -> None:
    out.print(text, markup=False, soft_wrap=True)


def _fail(message: str, status: int) -> int:
    for line in message.splitlines():
        print(f"pagoda: {line}" if line[:1].strip() else line, file=sys.stderr)
    return status
