"""Records: what they keep of frozen dataclasses, which they are for mypy."""

import dataclasses

from pagoda_router.generation import Sender
from pagoda_router.records import record


@record(frozen=True, slots=True, kw_only=True)
class Point:
    x: int
    y: int = 2


def test_equal_records_have_equal_hashes_and_unequal_ones_differ():
    assert Point(x=1) == Point(x=1, y=2)
    assert hash(Point(x=1)) == hash(Point(x=1, y=2))
    assert len({Point(x=1), Point(x=1, y=2), Point(x=2)}) == 2


def test_a_record_is_a_dataclass_with_slots():
    assert dataclasses.replace(Point(x=1), y=5) == Point(x=1, y=5)
    assert dataclasses.asdict(Point(x=1)) == {"x": 1, "y": 2}
    assert not hasattr(Point(x=1), "__dict__")


def test_a_record_sets_its_fields_itself():
    """In place of a call of object.__setattr__ for each, which is what a frozen dataclass costs."""
    assert "__setattr__" not in vars(Sender)
    assert (
        "__setattr__" not in Sender.__init__.__code__.co_names + Sender.__init__.__code__.co_varnames + Sender.__init__.__code__.co_freevars
    )
