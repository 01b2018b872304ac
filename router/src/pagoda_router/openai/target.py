"""The model that a request names, ready for its text: described by a worker, its tokenizer loaded, its prompts made into tokens.

Shared by every endpoint that takes text. Owns the tokenizer cache; waits, at the dispatcher's, for a model that nobody has described yet.
"""

from array import array
from collections.abc import Callable, Sequence
from typing import cast

from pagoda_router.abilities import Feature
from pagoda_router.catalog import Catalog, CatalogEntry, TextAssets
from pagoda_router.errors import BadRequest
from pagoda_router.generation import NOBODY, Arrival, Dispatcher, ModelName, Sender
from pagoda_router.http.cohort import Member
from pagoda_router.openai import checks
from pagoda_router.records import record
from pagoda_router.relays import OWN_BACKEND
from pagoda_router.text.tokens import TokenizerCache, TokenText
from pagoda_router.token_ids import as_array
from pagoda_router.tracing.record import RequestTrace

BYTES_PER_TOKEN = 3
"""Of text whose tokenizer is not known yet; most texts have 3 to 4."""


@record(frozen=True, slots=True)
class Target:
    """A model and how its text is handled."""

    served_name: str
    model: ModelName
    assets: TextAssets
    text: TokenText
    variant: str | None
    arrival: Arrival | None
    sender: Sender = NOBODY
    adapter: str = ""

    async def encode(self, prompt: str, *, special: bool, param: str, most: int | None = None) -> Sequence[int]:
        """`most`: only the last so many tokens are kept. Raises ContextTooLong when it can be seen before encoding."""
        if most is None:
            checks.check_context(self.text.least_tokens(prompt), self.assets, param=param, at_least=True)
        ids = await self.text.encode(prompt, add_special_tokens=special, scope=self.sender.tenant)
        return ids if most is None else ids[-most:]

    def require(self, feature: Feature, field: str, what: str) -> None:
        """Raises BadRequest when a worker that may get the request cannot do this; `what` says so, and the way out."""
        features = self.assets.features
        if features is not None and feature not in features:
            raise BadRequest(f"{field}: the workers of {self.served_name} {what}", param=field)


class Targets:
    def __init__(self, catalog: Catalog, dispatcher: Dispatcher, clock: Callable[[], float]) -> None:
        """`clock`: the trace's."""
        self._catalog = catalog
        self._dispatcher = dispatcher
        self._clock = clock
        self._tokenizers = TokenizerCache()

    async def wait_for(
        self,
        entry: CatalogEntry,
        trace: RequestTrace,
        variant: str | None,
        guess_tokens: Callable[[], int],
        sender: Sender,
        member: Member,
    ) -> Target:
        """Waits while no worker has described the model, at the cost that is guessed for it; an older request is not overtaken for that."""
        _require_tokens(entry)
        arrival: Arrival | None = None
        while (assets := self._catalog.text(entry.model, variant)) is None:
            if trace.held_s is None:
                trace.held_s = self._clock()
            member.leave()  # nobody's stages go along with a wait of minutes
            held = await self._dispatcher.hold(entry.model, variant, guess_tokens(), sender)
            arrival = arrival or held
        text = await self._tokenizers.get(assets.tokenizer_file)
        return Target(entry.served_name, entry.model, assets, text, variant, arrival, sender, entry.adapter)

    async def known(self, entry: CatalogEntry) -> Target | None:
        """Without waiting for a worker or waking one."""
        _require_tokens(entry)
        assets = self._catalog.text(entry.model)
        if assets is None:
            return None
        return Target(entry.served_name, entry.model, assets, await self._tokenizers.get(assets.tokenizer_file), None, None)


def _require_tokens(entry: CatalogEntry) -> None:
    """Raises BadRequest for a model of which no worker takes tokens: none would ever describe it."""
    if entry.backends and OWN_BACKEND not in entry.backends:
        raise BadRequest(
            f"{entry.served_name} is served by {entry.backends[0]}, which keeps its tokenizer: POST /tokenize and /detokenize ask it",
            param="model",
        )


def guessed_tokens(text: str) -> int:
    return len(text.encode(errors="surrogatepass")) // BYTES_PER_TOKEN + 1


def texts_or_ids(given: str | list[str | int | list[int]], param: str) -> "Sequence[str | list[int] | array[int]]":
    """One string, several, one list of ids, or several: OpenAI's four forms. One list of ids as an array, unless it holds what is none."""
    if isinstance(given, str):
        return [given]
    if not given:
        raise BadRequest(f"{param} is empty: send text or token ids", param=param)
    if type(given[0]) is int:
        # Looked at while it is packed, by an array: a prompt may be a hundred thousand ids, and neighbours' streams wait.
        try:
            return [as_array(cast(list[int], given))]
        except OverflowError:
            if set(map(type, given)) == {int}:
                return [cast(list[int], given)]  # negative or beyond all vocabularies: check_prompt_ids names it
        except TypeError:
            pass
    kinds = set(map(type, given))
    if len(kinds) > 1:
        raise BadRequest(f"{param} mixes texts and token ids: send a string, strings, token ids, or lists of token ids", param=param)
    return cast(list[str | list[int]], given)
