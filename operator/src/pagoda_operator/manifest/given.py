"""What was written of a manifest's section, as arguments of its dataclass. Called by the sections' modules beside this one."""

from collections.abc import Mapping
from typing import Any


def given(written: Mapping[str, Any], **attributes: str) -> dict[str, Any]:
    """{attribute: value} for the manifest's names that were written; the others take the dataclass's defaults."""
    return {attribute: written[name] for attribute, name in attributes.items() if name in written}
