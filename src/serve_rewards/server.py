"""An ensemble's experts behind HTTP: LitServe runs the workers, this file says what they do.

Needs the extra ``[serve]``. No ``from __future__ import annotations`` here: LitServe hands the annotations of
`decode_request` and `encode_response` to FastAPI as they stand.
"""

import logging
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import torch
from fastapi import Body, Response
from fastapi.responses import JSONResponse
from litserve import LitAPI, LitServer

from src.rewards.base import RewardError
from src.rewards.local import Answers, ExpertScores, LocalExperts
from src.rewards.wire import (
    CONTENT_TYPE,
    HEALTH_PATH,
    SCORE_PATH,
    Limits,
    ScoreRequest,
    TooLarge,
    WireError,
    decode_request,
    encode_answer,
)
from src.serve_rewards.connections import uvicorn_settings
from src.serve_rewards.guard import Admission, Guard

GRACE = 5  # seconds that the end waits for answers that are still owed


class ScoringAPI(LitAPI):
    """What a worker does: make its experts once, then score requests, several together if they come together.

    make: builds the experts for a device, in the worker; has to be picklable. settings: by expert, told to the
    trainer, which compares them with its own. `failure` is a queue that takes the message of a worker that cannot
    make its experts.
    """

    def __init__(
        self,
        make: Callable[[str], LocalExperts],
        settings: Mapping[str, Any],
        limits: Limits,
        max_batch: int = 1,
        batch_timeout: float = 0.0,
    ) -> None:
        super().__init__(max_batch_size=max_batch, batch_timeout=batch_timeout, api_path=SCORE_PATH)
        self.make, self.settings, self.limits = make, dict(settings), limits
        self.failure: Any = multiprocessing.get_context("spawn").SimpleQueue()

    def setup(self, device: str) -> None:
        """Make the experts in this worker, which ends with its server."""
        parent = multiprocessing.parent_process()
        if parent is not None and parent.pid is not None:
            end_with(parent.pid)
        try:
            self.experts = self.make(device)
        except Exception as error:
            self.failure.put(str(error))
            # The message is the server's to tell, once.
            logging.getLogger("litserve").setLevel(logging.CRITICAL + 1)
            raise

    def decode_request(self, request: Annotated[bytes, Body(media_type=CONTENT_TYPE)]) -> ScoreRequest | WireError:
        """The request, or what is wrong with it: an exception would refuse all that are scored together with it."""
        try:
            return decode_request(request, self.limits, self.experts.facts)
        except WireError as error:
            return error

    def predict(self, x: Any) -> Any:
        """Responses to one request or, with ``max_batch`` above 1, to a list of them (LitServe's default batch)."""
        responses = self.responses(x if isinstance(x, list) else [x])
        return responses if isinstance(x, list) else responses[0]

    def responses(self, asked: Sequence[ScoreRequest | WireError]) -> list[Response]:
        """One response each, in order; pictures of one size for the same experts are scored together."""
        alike: dict[Any, list[int]] = {}
        for place, request in enumerate(asked):
            if isinstance(request, ScoreRequest) and request.records:
                alike.setdefault((request.pixels.shape[2:], request.names), []).append(place)
        answers: dict[int, Answers] = {}
        for places in alike.values():
            together = scored_together(self.experts, [asked[place] for place in places])  # type: ignore[misc]
            answers |= dict(zip(places, together, strict=True))
        return [self._response(request, answers.get(place, {})) for place, request in enumerate(asked)]

    def _response(self, request: ScoreRequest | WireError, answers: Answers) -> Response:
        if isinstance(request, WireError):
            return JSONResponse({"detail": str(request)}, 413 if isinstance(request, TooLarge) else 400)
        return JSONResponse(encode_answer(self.experts.facts, self.settings, answers, len(request.records)))

    def encode_response(self, output: Response) -> Response:
        return output


def scored_together(experts: LocalExperts, requests: Sequence[ScoreRequest]) -> list[Answers]:
    """The answers to each of several requests for the same experts, of pictures of one size.

    An expert that fails on all of them is asked for each alone, so that nobody's picture is another one's failure.
    """
    names = tuple(experts.facts) if requests[0].names is None else requests[0].names
    if len(requests) == 1:
        return [experts.score(requests[0].pixels, requests[0].records, names)]
    records = [record for request in requests for record in request.records]
    whole = experts.score(torch.cat([request.pixels for request in requests]), records, names)
    parts: list[dict[str, ExpertScores | RewardError]] = []
    first = 0
    for request in requests:
        last = first + len(request.records)
        part = {}
        for name, answer in whole.items():
            if isinstance(answer, RewardError):
                part[name] = experts.score(request.pixels, request.records, (name,))[name]
            else:
                part[name] = _rows(answer, first, last)
        parts.append(part)
        first = last
    return list(parts)


def _rows(answer: ExpertScores, first: int, last: int) -> ExpertScores:
    """The part about the pictures first ... last - 1, its share of the seconds with it."""
    places = [place for place, row in enumerate(answer.rows) if first <= row < last]
    return ExpertScores(
        [answer.rows[place] - first for place in places],
        answer.scores[places],
        {name: values[places] for name, values in answer.details.items()},
        answer.seconds * len(places) / max(1, len(answer.rows)),
    )


def serve(
    api: ScoringAPI,
    *,
    host: str,
    port: int,
    token: str | None,
    accelerator: Any = "auto",
    devices: Any = "auto",
    workers: int = 1,
    timeout: float = 120.0,
    log_level: str = "warning",
) -> None:
    """Serve until interrupted. Raises RuntimeError, with the message of the worker, if one cannot make its experts."""
    server = LitServer(
        api,
        accelerator=accelerator,
        devices=devices,
        workers_per_device=workers,
        timeout=timeout,
        middlewares=[(Guard, {"token": token, "admission": Admission(api.limits.max_bytes, patience=timeout)})],
        healthcheck_path=HEALTH_PATH,
        disable_openapi_url=True,
        restart_workers=True,
    )
    # A request that a dead worker took with it is never answered; the end must not wait for it for long.
    server.uvicorn_graceful_timeout = GRACE
    # LitServe's manager and HTTP server are forked off this process.
    parent = os.getpid()
    os.register_at_fork(after_in_child=lambda: end_with(parent))
    try:
        server.run(
            host=host,
            port=port,
            num_api_servers=1,
            log_level=log_level,
            generate_client_file=False,
            **uvicorn_settings(),
        )
    except RuntimeError as error:
        raise RuntimeError(str(error) if api.failure.empty() else api.failure.get()) from error


def end_with(parent: int) -> None:
    """End this process soon after its parent `parent` has ended, however that was: a killed server leaves nothing.

    An orphan would hold the port and the experts' memory.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.2)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="end-with-parent").start()
