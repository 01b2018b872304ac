"""`record`: a dataclass that is frozen for mypy, and built as fast as one that is not. For what is made several times a request.

A frozen dataclass sets each field by a call of `object.__setattr__`, which takes seven times as long as setting it. Knows nothing of what
it holds.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dataclasses import dataclass as record
else:
    from dataclasses import dataclass

    def record(cls=None, /, *, frozen=False, eq=True, **options):
        """As `dataclass`. Equal ones still have equal hashes; that nobody writes to one is held to by mypy alone."""

        def made(cls):
            return dataclass(cls, eq=eq, unsafe_hash=frozen and eq, **options)

        return made if cls is None else made(cls)


__all__ = ["record"]
