"""A model's text read for thinking and tool calls: what each form yields, that broken calls stay text, and that cuts change nothing."""

import json
from collections.abc import Sequence

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pagoda_router.openai.reply.call_scanner import LONGEST_HEAD_CHARS
from pagoda_router.openai.reply.forms import FORCED, HERMES, LLAMA, MISTRAL, CallForm, form_of
from pagoda_router.openai.reply.pieces import Pieces
from pagoda_router.openai.reply.reader import ReplyPlan, ReplyReader

NAMES = frozenset({"weather", "add"})
Call = tuple[str, str]


def plan(form: CallForm | None = None, **more: object) -> ReplyPlan:
    return ReplyPlan(form=form, known_names=NAMES, **more)  # type: ignore[arg-type]


def read(reply_plan: ReplyPlan, parts: Sequence[str]) -> Pieces:
    """As a stream is put together: deltas joined, calls by index."""
    reader, read = ReplyReader(reply_plan), Pieces()
    for part in parts:
        read.add(reader.feed(part))
    read.add(reader.end())
    assert [call.index for call in read.calls] == list(range(len(read.calls)))
    return read


def calls(pieces: Pieces) -> list[Call]:
    return [(call.name or "", call.arguments) for call in pieces.calls]


PARIS = '{"city": "Paris"}'
CASES = [
    # form, text, content, calls
    (HERMES, "hello", "hello", []),
    (HERMES, "  hello \n", "  hello \n", []),
    (HERMES, f'<tool_call>\n{{"name": "weather", "arguments": {PARIS}}}\n</tool_call>', "", [("weather", PARIS)]),
    (HERMES, f'Let me see.\n<tool_call>{{"name":"weather","arguments":{PARIS}}}</tool_call>\n', "Let me see.", [("weather", PARIS)]),
    (HERMES, f'<tool_call>{{"arguments": {PARIS}, "name": "weather"}}</tool_call>', "", [("weather", PARIS)]),
    (HERMES, '<tool_call>{"name": "add", "arguments": "{\\"a\\": 1}"}</tool_call>', "", [("add", '{"a": 1}')]),
    (HERMES, '<tool_call>{"name": "add"}</tool_call>', "", [("add", "{}")]),
    (HERMES, '<tool_call>{"name": "add", "arguments": null}</tool_call>', "", [("add", "{}")]),
    (HERMES, '<tool_call>{"id": 7, "name": "add", "arguments": {}, "x": [1, "]"]}</tool_call>', "", [("add", "{}")]),
    (
        HERMES,
        '<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>\n<tool_call>{"name": "add", "arguments": {"a": 2}}</tool_call> done',
        " done",
        [("add", '{"a": 1}'), ("add", '{"a": 2}')],
    ),
    (HERMES, '<tool_call>{"name": "add", "arguments": {"a": "</tool_call>}"}}</tool_call>', "", [("add", '{"a": "</tool_call>}"}')]),
    (HERMES, '<tool_call>{"name": "add", "arguments": {"a": "\\"}"}}</tool_call>', "", [("add", '{"a": "\\"}"}')]),
    # cut off by a token limit
    (HERMES, '<tool_call>{"name": "add", "arguments": {"a": 1', "", [("add", '{"a": 1')]),
    (HERMES, '<tool_call>{"name": "add", "arguments": {"a": 1}}', "", [("add", '{"a": 1}')]),
    (HERMES, '<tool_call>{"name": "ad', '<tool_call>{"name": "ad', []),
    (HERMES, "so <tool_", "so <tool_", []),
    # no calls after all
    (HERMES, "<tool_call>weather in Paris</tool_call>", "<tool_call>weather in Paris</tool_call>", []),
    (HERMES, "a \n<tool_call> {'name': 'add'}", "a \n<tool_call> {'name': 'add'}", []),
    (HERMES, '<tool_call>{"name": 3, "arguments": {}}</tool_call>', '<tool_call>{"name": 3, "arguments": {}}</tool_call>', []),
    (HERMES, '<tool_call>{"name": "\\ud800", "arguments": {}}', '<tool_call>{"name": "\\ud800", "arguments": {}}', []),
    (HERMES, '<tool_call>{"arguments": {}}</tool_call>', '<tool_call>{"arguments": {}}</tool_call>', []),
    (HERMES, '<tool_call>{"name": "add", "arguments": [1]}x', '<tool_call>{"name": "add", "arguments": [1]}x', []),
    (HERMES, '<tool_call><tool_call>{"name": "add", "arguments": {}}</tool_call>', "<tool_call>", [("add", "{}")]),
    # opened, then broken: the arguments are as the model wrote them, the rest is text
    (HERMES, '<tool_call>{"name": "add", "arguments": {"a": <b>', "<b>", [("add", '{"a": ')]),
    (HERMES, '<tool_call>{"name": "add", "arguments": {}} and so on', " and so on", [("add", "{}")]),
    (HERMES, '<tool_call>{"name": "add", "arguments": {}, 3', ", 3", [("add", "{}")]),
    (MISTRAL, f'[TOOL_CALLS] [{{"name": "weather", "arguments": {PARIS}}}]', "", [("weather", PARIS)]),
    (
        MISTRAL,
        'Sure. [TOOL_CALLS][{"name": "add", "arguments": {"a": [1, 2]}}, {"name": "add", "arguments": {}}]',
        "Sure.",
        [("add", '{"a": [1, 2]}'), ("add", "{}")],
    ),
    (MISTRAL, "[TOOL_CALLS] none", "[TOOL_CALLS] none", []),
    (MISTRAL, '[TOOL_CALLS] [{"name": "add", "arguments": {}}, 5]', ", 5]", [("add", "{}")]),
    (LLAMA, f'{{"name": "weather", "parameters": {PARIS}}}', "", [("weather", PARIS)]),
    (LLAMA, f'\n<|python_tag|>{{"type": "function", "name": "weather", "parameters": {PARIS}}}', "", [("weather", PARIS)]),
    (LLAMA, '{"name": "add", "parameters": {}}; {"name": "add", "parameters": {"a": 1}}', "", [("add", "{}"), ("add", '{"a": 1}')]),
    (LLAMA, ' {"name": "Bob", "parameters": {}}', ' {"name": "Bob", "parameters": {}}', []),
    (LLAMA, '{"answer": 3}', '{"answer": 3}', []),
    (LLAMA, 'It is {"name": "add", "parameters": {}}', 'It is {"name": "add", "parameters": {}}', []),
    (LLAMA, "<|python_tag|>print(3)", "<|python_tag|>print(3)", []),
    (FORCED, f'[{{"name": "weather", "parameters": {PARIS}}}]', "", [("weather", PARIS)]),
    (FORCED, ' [ {"name":"add","parameters":{}} , {"name":"add","parameters":{}} ] ', "", [("add", "{}"), ("add", "{}")]),
    (FORCED, "no", "no", []),
    (None, "<tool_call>{}", "<tool_call>{}", []),
]


