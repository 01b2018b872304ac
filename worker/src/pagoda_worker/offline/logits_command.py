"""The command `pagoda logits`: options in, a table out. Found by the `pagoda` command as an entry point of `pagoda.commands`.

typer and rich come with that command; nothing that serves imports this module.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pagoda_worker.errors import ModelMissing, WorkerError
from pagoda_worker.settings.sources import resolve_source

if TYPE_CHECKING:
    from pagoda_worker.offline.next_tokens import NextTokens

TOP_AT_MOST = 20
"""The engine's MAX_TOP_LOGPROBS, written again so that `pagoda logits --help` imports no torch; a test compares them."""


def logits(
    text: Annotated[str, typer.Argument(metavar="TEXT", help="What the model has read so far.")],
    model: Annotated[
        str, typer.Option(metavar="SOURCE", help="builtin://NAME, a Hugging Face folder, or hf://ORG/NAME from the local cache.")
    ] = "builtin://tiny",
    top: Annotated[int, typer.Option(help="How many of the next tokens.", min=1, max=TOP_AT_MOST)] = 10,
) -> None:
    """Show a text's tokens, and what a model holds for the most likely next ones."""
    try:
        folder = folder_of(model)
        from pagoda_worker.offline.next_tokens import next_tokens  # here: torch takes seconds, and a wrong source needs none

        _print(next_tokens(folder, text, top), model)
    except WorkerError as error:
        print(f"pagoda logits: {str(error).replace('PAGODA_MODEL_SOURCE', '--model')}", file=sys.stderr)
        raise typer.Exit(1) from None


def folder_of(source: str) -> Path:
    """Raises ConfigError. Nothing is fetched."""
    if source.startswith("hf://"):
        return _cached(source)
    return resolve_source(source if "://" in source else str(Path(source).expanduser().resolve()))


def _cached(source: str) -> Path:
    from huggingface_hub import snapshot_download

    repository, _, revision = source.removeprefix("hf://").partition("@")
    try:
        return Path(snapshot_download(repository, revision=revision or None, local_files_only=True))
    except (OSError, ValueError) as error:  # the library's errors for what is not there, and for a name that is none
        raise ModelMissing(
            f"--model {source}: it is not in the Hugging Face cache of this machine; `hf download {repository}` brings it"
        ) from error


def _print(found: "NextTokens", model: str) -> None:
    console = Console(highlight=False)
    console.print(f"{model}: {found.architecture} in {found.dtype} on {found.device}", markup=False, soft_wrap=True)
    prompt = Table("id", f"prompt, {len(found.prompt)} tokens")
    for token in found.prompt:
        prompt.add_row(str(token.id), _quoted(token.text))
    following = Table("id", "next token")
    following.add_column("probability", justify="right")
    following.add_column("logprob", justify="right")
    for each in found.top:
        following.add_row(str(each.token.id), _quoted(each.token.text), f"{each.probability:.2%}", f"{each.logprob:.3f}")
    console.print(prompt, following)


def _quoted(text: str) -> str:
    """Spaces and line ends are part of tokens."""
    return escape(repr(text)) if text else "none"
