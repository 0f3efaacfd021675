"""What can go wrong with a request, each with its HTTP status and OpenAI error type.

ServiceError              status  code
├── BadRequest            400     invalid_request
├── Unauthorized          401     invalid_api_key
├── NotFound              404     not_found
├── MethodNotAllowed      405     method_not_allowed
├── BodyTooLarge          413     body_too_large
├── DoesNotFit            422     context_length_exceeded
├── QueueFull             429     queue_full             (Retry-After)
├── RateLimited           429     rate_limited           (Retry-After)
├── EngineFailure         500     engine_failure         (x-should-retry: false)
├── Quarantined           500     quarantined            (x-should-retry: false)
├── Diverged              500     stream_diverged        (x-should-retry: false)
├── Unavailable           503     unavailable            (Retry-After)
└── DeadlinePassed        504     deadline_passed        (x-should-retry: false)

LeaseLost                 none: a worker's; what it claimed is another's
SettingError              none: refused at start, exit 2
"""

from typing import ClassVar

from training.errors import MinigptError


class SettingError(MinigptError):
    """A setting of the service is refused at start."""


class LeaseLost(MinigptError):
    """A worker could not renew its lease: what it claimed must be taken for another worker's."""


class ServiceError(MinigptError):
    """A request is refused or failed.

    Args:
        message: One line that names what, where and the remedy; never the prompt.
        param: Field of the request at fault.
        retry_after_s: Seconds after which a retry may succeed.
    """

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    code: ClassVar[str] = "error"
    should_retry: ClassVar[bool | None] = None
    """What `x-should-retry` tells a client library; `None`: the header is left out."""

    def __init__(self, message: str, *, param: str | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.retry_after_s = retry_after_s


class BadRequest(ServiceError):
    """Malformed, or a parameter that this server refuses."""

    status = 400
    type = "invalid_request_error"
    code = "invalid_request"


class Unauthorized(ServiceError):
    """No API key, or none that this server knows."""

    status = 401
    type = "invalid_request_error"
    code = "invalid_api_key"


class NotFound(ServiceError):
    """No such model, route or stream."""

    status = 404
    type = "invalid_request_error"
    code = "not_found"


class MethodNotAllowed(ServiceError):
    """The route does not know this method."""

    status = 405
    type = "invalid_request_error"
    code = "method_not_allowed"


class BodyTooLarge(ServiceError):
    """The body is over the cap."""

    status = 413
    type = "invalid_request_error"
    code = "body_too_large"


class DoesNotFit(ServiceError):
    """Prompt and `max_tokens` do not fit the context."""

    status = 422
    type = "invalid_request_error"
    code = "context_length_exceeded"


class QueueFull(ServiceError):
    """Too much is waiting already."""

    status = 429
    type = "rate_limit_error"
    code = "queue_full"


class RateLimited(ServiceError):
    """The key has used up its rate."""

    status = 429
    type = "rate_limit_error"
    code = "rate_limited"


class EngineFailure(ServiceError):
    """The engine failed with this request."""

    status = 500
    code = "engine_failure"
    should_retry = False


class Quarantined(ServiceError):
    """Too many workers died with this request."""

    status = 500
    code = "quarantined"
    should_retry = False


class Diverged(ServiceError):
    """The queue lost tokens that were delivered, and others came in their place."""

    status = 500
    code = "stream_diverged"
    should_retry = False


class Unavailable(ServiceError):
    """No queue, no worker with this model, or shutting down."""

    status = 503
    code = "unavailable"

    def __init__(self, message: str, *, param: str | None = None, retry_after_s: float | None = 1.0) -> None:
        super().__init__(message, param=param, retry_after_s=retry_after_s)


class DeadlinePassed(ServiceError):
    """The request's own deadline passed."""

    status = 504
    type = "timeout_error"
    code = "deadline_passed"
    should_retry = False
