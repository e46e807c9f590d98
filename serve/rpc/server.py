"""A hub behind gRPC, with health, which is open, and reflection, which is not."""

import asyncio
import contextlib

import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from models.errors import SettingsError
from serve.hub import Hub
from serve.rpc import messages
from serve.rpc.guard import Guard
from serve.rpc.service import Service

_OPTIONS = {
    "grpc.so_reuseport": 0,  # a second server on the port would take half of the calls
    "grpc.http2.bdp_probe": 0,  # windows that grow would hide that a reader has stopped
    "grpc.http2.max_pings_without_data": 0,
    "grpc.keepalive_time_ms": 20_000,  # who is gone without a farewell is found out
    "grpc.keepalive_timeout_ms": 20_000,
}


class RpcServer:
    """Made and used on the hub's loop."""

    def __init__(self, hub: Hub, address: str) -> None:
        """Listen on `address`, HOST:PORT. Raises SettingsError where that is not to be had."""
        self._hub = hub
        options = _OPTIONS | {"grpc.max_receive_message_length": hub.config.limits.body_bytes}
        service = Service(hub)
        self._server = grpc.aio.server(
            interceptors=(Guard(hub.config.keys, service.refuse), *hub.config.observer.interceptors),
            options=list(options.items()),
        )
        self._server.add_generic_rpc_handlers((service.handlers,))
        self._health = health.aio.HealthServicer()  # pyright: ignore[reportAttributeAccessIssue]
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = (messages.SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)
        try:
            self.port = self._server.add_insecure_port(address)
        except RuntimeError:
            raise SettingsError(f"grpc_port: {address} is not to be had; allowed: a free port") from None

    async def start(self) -> None:
        """Answer."""
        await self._tell_health()
        await self._server.start()
        self._following = asyncio.create_task(self._follow())

    async def stop(self, grace: float) -> None:
        """Let go of calls that have not ended in so many seconds."""
        self._following.cancel()
        await self._server.stop(grace)

    async def _follow(self) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            while True:
                await self._hub.turned.wait()
                self._hub.turned.clear()
                await self._tell_health()

    async def _tell_health(self) -> None:
        response = health_pb2.HealthCheckResponse
        status = response.SERVING if self._hub.ready else response.NOT_SERVING
        for service in ("", messages.SERVICE):
            await self._health.set(service, status)
