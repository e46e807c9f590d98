"""Before every call but those of health: the caller has a key, reflection's too."""

from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any

import grpc
import grpc.aio
from grpc.aio import ServicerContext  # pyright: ignore[reportAttributeAccessIssue]
from grpc_health.v1 import health

from serve.keys import Keys
from serve.problems import Problem

OWNER: ContextVar[str] = ContextVar("owner")
"""Of the running call's key: each call is a task, and so a context, of its own."""

_OPEN = f"/{health.SERVICE_NAME}/"


class Guard(grpc.aio.ServerInterceptor):
    """Lets in who has a key, as `OWNER`.

    Args:
        refuse: ends a call with a problem.
    """

    def __init__(self, keys: Keys, refuse: Callable[[Problem, ServicerContext], Awaitable[None]]) -> None:
        self._keys, self._refuse = keys, refuse

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: Any
    ) -> Any:
        """The call's handler, or one of any kind that refuses it."""
        if handler_call_details.method.startswith(_OPEN):
            return await continuation(handler_call_details)
        try:
            OWNER.set(self._admit(handler_call_details.invocation_metadata))
        except Problem as problem:
            return self._refusal(problem)
        return await continuation(handler_call_details)

    def _admit(self, metadata: Any) -> str:
        given = dict(metadata or ()).get("authorization")
        return self._keys.admit(None if given is None else str(given))

    def _refusal(self, problem: Problem) -> grpc.RpcMethodHandler:
        async def refuse(_: Any, context: ServicerContext) -> None:
            await self._refuse(problem, context)

        return grpc.stream_stream_rpc_method_handler(refuse)
