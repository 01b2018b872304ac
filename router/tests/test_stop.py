"""Stop strings: found across any cut, nothing of them leaks, nothing else is lost."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagoda_router.text.stop import StopMatcher


def streamed(pieces: list[str], stops: list[str], *, include_stop: bool = False) -> tuple[str, str | None]:
    matcher = StopMatcher(stops, include_stop=include_stop)
    out: list[str] = []
    for piece in pieces:
        out.append(matcher.feed(piece))
        if matcher.matched is not None:
            return "".join(out), matcher.matched
    return "".join(out) + matcher.end(), None


CASES = [
    # pieces, stops, text, matched
    (["hello END world"], ["END"], "hello ", "END"),
    (["hello E", "ND world"], ["END"], "hello ", "END"),
    (["hello E", "N", "D"], ["END"], "hello ", "END"),
    (["hello E", "N", "X"], ["END"], "hello ENX", None),
    (["hello EN"], ["END"], "hello EN", None),
    (["aab", "aac"], ["aabaac"], "", "aabaac"),
    (["EEN", "D"], ["END"], "E", "END"),
    (["abc"], ["abc", "b"], "a", "b"),
    (["xab"], ["b", "ab"], "x", "ab"),
    (["\n", "\nUser:"], ["\n\n", "User:"], "", "\n\n"),
    (["größ", "e"], ["ße"], "grö", "ße"),
    ([], ["x"], "", None),
]


@pytest.mark.parametrize(("pieces", "stops", "text", "matched"), CASES)
def test_text_ends_where_a_stop_string_begins(pieces: list[str], stops: list[str], text: str, matched: str | None) -> None:
    assert streamed(pieces, stops) == (text, matched)


def test_the_stop_string_is_kept_when_asked_for() -> None:
    assert streamed(["hello E", "ND world"], ["END"], include_stop=True) == ("hello END", "END")


def test_only_what_could_begin_a_stop_string_is_held_back() -> None:
    matcher = StopMatcher(["END"])
    assert matcher.feed("the END") == "the "
    matcher = StopMatcher(["END"])
    assert matcher.feed("the E") == "the "
    assert matcher.feed("agle EN") == "Eagle "
    assert matcher.end() == "EN"


few_letters = st.text(alphabet="ab", max_size=30)


@given(text=few_letters, stops=st.lists(st.text(alphabet="ab", min_size=1, max_size=4), min_size=1, max_size=3), data=st.data())
def test_the_result_does_not_depend_on_the_cuts(text: str, stops: list[str], data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert streamed(pieces, stops) == streamed(list(text), stops) == streamed([text], stops)


@given(text=few_letters, stops=st.lists(st.text(alphabet="ab", min_size=1, max_size=4), min_size=1, max_size=3))
def test_without_a_match_the_text_is_whole_and_with_one_it_holds_none(text: str, stops: list[str]) -> None:
    out, matched = streamed(list(text), stops)
    if matched is None:
        assert out == text
        assert not any(stop in text for stop in stops)
    else:
        assert text.startswith(out + matched)
        assert not any(stop in out for stop in stops)
