"""Connections that ask nothing: how long the reward server keeps them, and how many.

uvicorn has no time-out for a request's head, and its one limit counts every open connection, so that some dozens of
silent ones would refuse everybody else. Here a connection counts as waiting until the `Guard` admits its request:
waiting ones are closed after a time, and a new one takes the place of an old one where there are too many.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from itertools import count
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

# Set by the guard in a request's scope["state"] while the request is being worked on.
ADMITTED = "admitted"
HEAD_SECONDS = 10.0
MAX_HEAD = 2**14  # bytes
MAX_WAITING = 256
# In which order connections began to wait: the loop's clock may give many of them one time.
_TURNS = count()


class BoundedProtocol(H11Protocol):
    """HTTP/1.1 of uvicorn, with a time-out for a request's head and a limit of waiting connections."""

    head_seconds = HEAD_SECONDS
    max_waiting = MAX_WAITING

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._deadline: asyncio.TimerHandle | None = None
        self._await_head()
        self._make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel_deadline()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._await_head()

    @property
    def waiting(self) -> bool:
        """Whether no request of this connection is admitted: none has come, it is refused, or it is answered."""
        return self._without_request or not self.scope["state"].get(ADMITTED, False)

    @property
    def _without_request(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _await_head(self) -> None:
        """A whole head has to come in time, however slowly its bytes do; those of a body nobody reads do not help."""
        self._cancel_deadline()
        self.turn = next(_TURNS)
        self._deadline = self.loop.call_later(self.head_seconds, self._out_of_time)

    def _cancel_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _out_of_time(self) -> None:
        if self._without_request:
            self.transport.close()

    def _make_room(self) -> None:
        """Cut off one that waits where there are too many: the oldest of the address that has most of them."""
        connections: set[Any] = self.connections  # uvicorn types it as of any of its protocols; all are of this class
        waiting = [connection for connection in connections if connection.waiting]
        if len(waiting) <= self.max_waiting:
            return
        held = Counter(_address(connection) for connection in waiting)
        victim = min(waiting, key=lambda connection: (-held[_address(connection)], connection.turn))
        victim.transport.abort()
        # Its transport says so later; until then it must not be chosen again.
        self.connections.discard(victim)


def _address(connection: H11Protocol) -> str:
    return "" if connection.client is None else connection.client[0]


def uvicorn_settings() -> dict[str, Any]:
    """What uvicorn is to be told: this protocol, heads of bounded size, no WebSockets, no limit of its own."""
    return {"http": BoundedProtocol, "h11_max_incomplete_event_size": MAX_HEAD, "ws": "none"}
