"""Before every call but those of health: the caller has a key, reflection's too."""

from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import grpc.aio
from grpc.aio import ServicerContext  # pyright: ignore[reportAttributeAccessIssue]
from grpc_health.v1 import health

from serve.keys import Keys
from serve.problems import Problem

_OPEN = f"/{health.SERVICE_NAME}/"


class Guard(grpc.aio.ServerInterceptor):
    """Lets in who has a key.

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
            admit(self._keys, handler_call_details.invocation_metadata)
        except Problem as problem:
            return self._refusal(problem)
        return await continuation(handler_call_details)

    def _refusal(self, problem: Problem) -> grpc.RpcMethodHandler:
        async def refuse(_: Any, context: ServicerContext) -> None:
            await self._refuse(problem, context)

        return grpc.stream_stream_rpc_method_handler(refuse)


def admit(keys: Keys, metadata: Any) -> str:
    """The owner of the key in a call's metadata. Raises Problem where there is none that is let in."""
    given = dict(metadata or ()).get("authorization")
    return keys.admit(None if given is None else str(given))
