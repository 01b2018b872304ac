"""What a piece of a model's text turns out to be: content, thinking, parts of tool calls. Pure data.

The readers make it, sequence.py collects it, the formats show it.
"""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class CallDelta:
    """A part of one tool call. The first part of a call has its id and name; `arguments` of all parts join to the call's JSON."""

    index: int
    """Of the call in its choice."""
    arguments: str = ""
    call_id: str | None = None
    name: str | None = None


@dataclass(slots=True)
class Pieces:
    content: str = ""
    reasoning: str = ""
    calls: list[CallDelta] = field(default_factory=list)

    def add(self, later: "Pieces") -> None:
        self.content += later.content
        self.reasoning += later.reasoning
        for call in later.calls:
            add_call(self.calls, call)


def add_call(calls: list[CallDelta], part: CallDelta) -> None:
    """One delta per call and message, however many parts it came in."""
    if calls and calls[-1].index == part.index:
        last = calls[-1]
        calls[-1] = CallDelta(part.index, last.arguments + part.arguments, last.call_id, last.name)
    else:
        calls.append(part)
