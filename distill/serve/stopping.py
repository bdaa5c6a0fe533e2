"""How the server ends: answers have some time to; those that have not by then are told so."""

import asyncio
import socket
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import uvicorn

#: Seconds in which it can be told.
TOLD = 5


class Server(uvicorn.Server):
    """uvicorn's; `grace` seconds after a first signal, or at a second one, it calls `stop`, and then cuts off."""

    def __init__(self, app: Any, grace: int, stop: Callable[[], None]):
        super().__init__(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=grace + TOLD))
        self.grace, self.stop = grace, stop

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:
            # Not uvicorn's way, which leaves at once: whoever waits is told first.
            threading.Thread(target=self.stop, daemon=True).start()
        else:
            super().handle_exit(sig, frame)
            print(f"stopping; answers have {self.grace} s to end, and once more cuts them off", flush=True)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # In a thread, since it waits for the step at hand.
        late = asyncio.get_running_loop().call_later(self.grace, threading.Thread(target=self.stop, daemon=True).start)
        await super().shutdown(sockets)
        late.cancel()
