"""The reward server's endpoint and its client: any bytes get a documented answer, and any answer is understood."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from io import BytesIO
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from src.rewards.base import RewardExpert
from src.rewards.local import LocalExperts
from src.rewards.wire import CONTENT_TYPE, MAGIC, Limits, WireError, decode_answers, decode_facts, encode_request
from src.serve_rewards.guard import Admission, Guard
from src.serve_rewards.server import ScoringAPI
from src.values import PromptRecord
from tests.fuzz.budget import MORE, fuzz
from tests.fuzz.damage import EDITS, damaged, json_values, numbers, texts
from tests.rewards.toy import Brightness, NamedChannel, about, flat_images

TOKEN = "a-token-of-some-length"
GOOD = encode_request(flat_images((0.4, 0.2, 0.0), (1.0, 1.0, 1.0)), (about("red"), about("cat")), None)


class Failing(RewardExpert):
    """Fails on every picture, so that prompts come back in answers."""

    name = "failing"
    score_range = (0.0, 1.0)

    def score(self, pixels: Tensor, records: Sequence[PromptRecord]) -> Tensor:
        raise ValueError(f"cannot judge {records[0].prompt!r}")


def _png(mode: str, size: tuple[int, int], kind: str) -> bytes:
    file = BytesIO()
    Image.new(mode, size).save(file, format=kind)
    return file.getvalue()


PICTURES = [
    *(_png("RGB", (2, 2), kind) for kind in ("PNG", "BMP", "GIF", "TIFF", "PPM")),
    *(_png(mode, (2, 2), "PNG") for mode in ("L", "RGBA", "P", "I;16", "1")),
    *(_png("RGB", size, "PNG") for size in ((1, 1), (4000, 4000), (1, 60_000))),
    b"",
    b"\x89PNG\r\n\x1a\n",
]
pictures = st.sampled_from(PICTURES) | st.binary(max_size=30) | EDITS.map(lambda edits: damaged(PICTURES[0], edits))
record = st.fixed_dictionaries({"prompt": texts}, optional={"nouns": st.lists(texts, max_size=2), "scene": json_values})


def _body(header: Any, length: int | None, files: list[bytes]) -> bytes:
    text = json.dumps(header).encode()
    return MAGIC + (len(text) if length is None else length).to_bytes(4, "big") + text + b"".join(files)


def _request(files: list[bytes], size: Any, made: dict[str, Any], length: int | None) -> bytes:
    header = {
        "names": None,
        "records": [{"prompt": "x"}],
        "record_of": [0] * len(files),
        "bytes": [len(file) for file in files],
        "size": size,
    }
    return _body(header | made, length, files)


sizes = (
    st.just([2, 2])
    | st.lists(numbers, min_size=2, max_size=2)
    | st.tuples(st.integers(1, 9), st.integers(1, 9)).map(list)
)
made = st.fixed_dictionaries(
    {},
    optional={
        "names": st.lists(st.sampled_from(["picky", "failing", "nobody"]) | texts, max_size=2) | json_values,
        "records": st.lists(record | json_values, max_size=2) | json_values,
        "record_of": st.lists(numbers, max_size=3) | json_values,
        "bytes": st.lists(numbers, max_size=3) | json_values,
        "more": json_values,
    },
)
length = st.none() | st.integers(0, 2**32 - 1) | st.integers(0, 300)
bodies = st.one_of(
    st.builds(_request, st.lists(pictures, max_size=3), sizes, st.just({}), st.none()),
    st.builds(
        _request,
        st.just([PICTURES[0]]),
        st.just([2, 2]),
        record.map(lambda one: {"records": [one], "names": ["failing", "bright"]}),
        st.none(),
    ),
    st.builds(_request, st.lists(pictures, max_size=3), sizes, made, length),
    st.builds(_body, json_values, length, st.lists(pictures, max_size=1)),
    EDITS.map(lambda edits: damaged(GOOD, edits)),
    st.binary(max_size=60),
    st.binary(max_size=60).map(lambda some: MAGIC + some),
)


def worker() -> ScoringAPI:
    experts = {"bright": Brightness(), "channel": NamedChannel(), "failing": Failing()}
    limits = Limits(max_images=8, max_pixels=10_000, max_bytes=100_000)
    api = ScoringAPI(lambda device: LocalExperts(experts).to(device), {}, limits, max_batch=8, batch_timeout=0.1)
    api.pre_setup()
    api.setup("cpu")
    return api


@pytest.mark.parametrize("many", MORE)
def test_bodies(many: int | None) -> None:
    api = worker()

    def answered(*asked: bytes) -> list[tuple[int, Any]]:
        """As LitServe calls a worker that scores several requests together."""
        given = api.unbatch(api.predict(api.batch([api.decode_request(body) for body in asked])))
        return [(one.status_code, json.loads(bytes(one.body))) for one in map(api.encode_response, given)]

    (_, expected), *_ = answered(GOOD)

    def check(body: bytes) -> str:
        # Beside a sound request: what is wrong with one is nothing to the other.
        (status, said), (other, neighbour) = answered(body, GOOD)
        assert other == 200
        assert neighbour["answers"]["bright"]["scores"] == expected["answers"]["bright"]["scores"]
        assert status in (200, 400, 413)
        assert set(said) == ({"images", "experts", "answers"} if status == 200 else {"detail"})
        if status == 200:
            decode_facts(said)
            decode_answers(said, list(said["answers"]), said["images"])
        else:
            assert len(said["detail"]) < 2000
        return f"HTTP {status}"

    fuzz("server's endpoint", bodies, check, 60, many)


@pytest.mark.parametrize("many", MORE)
def test_the_guard(many: int | None) -> None:
    """Random scopes: past the guard come those with the token alone, and the health check."""
    passed: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        passed.append(scope["type"])

    guard = Guard(app, TOKEN, Admission(1000))

    def check(scope: dict[str, Any]) -> str:
        sent: list[Any] = []
        read: list[bool] = []

        async def receive() -> dict[str, Any]:
            # What is refused is answered before anything of it is read.
            read.append(bool(sent))
            return {"type": "http.disconnect"} if len(read) > 1 else {"type": "http.request", "body": b"x"}

        async def send(message: Any) -> None:
            sent.append(message)

        passed.clear()
        asyncio.run(guard(scope, receive, send))
        with_token = dict(scope["headers"]).get(b"authorization") == f"Bearer {TOKEN}".encode()
        if passed:
            open_to_all = scope["type"] == "lifespan" or (scope["type"], scope.get("path")) == ("http", "/health")
            assert open_to_all or with_token
            return "passed"
        if read == [False]:
            assert with_token
            return "gone"
        assert all(read)
        assert sent[0]["status"] in ((400, 411, 413, 415) if with_token else (401,))
        return f"HTTP {sent[0]['status']}"

    token = st.sampled_from([TOKEN, f"Bearer {TOKEN}", f"bearer {TOKEN}", f"Bearer {TOKEN} ", "", "Bearer"])
    header = st.tuples(
        st.sampled_from([b"authorization", b"content-type", b"content-length", b"transfer-encoding", b"x"]),
        token.map(str.encode)
        | st.binary(max_size=9)
        | st.just(CONTENT_TYPE.encode())
        | st.sampled_from([b"0", b"1", b"1001", b"9" * 5000, b"-1"]),
    )
    scopes = st.fixed_dictionaries(
        {
            "type": st.sampled_from(["http", "http", "websocket", "lifespan"]),
            "method": st.sampled_from(["GET", "POST", "PUT", "OPTIONS", "post"]),
            "path": st.sampled_from(["/score", "/health", "/health/", "//health", "/", "/docs"]) | texts,
            "headers": st.lists(header, max_size=4),
        }
    )
    fuzz("guard", scopes, check, 60, many, share=0.1)


@pytest.mark.parametrize("many", MORE)
def test_answers(many: int | None) -> None:
    """What a server may say to the client: scores, or a WireError."""
    part = st.sampled_from(["images", "experts", "answers", "rows", "scores", "details", "seconds", "error"])
    nested = st.dictionaries(
        part | st.just("a"), json_values | st.dictionaries(part, json_values, max_size=4), max_size=4
    )
    fine = {
        "images": 1,
        "experts": {"a": {"score_range": [0.0, None], "higher_is_better": True}},
        "answers": {"a": {"rows": [0], "scores": [0.5], "details": {}, "seconds": 0.1}},
    }
    whole = (
        st.just(fine) | st.builds(lambda a, b: fine | {"answers": {"a": a}} | b, nested, nested) | nested | json_values
    )

    def check(data: Any) -> str:
        try:
            decode_facts(data)
            answers = decode_answers(data, ["a"], 1)
        except WireError:
            return "WireError"
        assert set(answers) == {"a"}
        assert torch.get_default_dtype() == torch.float32
        return type(answers["a"]).__name__

    fuzz("client", whole, check, 100, many, share=0.1)
