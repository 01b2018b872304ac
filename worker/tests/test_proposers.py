"""What n-gram and suffix proposers guess from a text."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from pagoda_worker.request import Request
from pagoda_worker.scheduling.plan import StepPlan
from pagoda_worker.scheduling.sequence import Sequence
from pagoda_worker.speculation.ngram import NgramProposer, continuation
from pagoda_worker.speculation.suffix import SuffixAutomaton, SuffixProposer

arrivals = itertools.count()


def sequence(prompt: list[int], **fields: object) -> Sequence:
    request = Request(request_id=f"{next(arrivals)}", prompt_ids=prompt, **fields)  # type: ignore[arg-type]
    return Sequence(request, 0, arrival=0, accepted=0.0, limit=1000, seed=0, root=b"")


def test_what_followed_the_last_tokens_before_is_guessed():
    for proposer in (NgramProposer(), SuffixProposer()):
        assert proposer.propose(sequence([9, 1, 2, 3, 4, 5, 8, 1, 2]), 3) == [3, 4, 5]


def test_the_longest_match_counts_not_the_latest():
    text = sequence([1, 2, 3, 7, 9, 2, 3, 8, 1, 2, 3])
    assert NgramProposer().propose(text, 1) == SuffixProposer().propose(text, 1) == [7]


def test_among_equal_matches_the_latest_counts():
    text = sequence([2, 3, 7, 0, 2, 3, 8, 0, 5, 2, 3])
    assert NgramProposer().propose(text, 1) == [8]


def test_one_token_alone_is_no_match_and_neither_is_nothing():
    for proposer in (NgramProposer(), SuffixProposer()):
        assert proposer.propose(sequence([5, 1, 6, 1]), 4) == []
        assert proposer.propose(sequence([5]), 4) == []


def test_a_text_that_repeats_itself_goes_on_doing_so():
    for proposer in (NgramProposer(), SuffixProposer()):
        assert proposer.propose(sequence([4, 5, 4, 5, 4, 5]), 5) == [4, 5, 4, 5, 4]
    assert continuation([1, 2, 3], 2, 4) == [3, 3, 3, 3]


def test_who_got_no_place_in_the_step_and_is_asked_again_is_told_the_same():
    for proposer in (NgramProposer(), SuffixProposer()):
        text = sequence([9, 1, 2, 3, 4, 5, 8, 1, 2])
        assert proposer.propose(text, 3) == proposer.propose(text, 3) == [3, 4, 5]
        text.tokens.append(3)
        assert proposer.propose(text, 3) == proposer.propose(text, 3) == [4, 5, 8]


def test_guesses_follow_a_text_as_it_grows():
    for proposer in (NgramProposer(), SuffixProposer()):
        text = sequence([1, 2, 3, 4, 5, 6, 1])
        assert proposer.propose(text, 2) == []
        text.tokens.append(2)
        assert proposer.propose(text, 2) == [3, 4]
        text.tokens += [3, 9]
        assert proposer.propose(text, 2) == []


def answered(proposer: SuffixProposer, answer: list[int], **fields: object) -> None:
    text = sequence([100, 101], **fields)
    proposer.propose(text, 1)
    text.tokens += answer
    text.ended = True
    proposer.planned(StepPlan())


def test_an_earlier_answer_is_guessed_from_but_never_past_its_end():
    proposer = SuffixProposer()
    answered(proposer, [1, 2, 3, 4, 5])
    answered(proposer, [7, 8])
    assert proposer.propose(sequence([50, 2, 3]), 8) == [4, 5]


def test_answers_under_a_salt_or_without_the_prefix_cache_are_nobody_elses():
    proposer = SuffixProposer()
    answered(proposer, [1, 2, 3, 4, 5], cache_salt=b"tenant")
    answered(proposer, [1, 2, 3, 4, 5], use_prefix_cache=False)
    assert proposer.propose(sequence([50, 2, 3]), 8) == []
    answered(proposer, [1, 2, 3, 4, 5])
    assert proposer.propose(sequence([50, 2, 3], cache_salt=b"tenant"), 8) == []
    assert proposer.propose(sequence([50, 2, 3]), 8) == [4, 5]


def test_earlier_answers_are_forgotten_before_they_take_too_much_memory():
    proposer = SuffixProposer(most_remembered=60)
    for start in range(0, 500, 10):
        answered(proposer, list(range(start + 1000, start + 1010)))
        assert len(proposer._answers.tokens) <= 60 + 11
    found = [
        start for start in range(1000, 1500, 10) if proposer.propose(sequence([50, start + 5, start + 6]), 2) == [start + 7, start + 8]
    ]
    assert found
    assert min(found) > 1400
    assert proposer.propose(sequence([50, 1005, 1006]), 2) == []


@given(st.lists(st.integers(0, 3), min_size=1, max_size=40))
def test_the_longest_earlier_match_is_found_whatever_the_text(tokens: list[int]):
    automaton = SuffixAutomaton()
    automaton.extend(tokens)
    length, at = automaton.earlier()
    expected = max(n for n in range(len(tokens)) if n == 0 or any(tokens[i : i + n] == tokens[-n:] for i in range(len(tokens) - n)))
    assert length == expected
    assert tokens[at - length : at] == tokens[len(tokens) - length :]
    assert length == 0 or at < len(tokens)


@given(st.lists(st.integers(0, 3), max_size=30), st.lists(st.integers(0, 3), max_size=12))
def test_a_foreign_text_is_matched_by_its_longest_suffix(known: list[int], foreign: list[int]):
    automaton = SuffixAutomaton()
    automaton.extend(known)
    state = matched = 0
    for token in foreign:
        state, matched = automaton.step(state, matched, token)
    lengths = [
        n for n in range(len(foreign) + 1) if any(known[i : i + n] == foreign[len(foreign) - n :] for i in range(len(known) - n + 1))
    ]
    assert matched == max(lengths, default=0)
