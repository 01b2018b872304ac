"""One reply while it is read: thinking first, then content and tool calls. Pure; a choice of sequence.py has one when its request needs it.

`ReplyPlan` is what prepare.py decided about a request, the same for all its choices.
"""

import secrets
import string
from dataclasses import dataclass

from pagoda_router.openai.reply.calls import CallReader, WholeReplyCall
from pagoda_router.openai.reply.forms import CallForm
from pagoda_router.openai.reply.pieces import Pieces
from pagoda_router.openai.reply.thinking import ThinkingSplitter

_LETTERS = string.ascii_letters + string.digits


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplyPlan:
    """How a chat's text is read."""

    thinks: bool = False
    opened: bool = False
    """The prompt ends inside the thinking."""
    shows_thinking: bool = True
    form: CallForm | None = None
    """Tool calls are read in this form. None: there are none."""
    forced_name: str | None = None
    """The whole reply is the arguments of this function."""
    known_names: frozenset[str] = frozenset()
    only_one_call: bool = False

    @property
    def markers(self) -> tuple[str, ...]:
        """Special tokens that must not be left out of the text."""
        calls = () if self.form is None else (self.form.marker, self.form.closing)
        return (*calls, "<think>", "</think>") if self.thinks else calls


class ReplyReader:
    def __init__(self, plan: ReplyPlan) -> None:
        self._plan = plan
        self._thinking = ThinkingSplitter(opened=plan.opened) if plan.thinks else None
        self._calls = _call_reader(plan)

    @property
    def is_thinking(self) -> bool:
        """It may still be: what comes next is not surely the answer."""
        return self._thinking is not None and not self._thinking.is_done

    @property
    def has_thought(self) -> bool:
        return self._thinking is not None and self._thinking.has_thought

    @property
    def has_calls(self) -> bool:
        return self._calls is not None and self._calls.calls > 0

    @property
    def is_full(self) -> bool:
        """Nothing that comes would be shown."""
        return self._calls is not None and self._calls.is_full

    def feed(self, text: str) -> Pieces:
        thought, answer = ("", text) if self._thinking is None else self._thinking.feed(text)
        return self._shown(thought, answer)

    def end(self) -> Pieces:
        thought, answer = ("", "") if self._thinking is None else self._thinking.end()
        pieces = self._shown(thought, answer)
        if self._calls is not None:
            last = self._calls.end()
            pieces.content += last.content
            pieces.calls += last.calls
        return pieces

    def _shown(self, thought: str, answer: str) -> Pieces:
        pieces = Pieces(content=answer) if self._calls is None else self._calls.feed(answer)
        pieces.reasoning = thought if self._plan.shows_thinking else ""
        return pieces


def _call_reader(plan: ReplyPlan) -> CallReader | WholeReplyCall | None:
    new_id = _short_id if plan.form is not None and plan.form.short_ids else _long_id
    if plan.forced_name is not None:
        return WholeReplyCall(plan.forced_name, new_id)
    if plan.form is None:
        return None
    return CallReader(plan.form, known_names=plan.known_names, new_id=new_id, only_one=plan.only_one_call)


def _long_id() -> str:
    return "call_" + secrets.token_hex(12)


def _short_id() -> str:
    return "".join(secrets.choice(_LETTERS) for _ in range(9))
