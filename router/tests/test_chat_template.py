"""Templates render as in transformers, say themselves why they refuse, and cannot run away."""

import pytest

from pagoda_router.errors import BadRequest
from pagoda_router.text.chat import ChatTemplates

CHATML = (
    "{%- for message in messages %}\n"
    "    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}\n"
    "{%- endfor %}\n"
    "{%- if add_generation_prompt %}\n"
    "    {{- '<|im_start|>assistant\\n' }}\n"
    "{%- endif %}\n"
)
FEATURES = (
    "{{ bos_token }}{% set ns = namespace(found=false) %}{% for m in messages %}{% if loop.first %}[{% endif %}"
    "{% if m.role == 'skip' %}{% continue %}{% endif %}{% if m['content'] is defined and m['content'] is string %}"
    "{{ loop.index0 }}:{{ m['content'] | trim }}"
    "{% endif %}{% set ns.found = true %}{% if not loop.last %},{% else %}] {{ loop.length }}{% endif %}{% endfor %}{{ ns.found }}"
    "{{ {'a': '<é>', 'b': [1, 2]} | tojson }}{{ messages[-1].content.split(' ')[-1] }}{{ messages[1:] | length }}"
    "{% generation %}kept{% endgeneration %}{{ strftime_now('%Y') | length }}{% if tools %}tools{% endif %}"
    "{{ 'x' * 3 }}{{ range(3) | list }}"
    "{% for k, v in {'p': 1, 'q': 2}.items() %}{{ k }}={{ v }};{% endfor %}{{ '%s!' % 'percent' }}{{ '{}?'.format('brace') }}"
)
CONVERSATION = [
    {"role": "system", "content": " be kind "},
    {"role": "skip", "content": "no"},
    {"role": "user", "content": "<b>hello</b> world"},
]


def render(template: str, messages: list[dict[str, str]] | None = None, **options: object) -> str:
    arguments: dict[str, object] = {"special_tokens": {"bos_token": "<s>"}, "variables": {}, "add_generation_prompt": True, **options}
    timeout_s = arguments.pop("timeout_s", 2.0)
    max_chars = arguments.pop("max_chars", 100_000)
    templates = ChatTemplates(timeout_s=timeout_s, max_chars=max_chars)  # type: ignore[arg-type]
    return templates.render(template, messages if messages is not None else CONVERSATION, **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("template", [CHATML, FEATURES], ids=["chatml", "features"])
@pytest.mark.parametrize("add_generation_prompt", [True, False])
def test_templates_render_as_in_transformers(template: str, add_generation_prompt: bool) -> None:
    utils = pytest.importorskip(
        "transformers.utils.chat_template_utils", reason="transformers is the reference; install bench/requirements.lock"
    )
    expected, _ = utils.render_jinja_template(
        [CONVERSATION], chat_template=template, add_generation_prompt=add_generation_prompt, bos_token="<s>"
    )
    assert render(template, add_generation_prompt=add_generation_prompt) == expected[0]


def test_the_final_message_can_be_continued() -> None:
    messages = [{"role": "user", "content": "count"}, {"role": "assistant", "content": "one, two, "}]
    text = render(CHATML, messages, add_generation_prompt=False, continue_final_message=True)
    assert text.endswith("assistant\none, two, ")


def test_a_template_that_refuses_is_quoted() -> None:
    with pytest.raises(BadRequest, match="only user and assistant") as caught:
        render("{{ raise_exception('only user and assistant alternate') }}")
    assert caught.value.param == "messages"


def test_variables_of_the_request_reach_the_template_but_do_not_replace_ours() -> None:
    assert render("{{ enable_thinking }} {{ messages | length }}", variables={"enable_thinking": False, "messages": []}) == "False 3"


HOSTILE = {
    "escape by class": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "escape by globals": "{{ raise_exception.__globals__.os }}",
    "escape by cycler": "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "change of the messages": "{{ messages.append(1) }}",
    "endless loop": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "endless output": "{% for a in range(99999) %}{{ 'x' * 1000 }}{% endfor %}",
    "huge text": "{{ 'x' * 10000000000 }}",
    "huge list": "{{ [1] * 10000000000 }}",
    "huge number": "{{ 10 ** 10000000 }}",
    "huge padding": "{{ 'x'.ljust(10000000000) }}",
    "huge format": "{{ '{:>10000000000}'.format('x') }}",
    "huge percent": "{{ '%10000000000s' % 'x' }}",
    "huge range": "{{ range(10000000000) | list }}",
    "huge indent": "{{ 'a\nb' | indent(10000000000) }}",
    "huge json indent": "{{ [1] | tojson(indent=10000000000) }}",
    "endless recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "syntax error": "{% for %}",
    "wrong type": "{{ messages + 1 }}",
    "shadowed budget": "{% set budget = 1 %}{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
}


@pytest.mark.timeout(60)  # it would take hours
@pytest.mark.parametrize("template", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_template_is_a_400_in_bounded_time(template: str) -> None:
    with pytest.raises(BadRequest, match="chat template"):
        render(template, timeout_s=0.3)


def test_a_template_that_writes_too_much_is_stopped_by_its_characters() -> None:
    with pytest.raises(BadRequest, match="more than 5000 characters"):
        render("{% for a in range(99) %}{{ 'x' * 1000 }}{% endfor %}", timeout_s=60.0, max_chars=5000)


def test_a_template_is_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    import pagoda_router.text.chat

    compiled: list[str] = []
    original = pagoda_router.text.chat._compile

    def counting(source: str) -> object:
        compiled.append(source)
        return original(source)

    monkeypatch.setattr(pagoda_router.text.chat, "_compile", counting)
    templates = ChatTemplates(timeout_s=1, max_chars=1000, max_templates=2)
    for source in ("a", "b", "a", "c", "a", "b"):
        templates.render(source, CONVERSATION, special_tokens={}, variables={}, add_generation_prompt=True)
    assert compiled == ["a", "b", "c", "b"]