@pytest.mark.parametrize(("form", "text", "content", "expected"), CASES, ids=lambda value: str(value)[:50])
def test_a_form_yields_its_calls_and_leaves_the_rest_as_text(form: CallForm | None, text: str, content: str, expected: list[Call]) -> None:
    pieces = read(plan(form), [text])
    assert (pieces.content, calls(pieces)) == (content, expected)


THINKING = [
    # opened by the prompt, text, thinking, answer
    (False, "<think>\nhm\n</think>\n\nyes", "\nhm\n", "\n\nyes"),
    (False, "\n <think>hm</think>yes", "hm", "yes"),
    (False, "yes", "", "yes"),
    (False, "  <thin", "", "  <thin"),
    (False, "say <think>x</think>", "", "say <think>x</think>"),
    (False, "<think>a <think> b</think>c</think>d", "a <think> b", "c</think>d"),
    (False, "<think>cut o", "cut o", ""),
    (False, "<think>cut </thi", "cut </thi", ""),
    (True, "hm</think>yes", "hm", "yes"),
    (True, "\nhm", "\nhm", ""),
    (True, "<think>hm</think>yes", "hm", "yes"),
    (True, "</think>yes", "", "yes"),
    (True, "", "", ""),
]


@pytest.mark.parametrize(("opened", "text", "thought", "answer"), THINKING)
def test_thinking_is_split_from_the_answer(opened: bool, text: str, thought: str, answer: str) -> None:
    pieces = read(plan(thinks=True, opened=opened), [text])
    assert (pieces.reasoning, pieces.content) == (thought, answer)


def test_hidden_thinking_is_dropped_and_nothing_else() -> None:
    pieces = read(plan(thinks=True, shows_thinking=False), ["<think>hm</think>yes"])
    assert (pieces.reasoning, pieces.content) == ("", "yes")


def test_a_call_inside_the_thinking_is_thought_only() -> None:
    text = '<think>use <tool_call>{"name": "add"}</tool_call>?</think><tool_call>{"name": "add"}</tool_call>'
    pieces = read(plan(HERMES, thinks=True), [text])
    assert (pieces.content, calls(pieces)) == ("", [("add", "{}")])
    assert pieces.reasoning.startswith("use <tool_call>")


def test_a_forced_function_takes_the_whole_reply_as_its_arguments() -> None:
    pieces = read(plan(HERMES, forced_name="weather"), [" ", PARIS[:5], PARIS[5:]])
    assert (pieces.content, calls(pieces)) == ("", [("weather", PARIS)])


