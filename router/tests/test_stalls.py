"""Which streams are given up because their worker hangs."""

from dataclasses import dataclass, field

import pytest

from pagoda_router.dispatch.stalls import StageTimeouts, StallWatch


@dataclass(eq=False)
class Stream:
    worker: str = "a@host:1"
    progress: int = 0
    is_awaited: bool = True
    given_up: list[str] = field(default_factory=list)

    def give_up(self, detail: str) -> None:
        self.given_up.append(detail)


@pytest.fixture
def clock():
    return [0.0]


@pytest.fixture
def watch(clock):
    return StallWatch(StageTimeouts(first_token_s=30, next_token_s=10), lambda: clock[0], lambda stream: None)


async def test_a_stream_has_its_own_time_for_the_first_and_for_each_next_token(watch):
    stream = Stream()
    watch.add(stream)
    watch.review(29.0)
    stream.progress = 1
    watch.review(29.5)
    watch.review(39.0)
    assert stream.given_up == []
    watch.review(39.5)
    assert stream.given_up == ["a gave no further token within 10 s: send the request again"]
    watch.review(100.0)
    assert len(stream.given_up) == 1


async def test_a_first_token_that_never_comes_is_named_as_such(watch):
    stream = Stream()
    watch.add(stream)
    watch.review(30.0)
    assert stream.given_up == ["a gave no first token within 30 s: send the request again"]


async def test_a_stream_that_nobody_reads_any_more_is_nobodys_worry(watch):
    stream = Stream()
    watch.add(stream)
    stream.is_awaited = False
    watch.review(1000.0)
    stream.is_awaited = True
    watch.review(2000.0)
    assert stream.given_up == []


async def test_what_a_cut_off_worker_brings_no_more_of_is_given_up_soon(watch):
    silent, flowing, elsewhere = Stream(), Stream(progress=3), Stream(worker="b@host:2")
    for stream in (silent, flowing, elsewhere):
        watch.add(stream)
    watch.cut_off("a@host:1")
    for second in range(1, 30):
        flowing.progress += 1
        watch.review(float(second))
        assert bool(silent.given_up) == (second >= 5)
    assert silent.given_up == ["a stopped answering: send the request again"]
    assert flowing.given_up == elsewhere.given_up == []


async def test_a_worker_that_goes_on_has_all_its_time_again(watch):
    stream = Stream()
    watch.add(stream)
    watch.cut_off("a@host:1")
    stream.progress = 1
    watch.review(4.0)
    watch.review(13.0)
    assert stream.given_up == []
