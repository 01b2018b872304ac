"""Hours and months of usage: both of UTC, so that every router and every bill agrees. Pure."""

from datetime import UTC, datetime
from typing import NamedTuple

HOUR_S = 3600


class Month(NamedTuple):
    name: str
    """2026-11."""
    start_unix_s: int
    end_unix_s: int
    """Of the next one's beginning."""

    def holds(self, unix_s: float) -> bool:
        return self.start_unix_s <= unix_s < self.end_unix_s


def month_of(unix_s: float) -> Month:
    start = datetime.fromtimestamp(unix_s, UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    end = start.replace(year=start.year + start.month // 12, month=start.month % 12 + 1)
    return Month(start.strftime("%Y-%m"), int(start.timestamp()), int(end.timestamp()))


def hour_of(unix_s: float) -> int:
    whole = int(unix_s)
    return whole - whole % HOUR_S


def day_of(unix_s: int) -> str:
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%d")
