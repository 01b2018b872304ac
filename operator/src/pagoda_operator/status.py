"""What to tell people about one InferenceModel: conditions with a closed set of reasons, counts, endpoint. Pure.

Called after each round's apply, with the world as it was observed; the caller writes the result to the object.
"""

from collections.abc import Mapping
from typing import Any

from pagoda_operator.observed import Observed
from pagoda_operator.plan import Plan


def model_status(document: Mapping[str, Any], plan: Plan, observed: Observed) -> dict[str, Any]:
    """The whole `status` of one object that was in `plan`'s documents. Its present `status`, if any, keeps transition times stable.

    {observedGeneration, ready: "True" | first false reason, replicas, readyReplicas, endpoint, servedNames, progress, conditions}
    """
    raise NotImplementedError
