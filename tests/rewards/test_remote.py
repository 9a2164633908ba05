"""The client against servers that answer late, wrongly, not at all, or in somebody else's name."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from src.rewards.base import RewardError, WrongInput
from src.rewards.ensemble import RewardEnsemble
from src.rewards.local import LocalExperts
from src.rewards.remote import RemoteExperts, RemoteSettings, RewardServerError, is_loopback
from src.rewards.wire import Limits, decode_request, encode_answer
from tests.rewards.toy import Brightness, Glare, NamedChannel, about, flat_images

IMAGES = flat_images((0.4, 0.2, 0.0), (0.4, 0.2, 0.0), (1.0, 1.0, 1.0))
RECORDS = [about("red"), about("green"), about("cat")]
NAMES = ("brightness", "named_channel", "glare")


def experts() -> LocalExperts:
    return LocalExperts({expert.name: expert for expert in (Brightness(), NamedChannel(), Glare())})


def scored(body: bytes) -> tuple[int, bytes]:
    """What a healthy server says."""
    local, asked = experts(), decode_request(body, Limits())
    answers = local.score(asked.pixels, asked.records, asked.names or NAMES) if asked.records else {}
    return 200, json.dumps(encode_answer(local.facts, {}, answers, len(asked.records))).encode()


class Served:
    """A server whose answers are a list: the first for the first request, the last for all further ones."""

    def __init__(self, answers: list[Callable[[bytes], tuple[int, bytes]]]) -> None:
        self.answers, self.headers, self.bodies = answers, [], []  # type: ignore[var-annotated]
        self.url = ""


@contextmanager
def serving(*answers: Callable[[bytes], tuple[int, bytes]]) -> Iterator[Served]:
    served = Served(list(answers))

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            answer = served.answers[min(len(served.bodies), len(served.answers) - 1)]
            served.bodies.append(body)
            served.headers.append(dict(self.headers))
            status, content = answer(body)
            self.send_response(status)
            if status == 307:
                self.send_header("Location", content.decode())
                content = b""
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()


def says(status: int, content: bytes = b"no") -> Callable[[bytes], tuple[int, bytes]]:
    return lambda body: (status, content)


def client(
    url: str, waited: list[float] | None = None, names: tuple[str, ...] = NAMES, **settings: Any
) -> RemoteExperts:
    """A client that notes how long it would wait."""
    sleep = ([] if waited is None else waited).append
    return RemoteExperts(RemoteSettings(url, **{"retries": 3, **settings}), names, sleep)


def test_served_experts_report_what_local_ones_do() -> None:
    """Scores, applicability, details, totals, order, means: to the last bit."""
    local = RewardEnsemble(experts().experts, {"glare": 0.5})
    pixels = torch.rand(3, 3, 5, 4)
    with serving(scored) as served:
        remote = RewardEnsemble(weights={"glare": 0.5}, elsewhere=client(served.url))
        some = client(served.url, names=("brightness", "glare"))
        mixed = RewardEnsemble([NamedChannel()], {"glare": 0.5}, elsewhere=some, order=NAMES)
        expected = local(pixels, RECORDS)
        for other in (remote, mixed):
            got = other(pixels, RECORDS)
            assert got.names == expected.names
            assert torch.equal(got.total, expected.total)
            assert torch.equal(got.applicable, expected.applicable)
            assert torch.equal(got.scores.nan_to_num(-1), expected.scores.nan_to_num(-1))
            assert list(got.details) == list(expected.details)
            assert all(torch.equal(got.details[name], value) for name, value in expected.details.items())
            assert other.compute() == pytest.approx(local.compute())
            assert other.seconds.keys() == local.seconds.keys()
        assert len(served.bodies) == 4, "two to ask for the experts, one for each call, whatever the number of experts"
    remote.reset()
    assert remote.compute() == {}


def test_an_expert_without_applicable_prompts_has_a_mean_all_the_same() -> None:
    """`means` computes over ranks: whether this rank takes part must not depend on its own prompts."""
    records = [about("cat")] * 3
    local = RewardEnsemble(experts().experts)
    with serving(scored) as served:
        remote = RewardEnsemble(elsewhere=client(served.url))
        for ensemble in (local, remote):
            assert not ensemble(IMAGES, records).applicable[:, ensemble.names.index("named_channel")].any()
    means = remote.compute()
    assert means.keys() == local.compute().keys() == set(NAMES)
    assert means["named_channel"] != means["named_channel"], "of nothing: NaN"


@pytest.mark.parametrize("on_error", ["raise", "drop"])
def test_pictures_that_are_none_are_refused_before_they_are_sent(on_error: str) -> None:
    """Under either: no expert failed, and pictures that are none mean a policy that is broken."""
    pixels = torch.cat([IMAGES[:2], IMAGES[2:] * float("nan"), IMAGES[2:]])
    records = [RECORDS[0], RECORDS[0], RECORDS[1], RECORDS[1]]
    with serving(scored) as served:
        remote = RewardEnsemble(on_error=on_error, elsewhere=client(served.url, names=("brightness",)))
        sent = len(served.bodies)
        with pytest.raises(WrongInput, match="image 2 has NaN"):
            remote(pixels, records, 2)
        assert len(served.bodies) == sent


def test_it_tries_again_with_growing_patience(capsys: pytest.CaptureFixture[str]) -> None:
    waited: list[float] = []
    with serving(scored, says(503), says(500), says(429), scored) as served:
        remote = client(served.url, waited, backoff=2.0)
        assert remote.score(IMAGES, RECORDS, ("glare",))["glare"].scores.tolist() == pytest.approx([0.2, 0.2, 1.0])  # type: ignore[union-attr]
    assert waited == [2.0, 4.0, 8.0]
    assert len({served.bodies[place] for place in range(1, 5)}) == 1, "the same request each time"
    assert capsys.readouterr().err.count("HTTP 503: no; trying again") == 1, "one line an outage"


def test_patience_has_a_bound() -> None:
    assert RemoteSettings("http://a:1", retries=7).waits() == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]


def test_a_server_that_is_gone_is_named_with_what_to_do() -> None:
    waited: list[float] = []
    with serving(scored) as served:
        remote = client(served.url, waited)
    with pytest.raises(RewardServerError) as told:
        RewardEnsemble(elsewhere=remote, on_error="drop")(IMAGES, RECORDS)
    for part in (served.url, "no answer after 4 attempts", "ConnectionRefusedError", "serve_rewards", "resume=auto"):
        assert part in str(told.value)
    assert waited == [1.0, 2.0, 4.0]


def test_a_server_that_answers_too_late_is_asked_again() -> None:
    def late(body: bytes) -> tuple[int, bytes]:
        time.sleep(0.6)
        return scored(body)

    with serving(scored, late, scored) as served:
        remote = client(served.url, timeout=0.2)
        assert not isinstance(remote.score(IMAGES, RECORDS, ("glare",))["glare"], RewardError)
        assert len(served.bodies) == 3


def test_a_connection_that_breaks_off_is_no_answer() -> None:
    """Half an answer, then the end: what a killed server leaves."""
    listener = socket.create_server(("127.0.0.1", 0))
    contents = [b"", b'HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{"half":', b"HTT"]

    def answer() -> None:
        for content in contents:
            connection, _ = listener.accept()
            connection.recv(2**16)
            connection.sendall(content)
            connection.close()

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    with pytest.raises(RewardServerError, match=r"no answer after 3 attempts"):
        client(f"http://127.0.0.1:{listener.getsockname()[1]}", retries=2)
    thread.join(5)
    listener.close()


@pytest.mark.parametrize(
    ("status", "advice"), [(401, "token_file"), (413, "limit"), (400, "refused"), (404, "refused")]
)
def test_a_refusal_is_final(status: int, advice: str) -> None:
    waited: list[float] = []
    with serving(scored, says(status, b"because")) as served:
        remote = client(served.url, waited)
        with pytest.raises(RewardServerError, match=rf"refused the request \(HTTP {status}: because\)") as told:
            remote.score(IMAGES, RECORDS, NAMES)
    assert advice in str(told.value)
    assert waited == []


def test_the_token_goes_to_its_server_and_nowhere_else() -> None:
    with serving(scored) as other, serving(scored, lambda body: (307, f"{other.url}/score".encode())) as served:
        remote = client(served.url, token="a-very-secret-token")
        assert served.headers[0]["Authorization"] == "Bearer a-very-secret-token"
        assert "secret" not in repr(remote.settings)
        with pytest.raises(RewardServerError, match="HTTP 307"):
            remote.score(IMAGES, RECORDS, NAMES)
        assert other.bodies == []


def test_no_proxy_of_the_environment_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    with serving(scored) as served:
        assert client(served.url).facts.keys() == set(NAMES)


def test_an_expert_that_fails_there_is_that_experts_failure() -> None:
    class Breaks(Brightness):
        def score(self, *_: Any) -> Any:
            raise MemoryError("no room")

    def failing(body: bytes) -> tuple[int, bytes]:
        local, asked = LocalExperts({"breaks": Breaks(), "glare": Glare()}), decode_request(body, Limits())
        answers = local.score(asked.pixels, asked.records, asked.names or ("breaks",)) if asked.records else {}
        return 200, json.dumps(encode_answer(local.facts, {}, answers, len(asked.records))).encode()

    with serving(failing) as served:
        names = ("breaks", "glare")
        with pytest.raises(
            RewardError, match=r"reward expert 'breaks': MemoryError: no room \(prompt: 'a red picture'\)"
        ):
            RewardEnsemble(elsewhere=client(served.url, names=names))(IMAGES, RECORDS)
        report = RewardEnsemble(elsewhere=client(served.url, names=names), on_error="drop")(IMAGES, RECORDS, 3)
        assert report.failed.tolist() == [[True, False]] * 3


def answering(change: Callable[[Any], Any]) -> Callable[[bytes], tuple[int, bytes]]:
    def answer(body: bytes) -> tuple[int, bytes]:
        return 200, json.dumps(change(json.loads(scored(body)[1]))).encode()

    return answer


def without_glare(data: Any) -> Any:
    del data["experts"]["glare"]
    return data


def other_range(data: Any) -> Any:
    data["experts"]["glare"]["score_range"] = [0, 100]
    return data


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (without_glare, "expert 'glare' is another one than at the start"),
        (other_range, "expert 'glare' is another one than at the start"),
        (lambda data: [], "its answer is not understood"),
        (lambda data: {**data, "answers": {}}, "its answer is not understood .*'brightness' is missing"),
        (lambda data: {**data, "images": 2}, "its answer is not understood"),
    ],
)
def test_an_answer_of_another_kind_is_no_score(change: Callable[[Any], Any], problem: str) -> None:
    with serving(scored, answering(change)) as served:
        remote = client(served.url)
        with pytest.raises(RewardServerError, match=problem):
            remote.score(IMAGES, RECORDS, NAMES)


def test_scores_are_checked_on_this_side_too() -> None:
    def inflated(data: Any) -> Any:
        data["answers"]["glare"]["scores"][1] = 7.0
        return data

    with serving(scored, answering(inflated)) as served:
        answer = client(served.url).score(IMAGES, RECORDS, NAMES)["glare"]
        assert isinstance(answer, RewardError)
        assert str(answer) == "reward expert 'glare': score 7.0 is outside [0.0, 1.0] (prompt: 'a green picture')"


KEYS = st.sampled_from(["images", "experts", "answers", "glare", "score_range", "higher_is_better"])
PARTS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner) | st.dictionaries(KEYS, inner),
    max_leaves=8,
)


@given(content=st.binary(max_size=60) | PARTS.map(lambda data: json.dumps(data).encode()))
def test_whatever_a_server_says_it_is_told_as_its_error(content: bytes) -> None:
    remote = RemoteExperts.__new__(RemoteExperts)
    remote.settings, remote._facts = RemoteSettings("http://127.0.0.1:1", retries=0), experts().facts
    remote._post = lambda body: (200, content)  # type: ignore[method-assign]
    with pytest.raises(RewardServerError):
        remote.score(IMAGES, RECORDS, ("glare",))


def test_an_expert_the_server_has_not_is_named() -> None:
    with (
        serving(scored) as served,
        pytest.raises(ValueError, match=r"rewards\.experts\.clip: http.* serves brightness, named_channel, glare"),
    ):
        client(served.url, names=("clip",))


@pytest.mark.parametrize(
    "url",
    [
        "127.0.0.1:8000",
        "ftp://a:1",
        "http://",
        "http://a:99999",
        "http://a:x",
        "http://me:pw@a:1",
        "http://a:1/?token=x",
    ],
)
def test_a_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"rewards\.remote\.url"):
        RemoteSettings(url)


def test_what_only_this_machine_reaches() -> None:
    assert all(is_loopback(host) for host in ("127.0.0.1", "127.8.8.8", "::1", "localhost"))
    assert not any(is_loopback(host) for host in ("0.0.0.0", "::", "10.0.0.1", "example.org"))  # noqa: S104
