"""Experts that another process serves (``python -m src.serve_rewards``), on this machine or another one."""

from __future__ import annotations

import http.client
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from ipaddress import ip_address
from typing import Any
from urllib.parse import SplitResult, urlsplit

import torch
from torch import Tensor
from torchmetrics import MeanMetric

from src.rewards.base import RewardError
from src.rewards.local import Answers, ExpertFacts, ExpertScores, check_scores
from src.rewards.wire import (
    CONTENT_TYPE,
    SCORE_PATH,
    WireError,
    decode_answers,
    decode_facts,
    encode_request,
    read_json,
)
from src.runs.phases import phase, progress
from src.values import PromptRecord

MAX_ANSWER = 2**26
# What a server that is starting, overloaded or dying says; anything else is an answer for good.
TRY_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})


class RewardServerError(RewardError):
    """The server gives no answer that could be used. Not an expert's failure: it ends a run under any `on_error`."""


@dataclass(frozen=True, slots=True)
class RemoteSettings:
    """Where the server is and how patient to be with it.

    timeout: seconds without a byte after which a request counts as failed. retries: how often it is tried again,
    after `backoff` seconds, then twice as many, at most `max_backoff`. token: sent as ``Authorization: Bearer``.
    Raises ValueError for a URL that is none.
    """

    url: str
    timeout: float = 120.0
    retries: int = 8
    backoff: float = 1.0
    max_backoff: float = 30.0
    token: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.url)
            fine = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
        except ValueError:
            fine = False
        if not fine:
            raise ValueError(f"rewards.remote.url={self.url}: expected http://host:port or https://host:port")
        if parts.username is not None or parts.query or parts.fragment:
            raise ValueError(
                "rewards.remote.url: expected no user, query or fragment in it (a token comes from"
                " rewards.remote.token_file or the environment)"
            )

    @property
    def parts(self) -> SplitResult:
        return urlsplit(self.url)

    def waits(self) -> list[float]:
        """The seconds before each retry."""
        return [min(self.backoff * 2**number, self.max_backoff) for number in range(self.retries)]


