"""Words that are remembered: all of a text, bounded, and of one sender only."""

from hypothesis import given
from hypothesis import strategies as st

from pagoda_router.text.chunks import chunks_of
from pagoda_router.text.words import KnownWords, Vocabularies, are_worth_it, head_and_words, words_of

texts = st.text(alphabet=st.sampled_from("ab7 .\n🙂"), max_size=300)


@given(texts)
def test_head_and_words_are_all_of_the_text(text: str) -> None:
    head, words = head_and_words(text)
    assert " ".join([head, *words]) == text


@given(st.text(alphabet=st.sampled_from("ab7 .\n"), min_size=2000, max_size=6000))
def test_a_chunk_that_follows_another_is_all_words(text: str) -> None:
    for chunk in list(chunks_of(text))[1:]:
        assert "".join(f" {word}" for word in words_of(chunk)) == chunk


def test_words_end_where_a_text_may_be_cut_and_nowhere_else() -> None:
    assert head_and_words("It is. The end, is it? Yes  no") == ("It", ["is. The", "end, is", "it? Yes", " no"])


def test_prose_is_worth_taking_apart_and_code_is_not() -> None:
    prose, code = "How many ships are in the harbour today, and how many of them are ours?", "def f(x):\n    return [\n        x,\n    ]\n"
    assert are_worth_it(head_and_words(prose)[1], prose)
    assert not are_worth_it(head_and_words(code)[1], code)


def test_what_is_not_met_again_is_forgotten_and_the_rest_stays() -> None:
    known = KnownWords(most=10)
    for at in range(100):
        known.learn([f"word {at}"], [[at]])
        known.learn(["often"], [[7, 8]]) if known.find(["often"]) == [None] else None
    assert len(known) <= 20
    assert known.find(["often", "word 99", "word 1"])[2] is None
    assert None not in known.find(["often", "word 99"])


def test_a_long_word_is_tokenized_each_time() -> None:
    known = KnownWords()
    assert set(known.learn(["x" * 100], [[1, 2]])) == {"x" * 100}
    assert known.find(["x" * 100]) == [None]


def test_the_sender_that_was_away_longest_is_forgotten() -> None:
    vocabularies = Vocabularies(most=2)
    for sender in ("a", "b"):
        vocabularies.of(sender).learn(["w"], [[1]])
    vocabularies.of("a")
    vocabularies.of("c")
    assert [len(vocabularies.of(sender)) for sender in ("a", "b")] == [1, 0]
