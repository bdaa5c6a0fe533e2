"""How the server ends: answers have some time to; those that have not by then are told so."""

import asyncio
import socket
import threading
from collections.abc import Callable
from typing import Any

import uvicorn

#: Seconds in which it can be told.
TOLD = 5


class Server(uvicorn.Server):
    """uvicorn's, which when it is stopped waits `grace` seconds, and then calls `stop` before it cuts anybody off."""

    def __init__(self, app: Any, grace: int, stop: Callable[[], None]):
        super().__init__(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=grace + TOLD))
        self.grace, self.stop = grace, stop

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # In a thread, since it waits for the step at hand.
        late = asyncio.get_running_loop().call_later(self.grace, threading.Thread(target=self.stop, daemon=True).start)
        await super().shutdown(sockets)
        late.cancel()
