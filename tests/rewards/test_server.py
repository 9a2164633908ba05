"""What a worker answers, and whom the guard lets through; a real server is in tests/serve_rewards/test_command.py."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from src.rewards.base import RewardError
from src.rewards.local import LocalExperts
from src.rewards.wire import CONTENT_TYPE, Limits, ScoreRequest, decode_answers, encode_request
from src.serve_rewards.guard import Admission, Guard
from src.serve_rewards.server import ScoringAPI, scored_together
from src.values import PromptRecord
from tests.rewards.toy import Brightness, NamedChannel, about, flat_images

PIXELS = flat_images((0.4, 0.2, 0.0), (1.0, 1.0, 1.0), (0.0, 0.2, 0.0))
RECORDS = (about("red"), about("cat"), about("green"))
TOKEN = "a-token-of-some-length"
GOOD = {"content_type": CONTENT_TYPE, "content_length": "5"}


class Picky(Brightness):
    """`Brightness` that fails on a black picture; remembers how many it saw at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[int] = []

    def score(self, pixels: Tensor, records: Sequence[PromptRecord]) -> Any:
        self.seen.append(len(pixels))
        if (pixels.flatten(1).amax(1) == 0).any():
            raise ValueError("black")
        return super().score(pixels, records)


def experts(device: str = "cpu") -> LocalExperts:
    return LocalExperts({"picky": Picky(), "channel": NamedChannel()}).to(device)


def worker(**limits: int) -> ScoringAPI:
    api = ScoringAPI(experts, {"picky": {"a": 1}}, Limits(**limits), max_batch=8, batch_timeout=0.1)
    api.pre_setup()
    api.setup("cpu")
    return api


def asked(pixels: Tensor, records: Sequence[PromptRecord], names: Sequence[str] | None = None) -> bytes:
    return encode_request(pixels, records, names)


def responses(api: ScoringAPI, *bodies: bytes) -> list[tuple[int, Any]]:
    """As LitServe calls it: decode each, batch, predict, unbatch, encode each."""
    made = api.unbatch(api.predict(api.batch([api.decode_request(body) for body in bodies])))
    encoded = [api.encode_response(response) for response in made]
    return [(response.status_code, json.loads(bytes(response.body))) for response in encoded]


def test_requests_that_come_together_are_scored_together_and_answered_apart() -> None:
    api = worker()
    parts = [(PIXELS[:1], RECORDS[:1]), (PIXELS[1:], RECORDS[1:])]
    alone = [responses(worker(), asked(*part))[0][1]["answers"] for part in parts]
    got = responses(api, *(asked(*part) for part in parts))
    assert api.experts.experts["picky"].seen == [3]
    for (status, data), expected in zip(got, alone, strict=True):
        assert status == 200
        for name in ("picky", "channel"):
            assert {k: v for k, v in data["answers"][name].items() if k != "seconds"} == {
                k: v for k, v in expected[name].items() if k != "seconds"
            }


def test_different_sizes_and_experts_are_kept_apart() -> None:
    api, large = worker(), PIXELS.repeat(1, 1, 2, 2)
    got = responses(api, asked(PIXELS, RECORDS), asked(large, RECORDS), asked(PIXELS, RECORDS, ("picky",)))
    assert api.experts.experts["picky"].seen == [3, 3, 3]
    assert [sorted(data["answers"]) for _, data in got] == [["channel", "picky"], ["channel", "picky"], ["picky"]]


def test_one_requests_picture_is_not_anothers_failure() -> None:
    black = (PIXELS[:1] * 0, RECORDS[:1])
    got = responses(worker(), asked(PIXELS, RECORDS), asked(*black))
    first, second = (decode_answers(data, ["picky"], count) for (_, data), count in zip(got, (3, 1), strict=True))
    assert not isinstance(first["picky"], RewardError)
    assert isinstance(second["picky"], RewardError)
    assert second["picky"].problem == "ValueError: black"


def test_a_malformed_request_is_refused_alone() -> None:
    got = responses(worker(max_images=2), b"nonsense", asked(PIXELS[:2], RECORDS[:2]), asked(PIXELS, RECORDS))
    assert [status for status, _ in got] == [400, 200, 413]
    assert "no request of this protocol" in got[0][1]["detail"]
    assert "max_images=2" in got[2][1]["detail"]
    assert responses(worker(), asked(PIXELS, RECORDS, ("clip",)))[0] == (400, {"detail": "no expert 'clip' here"})


