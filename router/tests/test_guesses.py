"""One answer and the guesses at it: what is forwarded, when drafting begins again, and when it stops."""

from hypothesis import given
from hypothesis import strategies as st

from pagoda_router.drafting.drafting import FIRST_PAUSE, PATIENCE, Fortune
from pagoda_router.drafting.guesses import MOST_BEHIND, Guesses, Stop, Verdict


def test_drafts_are_forwarded_while_they_hold():
    guesses = Guesses()
    assert guesses.drafted([1, 2]) == (0, [1, 2])
    assert guesses.drafted([3]) == (2, [3])
    assert guesses.came_true([1, 2, 3]) is Verdict.RIGHT
    assert (guesses.ahead, guesses.text) == (0, [1, 2, 3])


def test_a_draft_that_differs_begins_again_behind_the_output():
    guesses = Guesses([9])
    guesses.drafted([1, 2, 3])
    assert guesses.came_true([1, 7]) is Verdict.WRONG
    guesses.begin_again()
    assert guesses.text == [9, 1, 7]
    assert guesses.drafted([8]) == (3, [8])


def test_drafts_that_come_after_the_answer_are_judged_and_only_the_rest_is_forwarded():
    guesses = Guesses()
    assert guesses.came_true([1, 2]) is Verdict.RIGHT
    assert guesses.drafted([1, 2, 3, 4]) == (2, [3, 4])
    assert guesses.judge() is Verdict.RIGHT
    assert guesses.came_true([3, 4, 5]) is Verdict.RIGHT
    assert guesses.drafted([6]) == (5, [])
    assert guesses.judge() is Verdict.WRONG


def test_a_drafting_worker_that_lags_far_behind_leaves_out_what_is_known():
    guesses = Guesses()
    guesses.drafted([0])
    verdicts = [guesses.came_true([0, 0]) for _ in range(MOST_BEHIND)]
    assert Verdict.BEHIND in verdicts
    guesses.begin_again()
    assert guesses.text == [0] * 2 * MOST_BEHIND


def test_drafts_that_do_not_hold_are_given_up():
    guesses, verdicts = Guesses(), list[Verdict | Stop]()
    for _ in range(20):
        guesses.begin_again()
        guesses.drafted([1])
        verdicts.append(guesses.came_true([2, 2]))
    assert verdicts[:3] == [Verdict.WRONG] * 3
    assert Stop.ACCEPTANCE in verdicts


def test_drafts_that_hold_and_save_no_step_are_given_up():
    guesses, verdicts = Guesses(), list[Verdict | Stop]()
    for at in range(60):
        verdicts.append(guesses.came_true([at]))
        guesses.drafted([at])
    assert verdicts[:10] == [Verdict.RIGHT] * 10
    assert Stop.LATE in verdicts


@given(st.lists(st.tuples(st.booleans(), st.lists(st.integers(0, 1), min_size=1, max_size=3)), max_size=40))
def test_what_is_forwarded_continues_the_output_and_what_was_forwarded(events: list[tuple[bool, list[int]]]):
    """So that the verifying worker never finds a gap, in whatever order the two workers are heard."""
    guesses, told_to = Guesses(), 0
    for is_output, ids in events:
        if is_output:
            verdict = guesses.came_true(ids)
        else:
            position, news = guesses.drafted(ids)
            verdict = guesses.judge()
            if verdict is Verdict.RIGHT and news:
                assert position <= max(told_to, len(guesses.output))
                assert position + len(news) == guesses.drafted_to
                told_to = position + len(news)
        if verdict is Verdict.RIGHT:
            assert guesses.text[: len(guesses.output)] == guesses.output[: guesses.drafted_to]
        else:
            guesses.begin_again()
            told_to = len(guesses.output)


def test_a_model_whose_requests_gave_up_does_without_for_a_while_and_tries_again():
    fortune = Fortune()
    for _ in range(PATIENCE):
        assert fortune.may_begin()
        fortune.failed()
    assert [fortune.may_begin() for _ in range(FIRST_PAUSE + 1)] == [False] * FIRST_PAUSE + [True]
    fortune.failed()
    assert [fortune.may_begin() for _ in range(2 * FIRST_PAUSE + 1)] == [False] * 2 * FIRST_PAUSE + [True]
    fortune.paid()
    fortune.failed()
    assert fortune.may_begin(), "one failure is none"
