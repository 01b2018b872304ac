"""Who may be awake: a table of moves, and whole histories in which everybody gets a turn and the budget is never passed."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagoda_worker.front.residency import PATIENCE_S, Hold, Release, ResidentView, Sleep, Wake, next_move


def model(name: str, **facts: object) -> ResidentView:
    usual = {"needs_bytes": 10, "awake": False, "running": 0, "waits_since_s": None, "used_at_s": 0.0}
    return ResidentView(name=name, **{**usual, **facts})  # type: ignore[arg-type]


MOVES = [
    ("nobody is asked", [model("a"), model("b", awake=True)], None),
    ("there is room", [model("a", waits_since_s=1.0), model("b", awake=True)], Wake("a")),
    (
        "the least recently used idle one goes",
        [model("a", waits_since_s=1.0), model("b", awake=True, used_at_s=5.0), model("c", awake=True, used_at_s=4.0)],
        Sleep("c"),
    ),
    (
        "a busy one stays, however long ago it was asked",
        [model("a", waits_since_s=9.0), model("b", awake=True, used_at_s=1.0, running=1), model("c", awake=True, used_at_s=4.0)],
        Sleep("c"),
    ),
    (
        "all are busy, and the asked one has just come",
        [model("a", waits_since_s=9.0), model("b", awake=True, running=1), model("c", awake=True, running=2)],
        None,
    ),
    (
        "patience is over: the one used longest ago takes nothing new",
        [model("a", waits_since_s=1.0), model("b", awake=True, running=1, used_at_s=9.0), model("c", awake=True, running=2, used_at_s=8.0)],
        Hold("c"),
    ),
    (
        "one that is held already is enough",
        [model("a", waits_since_s=1.0), model("b", awake=True, running=1), model("c", awake=True, running=2, held=True)],
        None,
    ),
    (
        "a held one sleeps though requests of its own wait by now",
        [model("a", waits_since_s=1.0), model("b", awake=True, running=1), model("c", awake=True, held=True, waits_since_s=8.0)],
        Sleep("c"),
    ),
    ("whom nobody needs gone is let on", [model("a"), model("c", awake=True, held=True, running=1)], Release("c")),
    (
        "one whose own request came first is let on",
        [model("a", waits_since_s=9.0), model("b", awake=True, running=1), model("c", awake=True, held=True, waits_since_s=8.0)],
        Release("c"),
    ),
    (
        "the first come is first served",
        [model("a", waits_since_s=3.0), model("b", waits_since_s=2.0), model("c", awake=True, running=1)],
        Wake("b"),
    ),
    (
        "nobody smaller overtakes a large one",
        [model("large", needs_bytes=20, waits_since_s=8.5), model("small", waits_since_s=8.6), model("c", awake=True, running=1)],
        None,
    ),
]


@pytest.mark.parametrize(("models", "move"), [row[1:] for row in MOVES], ids=[row[0] for row in MOVES])
def test_the_move_is(models: list[ResidentView], move: object):
    for order in (models, models[::-1]):
        assert next_move(order, 20, 10.0) == move


NAMES = "abcd"


@given(
    st.lists(st.tuples(st.sampled_from(NAMES), st.integers(1, 9)), min_size=1, max_size=25),
    st.lists(st.integers(1, 10), min_size=4, max_size=4),
    st.integers(10, 25),
)
def test_every_request_has_its_turn_within_the_budget_and_no_busy_model_sleeps(
    arrivals: list[tuple[str, int]], sizes: list[int], budget: int
):
    """A second for each arrival; a request runs for the seconds that it says."""
    models = {name: model(name, needs_bytes=size) for name, size in zip(NAMES, sizes, strict=True)}
    queued: dict[str, list[int]] = {name: [] for name in NAMES}
    runs: dict[str, list[int]] = {name: [] for name in NAMES}
    served, now, todo = 0, 0.0, list(arrivals)
    while served < len(arrivals):
        assert now < 2 + len(arrivals) * (10 + PATIENCE_S), "somebody waits for ever"
        if todo:
            name, seconds = todo.pop(0)
            view = models[name]
            models[name] = replace(view, used_at_s=now)
            if view.awake and not view.held:
                runs[name].append(seconds)
            else:
                queued[name].append(seconds)
                models[name] = replace(models[name], waits_since_s=now if view.waits_since_s is None else view.waits_since_s)
        for name in NAMES:
            models[name] = replace(models[name], running=len(runs[name]))
        while (move := next_move(list(models.values()), budget, now)) is not None:
            view = models[move.name]
            if isinstance(move, Wake):
                assert not view.awake
                runs[move.name], queued[move.name] = queued[move.name], []
                models[move.name] = replace(view, awake=True, waits_since_s=None, running=len(runs[move.name]))
            elif isinstance(move, Sleep):
                assert view.awake
                assert not runs[move.name], "a busy model went to sleep"
                models[move.name] = replace(view, awake=False, held=False)
            elif isinstance(move, Release):
                assert view.held
                runs[move.name] += queued[move.name]
                queued[move.name] = []
                models[move.name] = replace(view, held=False, waits_since_s=None, running=len(runs[move.name]))
            else:
                assert not view.held
                models[move.name] = replace(view, held=True)
            assert sum(each.needs_bytes for each in models.values() if each.awake) <= budget
        now += 1.0
        for name in NAMES:
            ended = [left for left in runs[name] if left <= 1]
            runs[name] = [left - 1 for left in runs[name] if left > 1]
            served += len(ended)
            if ended:
                models[name] = replace(models[name], used_at_s=now)
