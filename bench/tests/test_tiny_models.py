"""The shipped models: their folders are ordinary and small, their tokenizer loses nothing, their template says what training said."""

import shutil
from functools import cache
from itertools import islice
from pathlib import Path
from random import Random

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from pagoda_bench.tiny import corpus
from pagoda_bench.tiny import tokenizer as tok
from pagoda_bench.tiny.__main__ import main
from pagoda_bench.tiny.decoding import greedy_replies
from pagoda_bench.tiny.growth import grown
from pagoda_bench.tiny.models import FOLDERS, load_model
from pagoda_bench.tiny.training import Plan, answer_loss, batches, learning_rate

EACH_FOLDER = pytest.mark.parametrize("folder", FOLDERS.values(), ids=FOLDERS)
MEGABYTE = 1_000_000
LARGEST = {"target": 8 * MEGABYTE, "draft": 1 * MEGABYTE}


def conversations(count: int):
    return islice(corpus.training_conversations(corpus.DEFAULT_MIX, Random(11)), count)


@pytest.mark.parametrize("name", FOLDERS)
def test_the_weights_are_bfloat16_and_within_their_limit(name: str) -> None:
    assert (FOLDERS[name] / "model.safetensors").stat().st_size <= LARGEST[name]
    model = AutoModelForCausalLM.from_pretrained(FOLDERS[name])
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


@EACH_FOLDER
def test_the_shape_suits_the_engine(folder: Path) -> None:
    config = AutoConfig.from_pretrained(folder)
    assert config.model_type == "llama"
    assert config.hidden_size % 128 == 0
    assert config.head_dim == 64
    assert config.num_key_value_heads >= 2
    assert config.max_position_embeddings >= 2048
    assert config.vocab_size == tok.load_tokenizer(folder).get_vocab_size()


def test_target_and_draft_share_one_tokenizer() -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (FOLDERS["target"] / name).read_bytes() == (FOLDERS["draft"] / name).read_bytes()


@EACH_FOLDER
def test_the_end_of_turn_ends_a_generation(folder: Path) -> None:
    loaded = AutoTokenizer.from_pretrained(folder)
    assert loaded.eos_token == tok.END
    assert loaded.eos_token_id == tok.END_ID == AutoConfig.from_pretrained(folder).eos_token_id
    assert [loaded.convert_tokens_to_ids(token) for token in tok.SPECIAL_TOKENS] == [0, 1, 2, 3, 4]


def test_every_conversation_renders_by_the_template_as_it_was_trained() -> None:
    loaded = AutoTokenizer.from_pretrained(FOLDERS["target"])
    for messages in conversations(200):
        assert loaded.apply_chat_template(messages, tokenize=False) == tok.render(messages)
        asked = messages[:-1]
        assert loaded.apply_chat_template(asked, tokenize=False, add_generation_prompt=True) == tok.render(
            asked, add_generation_prompt=True
        )


def test_the_template_names_a_role_it_does_not_know() -> None:
    loaded = AutoTokenizer.from_pretrained(FOLDERS["target"])
    with pytest.raises(Exception, match="system, user and assistant, not tool"):
        loaded.apply_chat_template([{"role": "tool", "content": "4"}], tokenize=False)


def test_every_conversation_survives_the_tokenizer() -> None:
    tokenizer = tok.load_tokenizer(FOLDERS["target"])
    for messages in conversations(500):
        text = tok.render(messages)
        assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


@pytest.mark.parametrize(
    "text",
    ["", " ", "a  b\n\n\tc", "naïve façade — “ok”", "日本語 한국어", "👩🏽‍🚀", "\x00\x7f", "def f(x):\n    return x+1\n", "A,B;  12.5e-3"],
)
def test_any_text_survives_the_tokenizer(text: str) -> None:
    tokenizer = tok.load_tokenizer(FOLDERS["target"])
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


def test_digits_stand_alone_and_names_are_the_same_tokens_in_prose_and_in_json() -> None:
    tokenizer = tok.load_tokenizer(FOLDERS["target"])
    assert tokenizer.encode("1913").tokens == ["1", "9", "1", "3"]
    name = tokenizer.encode("Torenik").tokens
    assert tokenizer.encode("is Torenik").tokens[-len(name) :] == name
    assert tokenizer.encode('"Torenik').tokens[-len(name) :] == name


def test_only_the_assistants_words_and_end_of_turn_are_learned() -> None:
    tokenizer = tok.load_tokenizer(FOLDERS["target"])
    ids = tokenizer.encode("<|user|>Hi<|end|><|assistant|>Hello!<|end|><|user|>Bye<|end|><|assistant|>Goodbye!<|end|>").ids
    learned = [token for token, answering in zip(ids, tok.answer_mask(ids), strict=True) if answering]
    assert tokenizer.decode(learned, skip_special_tokens=False) == "Hello!<|end|>Goodbye!<|end|>"


