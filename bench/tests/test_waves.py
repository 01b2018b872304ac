"""Whether waves pay: the search's own rules, and that the router's switch is as its result says."""

from dataclasses import replace

from pagoda_bench.results import FOLDER, read
from pagoda_bench.waves.search import AIM, Setting, best_of, run, settings_of
from pagoda_router.settings import RouterSettings


def test_both_arms_are_searched_alike():
    off, on = (list(settings_of("h100-8b", waves=waves)) for waves in (False, True))
    assert [replace(setting, waves=True) for setting in off] == on
    assert len({*off}) == len(off) > 8


def test_the_fleet_is_saturated_and_nobody_is_refused():
    trial = run(Setting(profile="0.45b", waves=True, max_running=8, long_prefill_tokens=1024), 1, 100.0)
    assert trial.tokens_per_s > 0
    assert trial.waited > 50


def test_the_switch_is_as_the_search_says():
    default = next(field.default for field in RouterSettings.__dataclass_fields__.values() if field.name == "waves")
    assert default is (best_of(read(FOLDER / "waves.json").rows) >= AIM)
