"""What a worker says of its settings, by the manifest's fields that `render` made them of: nobody who wrote those knows the variables.

Pure; troubles.py calls it last, on what people read.
"""

import re

from pagoda_operator.manifest.rules.table import FIELDS as MANIFEST_FIELDS

FIELDS = {
    "PAGODA_ENGINE": "spec.engine",
    "PAGODA_ADAPTERS": "spec.adapters",
    "PAGODA_MODEL_SOURCE": "spec.model.source",
    "PAGODA_MODEL_REVISION": "spec.model.revision",
    "PAGODA_MODEL_ENDPOINT": "spec.model.endpoint",
    "PAGODA_HF_TOKEN": "spec.model.tokenSecretRef",
    "PAGODA_DRAFT_SOURCE": "spec.engine.speculative.draft",
    "PAGODA_CPUS": "spec.resources.cpu",
    "PAGODA_MEMORY_BYTES": "spec.resources.memory",
}
"""Of a variant that has its own, a field of the same name below it."""
_ENGINE_FIELD = re.compile(r"(?<=pagoda-worker: )[a-z]\w*(?:\.\w+)*(?= is )")
"""With which the engine begins what it says of a setting that it read, and that this model or device cannot have."""
_VARIABLE = re.compile(rf"\b(?:{'|'.join(FIELDS)})\b")


def in_words_of_the_manifest(told: str) -> str:
    told = _VARIABLE.sub(lambda found: FIELDS[found[0]], told)
    return _ENGINE_FIELD.sub(lambda found: path if (path := f"spec.engine.{found[0]}") in MANIFEST_FIELDS else found[0], told)
