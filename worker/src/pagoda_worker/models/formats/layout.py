"""What a reader of a quantized layout offers, and how checkpoints name the modules that are quantized or not."""

import re
from collections.abc import Iterable
from typing import Protocol

from pagoda_worker.errors import ModelError
from pagoda_worker.models.formats.stored import ReadWeight, StoredModule

PLACE = "config.json: quantization_config"


class Layout(Protocol):
    """One quantization_config: pure, but for the tensors that a module reads."""

    @property
    def title(self) -> str:
        """In words, for logs: `GPTQ, 4 bits`."""
        ...

    @property
    def used(self) -> frozenset[str]:
        """Parts of a module that it reads."""
        ...

    @property
    def unread(self) -> frozenset[str]:
        """Parts that a module may have and the engine does not need: it scales activations by what they are."""
        ...

    @property
    def kept(self) -> bool:
        """Weights are held as they are stored; else they may become plain, and need as much memory."""
        ...

    def quantizes(self, name: str, parts: frozenset[str]) -> bool:
        """`parts`: what the files hold of module `name`."""
        ...

    def read(self, module: StoredModule) -> ReadWeight:
        """Raises ModelError that names file and tensor."""
        ...


def has_in_name(names: Iterable[str], module: str) -> bool:
    """As modules_to_not_convert of transformers: `lm_head`, `model.layers.0.mlp`."""
    return any(each in module for each in names)


def is_targeted(targets: Iterable[str], module: str) -> bool:
    """As compressed-tensors' targets and ignore: a name, `re:` and a pattern from the name's beginning, or the class, which is Linear for
    all that we ask about. Raises ModelError for a pattern that is none."""
    for target in targets:
        if target.startswith("re:"):
            try:
                if re.match(target.removeprefix("re:"), module):
                    return True
            except re.error as error:
                raise ModelError(f"{PLACE}: {target!r} is no pattern: {error}") from None
        elif target in ("Linear", module):
            return True
    return False