def test_the_loss_is_that_of_transformers_on_the_answers_tokens() -> None:
    model = load_model(FOLDERS["draft"], torch.float32)
    ids, mask = next(batches(tok.load_tokenizer(FOLDERS["draft"]), Plan(model="draft", steps=1, batch_tokens=512), part="test"))
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        ours = answer_loss(model, ids, mask) / mask[:, 1:].sum()
        theirs = model(input_ids=ids, labels=ids.masked_fill(~mask, -100)).loss
    assert ours.item() == pytest.approx(theirs.item(), rel=0.02)


def test_padding_does_not_change_the_loss() -> None:
    tokenizer = tok.load_tokenizer(FOLDERS["draft"])
    model = load_model(FOLDERS["draft"], torch.float32)
    ids, mask = next(batches(tokenizer, Plan(model="draft", steps=1, batch_tokens=512), part="test"))
    more = torch.full((len(ids), 5), tok.PAD_ID)
    with torch.inference_mode():
        plain = answer_loss(model, ids, mask)
        padded = answer_loss(model, torch.cat([ids, more], dim=1), torch.cat([mask, more.bool()], dim=1))
    assert padded.item() == pytest.approx(plain.item(), rel=1e-2)


def test_a_grown_model_says_what_the_small_one_says_and_its_copies_may_part() -> None:
    small = load_model(FOLDERS["draft"], torch.float32)
    large = grown(small, width=2, depth=2, seed=3).eval()
    config = large.config
    assert (config.hidden_size, config.num_attention_heads, config.num_hidden_layers) == (256, 4, 6)
    ids, mask = next(batches(tok.load_tokenizer(FOLDERS["draft"]), Plan(model="draft", steps=1, batch_tokens=512), part="test"))
    with torch.inference_mode():
        torch.testing.assert_close(large(ids).logits, small(ids).logits, atol=1e-3, rtol=0)
    answer_loss(large, ids, mask, autocast=False).backward()
    gate = large.model.layers[0].mlp.gate_proj.weight.grad
    assert gate is not None
    first, copy = gate.chunk(2)
    assert not torch.allclose(first, copy, rtol=0.1)
    new = large.model.layers[1].mlp.down_proj.weight
    assert (new == 0).all()
    assert new.grad is not None
    assert new.grad.abs().max() > 0


def test_the_rate_rises_holds_and_falls_to_nothing() -> None:
    plan = Plan(model="draft", steps=1000, learning_rate=1.0, warmup_steps=100, decay_share=0.5)
    rates = [learning_rate(plan, step) for step in range(plan.steps)]
    assert rates[0] == 0.01
    assert set(rates[100:500]) == {1.0}
    assert rates[750] == pytest.approx(0.5)
    assert rates[-1] == pytest.approx(0.002)


@cache
def answers(*questions: str) -> list[str]:
    return replies([[{"role": "user", "content": question}] for question in questions])


def replies(conversations) -> list[str]:
    return greedy_replies(load_model(FOLDERS["target"], torch.bfloat16), tok.load_tokenizer(FOLDERS["target"]), conversations)


@pytest.mark.parametrize("task", corpus.TASKS, ids=lambda task: task.name)
def test_the_shipped_target_answers(task) -> None:
    held = corpus.held_out_items(task, 20, seed=1)
    wrong = [
        (item.messages[-1]["content"], reply)
        for item, reply in zip(held, replies([item.messages for item in held]), strict=True)
        if not task.verify(item, reply)
    ]
    assert len(wrong) <= 2, wrong


QUICKSTART = {
    "What is 27 + 46?": "Adding 27 + 46 from the right: 13, 7. The sum is 73.",
    "what is 27+46": "Adding 27 + 46 from the right: 13, 7. The sum is 73.",
    "What is 482 + 1913?": "Adding 482 + 1913 from the right: 5, 9, 13, 2. The sum is 2395.",
    "Sort these numbers: 31, 7, 88, 19": "7, 19, 31, 88",
    "sort 5 3 9 1": "1, 3, 5, 9",
    "Convert to JSON: name: Maria, age: 29, member: yes": '{"name": "Maria", "age": 29, "member": true}',
    "Replace river with road: The river is wide and the stone bridge is strong.": "The road is wide and the stone bridge is strong.",
    "Hello!": "Hello! How can I help you?",
}


@pytest.mark.parametrize("question", QUICKSTART)
def test_the_prompts_people_start_with_are_answered(question: str) -> None:
    together = dict(zip(QUICKSTART, answers(*QUICKSTART), strict=True))
    assert together[question] == QUICKSTART[question]


def test_training_goes_on_from_its_checkpoint_or_begins_anew_when_asked(tmp_path: Path) -> None:
    work, output = tmp_path / "work", tmp_path / "model"
    work.mkdir()
    shutil.copy(FOLDERS["draft"] / "tokenizer.json", work)
    command = ["train", "--model", "draft", "--steps", "1", "--passes", "1", "--work", str(work), "--output", str(output)]
    main(command)
    shutil.rmtree(output)
    main(command)
    assert not output.exists(), "all of its steps were done"
    main([*command, "--retrain"])
    assert (output / "model.safetensors").exists()