class RemoteExperts:
    """Experts behind a URL, asked in one request a call; weights and all else stay on this side.

    names: the experts to ask for. Raises RewardServerError if the server does not answer, ValueError if it has no
    such expert. `settings_there` is what the server's experts were made with.
    """

    def __init__(
        self, settings: RemoteSettings, names: Sequence[str], sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self.settings = settings
        self._sleep = sleep
        served, self.settings_there = decode_facts(self._asked(encode_request(torch.zeros(0, 3, 1, 1), (), None)))
        for name in names:
            if name not in served:
                raise ValueError(
                    f"rewards.experts.{name}: {settings.url} serves {', '.join(served)}; serve it with the same"
                    f" rewards=..., or keep it here with rewards.devices.{name}=cpu"
                )
        self._facts = {name: served[name] for name in names}
        self._means = {name: MeanMetric() for name in names}

    @property
    def facts(self) -> Mapping[str, ExpertFacts]:
        return self._facts

    def device_bytes(self, device: torch.device) -> int:
        return 0

    def to(self, device: torch.device | str) -> RemoteExperts:
        for mean in self._means.values():
            mean.to(device)
        return self

    def means(self) -> dict[str, float]:
        return {name: float(mean.compute()) for name, mean in self._means.items() if mean.update_called}

    def reset(self) -> None:
        for mean in self._means.values():
            mean.reset()

    def score(self, pixels: Tensor, records: Sequence[PromptRecord], names: Sequence[str]) -> Answers:
        """Ask the server; its scores are checked as those of a local expert are.

        Pictures that cannot be sent are a failure of each expert, as they are of a local one.
        """
        try:
            body = encode_request(pixels, records, names)
        except WireError as error:
            return {name: RewardError(name, str(error), records[0].prompt) for name in names}
        with phase(f"scoring (experts {', '.join(names)} at {self.settings.url}, first prompt {records[0].prompt!r})"):
            data = self._asked(body)
        served, _ = self._understood(lambda: decode_facts(data))
        for name in names:
            if served.get(name) != self._facts[name]:
                raise self._error(f"expert {name!r} is another one than at the start; restart it with the same rewards")
        answers = self._understood(lambda: decode_answers(data, names, len(records)))
        return {name: self._checked(name, answer, records) for name, answer in answers.items()}

    def _checked(
        self, name: str, answer: ExpertScores | RewardError, records: Sequence[PromptRecord]
    ) -> ExpertScores | RewardError:
        if isinstance(answer, ExpertScores):
            try:
                chosen = [records[row] for row in answer.rows]
                check_scores(name, self._facts[name].score_range, answer.scores, chosen)
            except RewardError as error:
                return error
            # Without any, too: ranks that score must find all others in `means`.
            self._means[name].update(answer.scores.to(self._means[name].device))
        return answer

    def _asked(self, body: bytes) -> Any:
        """The server's answer to one request, decoded from JSON; tried again as often as it may be."""
        start, problem = time.monotonic(), ""
        for attempt, wait in enumerate((*self.settings.waits(), None)):
            progress()  # each attempt has a time-out of its own
            try:
                status, content = self._post(body)
            except (OSError, http.client.HTTPException) as error:
                problem = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            else:
                if status == 200:
                    return self._understood(partial(read_json, content))
                problem = f"HTTP {status}: {content[:300].decode(errors='replace')}"
                if status not in TRY_AGAIN:
                    raise self._error(f"it refused the request ({problem}){_about(status)}")
            if attempt == 0 and wait is not None:
                print(f"rewards: {self.settings.url}: {problem}; trying again", file=sys.stderr, flush=True)
            if wait is not None:
                self._sleep(wait)
        raise self._error(
            f"no answer after {self.settings.retries + 1} attempts in {time.monotonic() - start:.0f} s (the last:"
            f" {problem}); start it again (python -m src.serve_rewards) and go on with resume=auto"
        )

    def _post(self, body: bytes) -> tuple[int, bytes]:
        """One attempt: status and content. No redirect is followed and no proxy used: the token stays between two."""
        parts, settings = self.settings.parts, self.settings
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(parts.hostname or "", parts.port, timeout=settings.timeout)
        headers = {"Content-Type": CONTENT_TYPE, "Accept": "application/json"}
        if settings.token is not None:
            headers["Authorization"] = f"Bearer {settings.token}"
        try:
            answer = _exchange(connection, parts.path.rstrip("/") + SCORE_PATH, body, headers)
            content = answer.read(MAX_ANSWER + 1)
            if len(content) > MAX_ANSWER:
                raise self._error(f"its answer has more than {MAX_ANSWER} bytes")
            if answer.length:
                raise http.client.IncompleteRead(content, answer.length)
            return answer.status, content
        finally:
            connection.close()

    def _understood(self, read: Callable[[], Any]) -> Any:
        try:
            return read()
        except (ValueError, RecursionError) as error:
            raise self._error(f"its answer is not understood ({error}); is it of this version?") from error

    def _error(self, problem: str) -> RewardServerError:
        return RewardServerError(f"remote at {self.settings.url}", problem)


def _exchange(
    connection: http.client.HTTPConnection, path: str, body: bytes, headers: Mapping[str, str]
) -> http.client.HTTPResponse:
    """POST and the head of the answer, also where a server that refuses a request closes before its body is sent."""
    try:
        connection.request("POST", path, body, headers)
    except (BrokenPipeError, ConnectionResetError) as error:
        try:
            return connection.getresponse()
        except (OSError, http.client.HTTPException):
            raise error from None
    return connection.getresponse()


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server that listens on `host`."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _about(status: int) -> str:
    if status in (401, 403):
        return "; give the server's token by rewards.remote.token_file or the environment"
    if status == 413:
        return "; raise the server's limit or score fewer pictures at once"
    return ""