def test_without_pictures_it_says_which_experts_there_are() -> None:
    (status, data), *_ = responses(worker(), asked(PIXELS[:0], ()))
    assert status == 200
    assert data["experts"]["picky"] == {"score_range": [0.0, 1.0], "higher_is_better": True, "settings": {"a": 1}}
    assert data["answers"] == {}


def test_a_worker_that_takes_one_request_at_a_time() -> None:
    api = ScoringAPI(experts, {}, Limits())
    api.setup("cpu")
    response = api.encode_response(api.predict(api.decode_request(asked(PIXELS, RECORDS))))
    assert json.loads(bytes(response.body))["answers"]["channel"]["rows"] == [0, 2]


def test_a_worker_that_cannot_make_its_experts_tells_why() -> None:
    def broken(device: str) -> LocalExperts:
        raise ValueError(f"no weights on {device}")

    api = ScoringAPI(broken, {}, Limits())
    with pytest.raises(ValueError, match="no weights"):
        api.setup("cpu")
    assert api.failure.get() == "no weights on cpu"


def test_seconds_are_shared_out() -> None:
    requests = [ScoreRequest(PIXELS[:1], RECORDS[:1], None), ScoreRequest(PIXELS[1:], RECORDS[1:], None)]
    first, second = scored_together(experts(), requests)
    assert second["picky"].seconds == pytest.approx(2 * first["picky"].seconds)  # type: ignore[union-attr]
    assert first["channel"].seconds == pytest.approx(second["channel"].seconds)  # type: ignore[union-attr]


def through(
    token: str | None, *, path: str = "/score", method: str = "POST", kind: str = "http", **headers: str
) -> Any:
    """The status the guard answers with, "through" where it hands on; the body of what it refuses is not waited for."""
    reached: list[str] = []
    sent: list[Any] = []
    answered: list[bool] = []  # at each time that the body was asked for

    async def app(scope: Any, receive: Any, send: Any) -> None:
        reached.append("through")

    async def receive() -> Any:
        answered.append(bool(sent) and bool(sent[-1].get("body")))
        if len(answered) > 1:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": b"12345", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    raw = [(name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in headers.items()]
    scope = {"type": kind, "path": path, "method": method, "headers": raw}
    asyncio.run(Guard(app, token, Admission(100))(scope, receive, send))
    if reached:
        return reached[0]
    assert all(answered), "the guard waited for the body of what it refused"
    return sent[0]["status"]


@pytest.mark.parametrize(
    ("authorization", "expected"),
    [
        (f"Bearer {TOKEN}", "through"),
        (f"Bearer {TOKEN}x", 401),
        (f"Bearer {TOKEN[:-1]}", 401),
        (f"bearer {TOKEN}", 401),
        (TOKEN, 401),
        ("Bearer ", 401),
        ("Bearer é", 401),
        (None, 401),
    ],
)
def test_the_token_has_to_be_the_very_one(authorization: str | None, expected: Any) -> None:
    headers = GOOD | ({} if authorization is None else {"authorization": authorization})
    assert through(TOKEN, **headers) == expected


@pytest.mark.parametrize("path", ["/", "/info", "/score", "/health/", "/docs"])
def test_everything_but_the_health_check_needs_the_token(path: str) -> None:
    assert through(TOKEN, path=path, method="GET") == 401
    assert through(TOKEN, path="/health", method="GET") == "through"


def test_without_a_token_all_may_ask_in_the_protocols_kind() -> None:
    assert through(None, **GOOD) == "through"
    assert through(None, **GOOD | {"content_length": "0"}) == 400
    assert through(None, **GOOD | {"content_length": "101"}) == 413
    assert through(None, **GOOD | {"content_length": "-1"}) == 411
    assert through(None, **GOOD | {"transfer_encoding": "chunked"}) == 411
    assert through(None, content_type=CONTENT_TYPE) == 411
    assert through(None, content_type="application/json") == 415
    assert through(None) == 415
    assert through(None, method="GET") == "through"


def test_tokens_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    from src.serve_rewards import guard

    compared: list[tuple[bytes, bytes]] = []
    monkeypatch.setattr(guard.hmac, "compare_digest", lambda a, b: compared.append((a, b)) or a == b)
    assert through(TOKEN, authorization="Bearer x") == 401
    assert compared == [(b"Bearer x", f"Bearer {TOKEN}".encode())]


def test_scores_are_those_of_the_experts() -> None:
    ((_, data),) = responses(worker(), asked(PIXELS, RECORDS))
    got = decode_answers(data, ["picky"], 3)["picky"]
    assert not isinstance(got, RewardError)
    assert torch.equal(got.scores, Brightness().score(PIXELS, RECORDS)[0])
