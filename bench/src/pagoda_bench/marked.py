"""The part of a document that a command writes: what lies between two markers, which stay. Pure."""

from pagoda_bench.errors import ResultFormatError


def replaced(text: str, begin: str, end: str, part: str, document: str) -> str:
    """`part` without its last line break. `document`: below docs/, for the error. Raises ResultFormatError for a text without markers."""
    head, found, rest = text.partition(begin)
    _, closed, tail = rest.partition(end)
    if not found or not closed:
        raise ResultFormatError(f"docs/{document} lacks the markers {begin} and {end}")
    return f"{head}{begin}\n{part}\n{end}{tail}"
