"""
OperatorError
└── ClusterError             everything that a cluster can do to us
    ├── ApiError             the API server answered with a failure: carries code, reason and its sentence
    │   ├── NotFound         404
    │   ├── Conflict         409: somebody else's field, another uid, or it exists already
    │   ├── Gone             410: the resource version is too old; list again
    │   └── Refused          400, 403, 405, 413, 422: this request will not succeed as it is (quota, admission, rights, validation)
    ├── Unavailable          no answer, 401, 429 or 5xx after all retries; the next attempt may succeed
    │   └── Silence          an open watch said nothing for long: dead, or of a resource that nobody touches
    └── LeaseLost            another replica may be writing: nothing may be written any more
"""

import re
from collections.abc import Mapping
from typing import Any

from pagoda_operator.errors import OperatorError


class ClusterError(OperatorError):
    """Base of what the API server or the way to it can cause."""


CONFLICT_WITH = re.compile(r'conflict with "([^"]+)"( with subresource "[^"]*")?( using )?')
"""NOTE: only managers of operation Update are told with "using API_VERSION"; the Status object has no field for it."""


class ApiError(ClusterError):
    def __init__(self, code: int, reason: str, message: str, causes: tuple[str, ...] = ()) -> None:
        self.code = code
        self.reason = reason
        self.message = message
        self.causes = causes
        super().__init__(f"{code} {reason}: {message}")


class NotFound(ApiError):
    pass


class Conflict(ApiError):
    @property
    def managers(self) -> list[tuple[str, bool]]:
        """Who else owns the fields of an apply, and whether by an edit (True) or by an apply of its own (False)."""
        found = (CONFLICT_WITH.search(cause) for cause in self.causes)
        return [(match[1], match[3] is not None) for match in found if match]


class Gone(ApiError):
    pass


class Refused(ApiError):
    pass


class Unavailable(ClusterError):
    pass


class Silence(Unavailable):
    """An open watch said nothing for long."""


class LeaseLost(ClusterError):
    pass


def api_error(code: int, status: Mapping[str, Any]) -> ApiError:
    """From the Status object that the API server answers with."""
    kinds: dict[int, type[ApiError]] = {404: NotFound, 409: Conflict, 410: Gone}
    kind = kinds.get(code, Refused)
    details = status.get("details")
    causes = (details.get("causes") or ()) if isinstance(details, dict) else ()
    told = tuple(str(cause.get("message")) for cause in causes)
    return kind(code, str(status.get("reason") or ""), str(status.get("message") or "the API server gave no reason"), told)
