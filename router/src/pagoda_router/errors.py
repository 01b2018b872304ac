"""
RouterError
├── BadRequest              400   the client's fault; names the field
│   └── ContextTooLong      400   code context_length_exceeded
├── Unauthorized            401
├── ForeignHost             403   a name that is not this machine's, on a router without keys
├── Forbidden               403   the key is known and may not do this
├── ModelNotFound           404
├── NotFound                404   no such route
├── MethodNotAllowed        405
├── RequestTimeout          408   the body came too slowly
├── BodyTooLarge            413
├── Overloaded              429   carries retry_after_s
│   └── DeadlineInfeasible  429   what waits ahead, or its own first token, takes longer than its deadline allows
├── RateLimited             429   the key's own limit; carries retry_after_s
│   └── LargerThanLimit     429   no minute is enough for it: not worth a retry
├── QuotaSpent              429   the key's budget of this month is spent, or too small for this request: not worth a retry
├── NoWorker                503   carries retry_after_s
│   ├── ColdStart           503   waited for a worker to come, or too many do already
│   ├── ModelUnavailable    503   no worker will come until somebody changes something: not worth a retry
│   ├── RetryBudgetSpent    503   its worker was lost, and so many were that this one is not tried again
│   └── Starting            503   the router has not read its models yet
├── KeysUnavailable         503   keys are kept nowhere, or their database does not answer: an administrator's errand
├── UsageUnavailable        503   the same of usage
├── UpstreamFailed          502   a worker or its engine was lost under this request
│   ├── EnginesDied         502   it ran in two engines that died: not worth a retry
│   ├── LacksEndpoint       502   another server's worker has no such path: set up wrongly, or not made for this request
│   ├── FirstTokenTimeout   504   the worker that had it said nothing for too long
│   └── TokenTimeout        504   the same in the middle of an answer
└── DeadlineExceeded        504   the request's own deadline passed

Mapped once, in openai/errors.py, to {"error": {"message", "type", "param", "code"}} and the status above.
ConfigError stops the process with one line. No client is told of DatabaseError and SharedLimitsAway: whoever hears of one goes on by what
is known.
"""


class ConfigError(Exception):
    pass


class DatabaseError(Exception):
    """The database did not answer, or refused: what was under way may be committed or not."""


class SharedLimitsAway(Exception):
    """Redis did not answer in time."""


class RouterError(Exception):
    status = 500
    type = "server_error"
    code: str | None = None
    worth_a_retry = True
    """The same request may succeed later, by waiting alone."""

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code if code is not None else self.__class__.code
        self.retry_after_s = retry_after_s


class BadRequest(RouterError):
    status = 400
    type = "invalid_request_error"


class ContextTooLong(BadRequest):
    code = "context_length_exceeded"


class Unauthorized(RouterError):
    status = 401
    type = "authentication_error"
    code = "invalid_api_key"


class ForeignHost(RouterError):
    status = 403
    type = "permission_error"
    code = "foreign_host"


class Forbidden(RouterError):
    status = 403
    type = "permission_error"
    code = "forbidden"


class ModelNotFound(RouterError):
    status = 404
    type = "invalid_request_error"
    code = "model_not_found"


class NotFound(RouterError):
    status = 404
    type = "invalid_request_error"
    code = "not_found"


class MethodNotAllowed(RouterError):
    status = 405
    type = "invalid_request_error"
    code = "method_not_allowed"

    def __init__(self, message: str, *, allow: str) -> None:
        super().__init__(message)
        self.allow = allow


class RequestTimeout(RouterError):
    status = 408
    type = "invalid_request_error"
    code = "request_timeout"


class BodyTooLarge(RouterError):
    status = 413
    type = "invalid_request_error"
    code = "body_too_large"


class Overloaded(RouterError):
    status = 429
    type = "rate_limit_error"
    code = "overloaded"


class DeadlineInfeasible(Overloaded):
    """A retry would begin after the deadline that the client gave: what must change is the deadline, or the load."""

    code = "deadline_infeasible"
    worth_a_retry = False


class RateLimited(RouterError):
    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"


class LargerThanLimit(RateLimited):
    worth_a_retry = False


class QuotaSpent(RouterError):
    status = 429
    type = "insufficient_quota"
    code = "insufficient_quota"
    worth_a_retry = False


class NoWorker(RouterError):
    status = 503
    type = "server_error"
    code = "no_worker"


class ColdStart(NoWorker):
    code = "cold_start"


class ModelUnavailable(NoWorker):
    code = "model_unavailable"
    worth_a_retry = False


class Starting(NoWorker):
    code = "router_starting"


class RetryBudgetSpent(NoWorker):
    code = "retry_budget_spent"


class KeysUnavailable(RouterError):
    status = 503
    type = "server_error"
    code = "keys_unavailable"


class UsageUnavailable(RouterError):
    status = 503
    type = "server_error"
    code = "usage_unavailable"


class UpstreamFailed(RouterError):
    status = 502
    type = "server_error"
    code = "worker_lost"


class EnginesDied(UpstreamFailed):
    code = "engines_died"
    worth_a_retry = False


class LacksEndpoint(UpstreamFailed):
    worth_a_retry = False


class FirstTokenTimeout(UpstreamFailed):
    status = 504
    code = "first_token_timeout"


class TokenTimeout(UpstreamFailed):
    status = 504
    code = "token_timeout"


class DeadlineExceeded(RouterError):
    status = 504
    type = "server_error"
    code = "deadline_exceeded"
