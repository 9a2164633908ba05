"""Who may ask the reward server, and for how much at once: all of it is settled before a body is read."""

from __future__ import annotations

import asyncio
import hmac
from contextlib import suppress
from dataclasses import dataclass

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from src.rewards.wire import CONTENT_TYPE, HEALTH_PATH
from src.serve_rewards.connections import ADMITTED


class BodyTooSlow(Exception):
    """A body stopped coming, or trickled."""


@dataclass(frozen=True, slots=True)
class Admission:
    """What the server takes in at once, and how long it waits.

    max_bytes: of one body. at_once: requests in work. bodies_at_once: bodies of `max_bytes` that may be held together.
    silence: seconds without a byte of a body. rate: bytes a second that a body comes with at least. linger: seconds
    that a refused body is still read, so that whoever is sending it sees the refusal. patience: seconds that a
    request whose client has gone keeps its place, while a worker may be at it.
    """

    max_bytes: int
    at_once: int = 64
    bodies_at_once: int = 4
    silence: float = 20.0
    rate: float = 2.0**18
    linger: float = 2.0
    patience: float = 120.0


class Guard:
    """ASGI middleware: refuses a request by its head, reads the body of one it admits, and keeps count.

    Without the token nobody gets past it but to the health check, and nothing that comes without it takes a place
    from a request that has it. With `token` None all may ask.
    """

    def __init__(self, app: ASGIApp, token: str | None, admission: Admission) -> None:
        self.app, self.admission = app, admission
        self.expected = None if token is None else f"Bearer {token}".encode()
        self.working = 0  # requests
        self.held = 0  # bytes of their bodies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or (scope["type"] == "http" and scope["path"] == HEALTH_PATH):
            await self.app(scope, receive, send)
            return
        refusal = self._refusal(scope)
        if refusal is not None:
            await self._refuse(refusal, scope, receive, send)
        elif scope["method"] == "POST":
            await self._admit(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    def _refusal(self, scope: Scope) -> JSONResponse | None:
        """What is wrong with a request as far as its head tells; None for nothing."""
        headers = dict(scope["headers"])
        # Compared in constant time: how long it takes tells nothing about how much of a guess was right.
        if self.expected is not None and not hmac.compare_digest(headers.get(b"authorization", b""), self.expected):
            return _said(401, "no valid token", {"WWW-Authenticate": "Bearer"})
        if scope["type"] != "http":
            return _said(400, "HTTP only")
        if scope["method"] != "POST":
            return None
        if headers.get(b"content-type") != CONTENT_TYPE.encode():
            return _said(415, f"expected Content-Type: {CONTENT_TYPE}")
        length = _length(scope)
        if length is None:
            return _said(411, "expected a Content-Length: this server takes no body of unknown size")
        if length == 0:
            return _said(400, "the body is empty")
        if length > self.admission.max_bytes:
            return _said(413, f"{length} bytes; this server takes max_bytes={self.admission.max_bytes}")
        full = self.working >= self.admission.at_once
        if full or self.held + length > self.admission.bodies_at_once * self.admission.max_bytes:
            return _said(503, "too many requests at once; try again", {"Retry-After": "1"})
        return None

    async def _refuse(self, refusal: JSONResponse, scope: Scope, receive: Receive, send: Send) -> None:
        """The whole answer at once; then the body, unread, for a while: closing on its sender would lose the answer."""
        refusal.headers["Connection"] = "close"
        if scope["type"] != "http" or _length(scope) == 0:
            await refusal(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": refusal.status_code, "headers": refusal.raw_headers})
        await send({"type": "http.response.body", "body": refusal.body, "more_body": True})
        with suppress(TimeoutError):
            async with asyncio.timeout(self.admission.linger):
                while (await receive()).get("more_body"):
                    pass
        await send({"type": "http.response.body", "body": b""})

    async def _admit(self, scope: Scope, receive: Receive, send: Send) -> None:
        length = _length(scope) or 0
        state = scope.setdefault("state", {})
        self.working += 1
        self.held += length
        state[ADMITTED] = True
        late = False
        try:
            body = await self._body(receive, length)
            if body is not None:
                await self._answer(body, scope, receive, send)
        except BodyTooSlow:
            late = True
        finally:
            self.working -= 1
            self.held -= length
            state[ADMITTED] = False
        if late:
            await self._refuse(_said(408, "the body did not come in time"), scope, receive, send)

    async def _body(self, receive: Receive, length: int) -> bytes | None:
        """The whole body; None where its client closes. Raises BodyTooSlow where it stops or trickles."""
        try:
            return await self._whole(receive, length)
        except TimeoutError as error:
            raise BodyTooSlow from error

    async def _whole(self, receive: Receive, length: int) -> bytes | None:
        body = bytearray()
        async with asyncio.timeout(self.admission.silence + length / self.admission.rate):
            while True:
                async with asyncio.timeout(self.admission.silence):
                    message = await receive()
                if message["type"] == "http.disconnect":
                    return None
                body += message.get("body", b"")
                if not message.get("more_body"):
                    return bytes(body)

    async def _answer(self, body: bytes, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand on; a request that is never answered (its worker died) ends some time after its client has gone."""
        first = True
        gone = asyncio.ensure_future(_departure(receive))

        async def replay() -> Message:
            nonlocal first
            if first:
                first = False
                return {"type": "http.request", "body": body, "more_body": False}
            return await asyncio.shield(gone)

        answer = asyncio.ensure_future(self.app(scope, replay, send))
        try:
            await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                await asyncio.wait({answer}, timeout=self.admission.patience)
            if answer.done():
                await answer
        finally:
            answer.cancel()
            gone.cancel()


async def _departure(receive: Receive) -> Message:
    """The message that tells of the end of the connection, or of the answer."""
    while (message := await receive())["type"] != "http.disconnect":
        pass
    return message


def _length(scope: Scope) -> int | None:
    """The bytes of the body as the head declares them; None where it does not say, or not in numbers."""
    headers = dict(scope["headers"])
    if b"transfer-encoding" in headers:
        return None
    declared = headers.get(b"content-length", b"0" if scope.get("method") != "POST" else b"")
    return int(declared) if declared.isdigit() and len(declared) < 20 else None


def _said(status: int, detail: str, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"detail": detail}, status, headers)
