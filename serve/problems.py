"""What a server answers instead of a stream: a status, a code, and one line."""

from collections.abc import Mapping


class Problem(Exception):  # noqa: N818  (it is an answer, not a fault)
    """An HTTP answer in OpenAI's form of an error.

    Args:
        status: of HTTP.
        code: for programs.
        message: for people; shows no internals.
        param: the field of the request that is wrong.
        retry_after: seconds after which the same request may succeed.
        headers: beside the content's and `Retry-After`.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        retry_after: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message
        self.param, self.retry_after = param, retry_after
        self._headers = headers or {}

    @property
    def body(self) -> dict:
        """As JSON."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> dict[str, str]:
        """Beside the content's."""
        wait = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        return wait | dict(self._headers)


def check_limit(param: str, what: str, given: int, allowed: int) -> None:
    """Raises Problem where a request's field `param` holds more of something than is allowed."""
    if given > allowed:
        message = f"{param}: {given} {what}; allowed: up to {allowed}"
        raise Problem(400, "limit_exceeded", message, param=param)