def test_arguments_leave_while_they_are_written() -> None:
    reader = ReplyReader(plan(HERMES))
    reader.feed('<tool_call>{"name": "weather", "argum')
    first, second = reader.feed('ents": {"ci'), reader.feed('ty": "Pa')
    assert [(call.name, call.arguments) for call in first.calls] == [("weather", '{"ci')]
    assert [(call.name, call.call_id, call.arguments) for call in second.calls] == [(None, None, 'ty": "Pa')]


def test_only_one_call_ends_the_reply_when_it_is_complete() -> None:
    reader = ReplyReader(plan(HERMES, only_one_call=True))
    reader.feed('<tool_call>{"name": "add", "arguments": {"a": 1}')
    assert not reader.is_full
    pieces = reader.feed('}</tool_call><tool_call>{"name": "add"}</tool_call>more')
    assert reader.is_full
    assert (pieces.content, pieces.calls) == ("", [])


FRAGMENTS = [
    "<tool_call>", "</tool_call>", "[TOOL_CALLS]", "<|python_tag|>", "<think>", "</think>", '{"name": "add", "arguments": ', "{", "}", "[",
    "]", '{"a": "', '"', "\\", ",", ";", ":", " ", "\n", "weather", '"name": "weather"', '"parameters": {}', "null", "1.5", "é🎉", "<",
    "tool_call>",
]  # fmt: skip
texts = st.lists(st.sampled_from(FRAGMENTS), max_size=14).map("".join)
plans = st.builds(
    plan,
    st.sampled_from([HERMES, MISTRAL, LLAMA, FORCED, None]),
    thinks=st.booleans(),
    opened=st.booleans(),
    only_one_call=st.booleans(),
)


@given(reply_plan=plans, text=texts, data=st.data())
@example(reply_plan=plan(HERMES), text=CASES[9][1], data=None)
def test_how_the_text_is_cut_changes_nothing(reply_plan: ReplyPlan, text: str, data: st.DataObject | None) -> None:
    whole = read(reply_plan, [text])
    cuts = [*range(len(text) + 1)] if data is None else sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    for parts in ([text[i:j] for i, j in zip([0, *cuts], [*cuts, len(text)], strict=True)], list(text)):
        cut = read(reply_plan, parts)
        assert (cut.content, cut.reasoning, calls(cut)) == (whole.content, whole.reasoning, calls(whole))


@given(reply_plan=plans, text=texts)
def test_without_a_call_nothing_of_the_text_is_lost(reply_plan: ReplyPlan, text: str) -> None:
    pieces = read(reply_plan, [text])
    if pieces.calls:
        return
    if reply_plan.thinks:
        # All but the tags, and the white space before the first.
        assert _without_tags(pieces.reasoning + pieces.content) == _without_tags(text)
    else:
        assert pieces.content == text


def _without_tags(text: str) -> str:
    return "".join(text.replace("<think>", "").replace("</think>", "").split())


@given(
    arguments=st.dictionaries(st.text(), st.recursive(st.none() | st.integers() | st.text(), st.lists, max_leaves=4), max_size=4),
    form=st.sampled_from([HERMES, MISTRAL, LLAMA, FORCED]),
    indent=st.none() | st.integers(0, 2),
)
def test_any_arguments_come_out_as_they_were_written(arguments: dict[str, object], form: CallForm, indent: int | None) -> None:
    written = json.dumps(arguments, indent=indent)
    text = f'{form.marker}{form.bracket}{{"name": "add", "arguments": {written}}}{form.closing}'
    pieces = read(plan(form), [text])
    assert (pieces.content, calls(pieces)) == ("", [("add", written)])


TEMPLATES = [
    ("{{ messages }}", None),
    ("{% if tools %}<tool_call>\n{\"name\"", HERMES),
    ("{% if tools %}<tool_call>\n<function=example>", None),
    ("[AVAILABLE_TOOLS]{{ tools }}[TOOL_CALLS]", MISTRAL),
    ("[AVAILABLE_TOOLS]{{ tools }}[TOOL_CALLS]name[ARGS]", None),
    ("<|start_header_id|>{{ tools }}{\"name\": function name, \"parameters\": dictionary", LLAMA),
    ("{{ tools }}", None),
]  # fmt: skip


@pytest.mark.parametrize(("template", "form"), TEMPLATES)
def test_the_chat_template_says_which_form_a_model_writes(template: str, form: CallForm | None) -> None:
    assert form_of(template) is form


def test_a_head_without_end_becomes_text_and_is_not_held_for_ever() -> None:
    text = '<tool_call>{"note": "' + "x" * LONGEST_HEAD_CHARS
    reader = ReplyReader(plan(HERMES))
    assert reader.feed(text).content == text
