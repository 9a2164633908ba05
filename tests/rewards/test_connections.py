"""The reward server's door, with real sockets: who is silent, slow, large or without a token keeps nobody out."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import uvicorn
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from src.rewards.remote import RemoteExperts, RemoteSettings, RewardServerError
from src.rewards.wire import CONTENT_TYPE, SCORE_PATH
from src.serve_rewards.connections import BoundedProtocol, uvicorn_settings
from src.serve_rewards.guard import Admission, Guard

TOKEN = "a-token-of-some-length"
SILENT = 100
# Far above what an answer takes here, far below every time-out that a test does not shorten.
AT_ONCE = 5.0


class Door:
    """A server of `guard` in a thread; behind it every request is told how long its body was."""

    def __init__(self, token: str | None, admission: Admission) -> None:
        self.guard = Guard(self._app, token, admission)
        self.hold = threading.Event()
        self.hold.set()
        config = uvicorn.Config(self.guard, log_level="critical", lifespan="off", **uvicorn_settings())
        self.server = uvicorn.Server(config)
        self.socket = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.port = int(self.socket.getsockname()[1])
        self.thread = threading.Thread(target=self.server.run, args=([self.socket],), daemon=True)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)

    async def _app(self, scope: Scope, receive: Receive, send: Send) -> None:
        length, more = 0, True
        while more:
            message = await receive()
            length, more = length + len(message.get("body", b"")), message.get("more_body", False)
        while not self.hold.is_set():
            await asyncio.sleep(0.01)
        await PlainTextResponse(f"{length} bytes")(scope, receive, send)

    def close(self) -> None:
        self.hold.set()
        self.server.should_exit = self.server.force_exit = True
        self.thread.join(10)
        self.socket.close()

    def connect(self, source: str = "127.0.0.1") -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=10, source_address=(source, 0))

    def ask(self, body: bytes = b"12345", token: str | None = TOKEN) -> tuple[int, bytes]:
        """An honest request: status and content."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        headers = {"Content-Type": CONTENT_TYPE} | ({} if token is None else {"Authorization": f"Bearer {token}"})
        try:
            connection.request("POST", SCORE_PATH, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()


@pytest.fixture
def door() -> Iterator[Callable[..., Door]]:
    made: list[Door] = []

    def make(token: str | None = TOKEN, max_bytes: int = 10_000, **admission: Any) -> Door:
        made.append(Door(token, Admission(max_bytes, **admission)))
        return made[-1]

    yield make
    for one in made:
        one.close()


def head(token: str | None = TOKEN, *, method: str = "POST", **headers: Any) -> bytes:
    lines = [f"{method} {SCORE_PATH} HTTP/1.1", "Host: x", f"Content-Type: {CONTENT_TYPE}"]
    lines += [] if token is None else [f"Authorization: Bearer {token}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode()


def status_of(connection: socket.socket) -> int:
    """Of the answer that comes, without anything further being sent; 0 where the connection ends without one."""
    answer = http.client.HTTPResponse(connection)
    try:
        answer.begin()
        answer.read()
    except (ConnectionError, http.client.HTTPException):
        return 0
    return answer.status


def ended(connection: socket.socket) -> bool:
    """Whether the server has closed it; waits for at most the connection's time-out."""
    try:
        while connection.recv(4096):
            pass
    except ConnectionError:
        return True
    except TimeoutError:
        return False
    return True


@pytest.mark.parametrize("sent", [b"", b"POST /score HTTP/1.1\r\nHost: x\r\nX: ", head(None, Content_Length=10**9)])
def test_connections_without_a_token_keep_nobody_out(
    door: Callable[..., Door], monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    """Silent, with half of a head, or with the endless body of a refused request: more than there are places."""
    monkeypatch.setattr(BoundedProtocol, "max_waiting", SILENT - 20)
    one = door(linger=60.0)
    with ExitStack() as open_:
        silent = [open_.enter_context(one.connect()) for _ in range(SILENT)]
        for connection in silent:
            connection.sendall(sent)
        begin = time.monotonic()
        assert [one.ask() for _ in range(3)] == [(200, b"5 bytes")] * 3
        assert time.monotonic() - begin < AT_ONCE
        # The oldest made room.
        assert ended(silent[0])
        assert len(one.server.server_state.connections) <= SILENT - 20 + 1


def test_who_makes_room_is_the_address_with_most_connections(
    door: Callable[..., Door], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BoundedProtocol, "max_waiting", 10)
    one = door()
    with ExitStack() as open_:
        patient = open_.enter_context(one.connect("127.0.0.2"))
        patient.sendall(head(Content_Length=3)[:-2])
        for _ in range(30):
            open_.enter_context(one.connect())
        assert one.ask()[0] == 200
        patient.sendall(b"\r\nabc")
        assert status_of(patient) == 200


@pytest.mark.parametrize("trickle", [False, True])
@pytest.mark.parametrize("after", [b"", head(Content_Length=3) + b"abc", head(None, method="GET")])
def test_a_head_has_to_come_in_time(
    door: Callable[..., Door], monkeypatch: pytest.MonkeyPatch, after: bytes, trickle: bool
) -> None:
    """The first of a connection, or one after an answer; bytes that come one by one win no time."""
    monkeypatch.setattr(BoundedProtocol, "head_seconds", 0.6)
    one = door()
    with one.connect() as connection:
        if after:
            connection.sendall(after)
            assert status_of(connection) in (200, 401)
        begin = time.monotonic()
        connection.sendall(b"POST /score HTTP/1.1\r\nX: " if trickle else b"")
        while trickle and time.monotonic() - begin < 3:
            try:
                connection.sendall(b"x")
            except ConnectionError:
                break
            time.sleep(0.1)
        assert ended(connection)
        assert time.monotonic() - begin < 3
    assert one.ask()[0] == 200


def test_a_head_has_a_size(door: Callable[..., Door]) -> None:
    with door().connect() as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nX: " + b"x" * 30_000)
        assert status_of(connection) == 400


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (head(None, Content_Length=10**12), 401),
        (head("another-token-of-length", Content_Length=10**12), 401),
        (head(None, Transfer_Encoding="chunked"), 401),
        (head(Content_Length=10_001), 413),
        (head(Content_Length=10**18), 413),
        (head(Content_Length=10_001, Expect="100-continue"), 413),
        (head(Content_Length=0), 400),
        (head(), 411),
        (head(Transfer_Encoding="chunked"), 411),
        (head(Content_Length=5).replace(b"octet", b"other"), 415),
    ],
)
def test_what_the_head_tells_is_answered_without_a_body(
    door: Callable[..., Door], request_: bytes, status: int
) -> None:
    with door(linger=30.0).connect() as connection:
        connection.settimeout(AT_ONCE)
        connection.sendall(request_)
        assert status_of(connection) == status


@pytest.mark.parametrize("trickle", [False, True])
def test_a_body_has_to_come_in_time(door: Callable[..., Door], trickle: bool) -> None:
    """One that stops, and one whose bytes come one by one: 2,000 of them have 0.3 s + 2,000 / 4,000 s."""
    one = door(silence=0.3, rate=4000.0, linger=0.2)
    with one.connect() as connection:
        connection.settimeout(AT_ONCE)
        begin = time.monotonic()
        connection.sendall(head(Content_Length=2000) + b"x")
        assert one.ask()[0] == 200
        if trickle:
            for _ in range(9):
                time.sleep(0.1)
                connection.sendall(b"x")
        assert status_of(connection) == 408
        assert time.monotonic() - begin < 3
    assert (one.guard.working, one.guard.held) == (0, 0)


def test_requests_at_once_are_counted_only_with_the_token(door: Callable[..., Door]) -> None:
    one = door(at_once=2, linger=60.0)
    with ExitStack() as open_:
        one.hold.clear()
        working = [open_.enter_context(one.connect()) for _ in range(2)]
        for connection in working:
            connection.sendall(head(Content_Length=1) + b"x")
        wait_until(lambda: one.guard.working == 2)
        for _ in range(20):
            open_.enter_context(one.connect()).sendall(head(None, Content_Length=100))
        assert one.ask()[0] == 503
        one.hold.set()
        assert [status_of(connection) for connection in working] == [200, 200]
        wait_until(lambda: one.guard.working == 0)
        assert one.ask()[0] == 200


def test_the_bytes_of_bodies_that_are_held_are_bounded(door: Callable[..., Door]) -> None:
    """Declared ones count: memory is promised before it is filled."""
    one = door(bodies_at_once=2)
    with ExitStack() as open_:
        for _ in range(2):
            open_.enter_context(one.connect()).sendall(head(Content_Length=9_998) + b"x")
        wait_until(lambda: one.guard.working == 2)
        assert one.ask(b"12345")[0] == 503
        assert one.ask(b"1234")[0] == 200
    wait_until(lambda: one.guard.held == 0)
    assert one.ask(b"12345")[0] == 200


def test_a_request_nobody_waits_for_gives_its_place_up(door: Callable[..., Door]) -> None:
    """Its worker may have died with it, so that it is never answered."""
    one = door(at_once=1, patience=0.3)
    one.hold.clear()
    with one.connect() as connection:
        connection.sendall(head(Content_Length=1) + b"x")
        wait_until(lambda: one.guard.working == 1)
        assert one.ask()[0] == 503
    wait_until(lambda: one.guard.working == 0)
    one.hold.set()
    assert one.ask()[0] == 200


def test_a_client_that_is_still_sending_reads_why_it_was_refused(door: Callable[..., Door]) -> None:
    one = door()
    remote = object.__new__(RemoteExperts)
    remote.settings = RemoteSettings(f"http://127.0.0.1:{one.port}", token=TOKEN, retries=0)
    with pytest.raises(
        RewardServerError, match=r"HTTP 413: .*30000000 bytes; this server takes max_bytes=10000.*raise"
    ):
        remote._asked(bytes(30_000_000))


def test_a_refusal_that_comes_as_the_connection_breaks_is_read() -> None:
    """A server that answers by the head and closes at once, with most of the body unread."""
    said = json.dumps({"detail": "too large"}).encode()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def refuse() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"HTTP/1.1 413 x\r\nContent-Length: %d\r\n\r\n%b" % (len(said), said))

        thread = threading.Thread(target=refuse, daemon=True)
        thread.start()
        remote = object.__new__(RemoteExperts)
        remote.settings = RemoteSettings(f"http://127.0.0.1:{server.getsockname()[1]}", token=TOKEN, retries=0)
        with pytest.raises(RewardServerError, match=r"HTTP 413: .*too large"):
            remote._asked(bytes(30_000_000))
        thread.join(5)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + AT_ONCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
