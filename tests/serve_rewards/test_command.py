"""``python -m src.serve_rewards``: what it refuses, and real servers that are asked, attacked, killed and restarted."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from src import build
from src.cli import command as cli
from src.cli.compose import compose
from src.config.errors import UserError
from src.rewards.experts.shapes_judge import ShapesJudge
from src.rewards.local import LocalExperts
from src.rewards.remote import RemoteExperts, RemoteSettings, RewardServerError
from src.rewards.wire import CONTENT_TYPE, MAGIC, encode_answer
from src.serve_rewards.command import COMMAND
from src.shapes.splits import split_prompts, to_record
from tests import tiny_run
from tests.rewards.test_remote import serving
from tests.training.runs import environment
from tests.training.test_resume import at_batch

TOKEN = "a-token-of-some-length"
READY = 120.0


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def endless(sent: list[int]) -> Iterator[bytes]:
    """Chunks of a body of 100 MB; `sent` tells how far it got."""
    for _ in range(10_000):
        sent.append(10_000)
        yield bytes(10_000)


class Server:
    """A server in a process group of its own; `start` waits until it is ready."""

    def __init__(self, log: Path, *overrides: str, token: str | None = None) -> None:
        self.log, self.port = log, free_port()
        self.command = [sys.executable, "-m", "src.serve_rewards", f"port={self.port}", "accelerator=cpu", *overrides]
        self.environment = environment() | ({} if token is None else {build.TOKEN_VARIABLE: token})
        self.url = f"http://127.0.0.1:{self.port}"

    def start(self) -> Server:
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                self.command,
                env=self.environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
                # Tests that a shell runs in the background hand down that Ctrl-C is to be ignored.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )
        deadline = time.monotonic() + READY
        while self.request("GET", "/health")[0] != 200:
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.1)
        return self

    def request(
        self, method: str, path: str, body: bytes | Iterator[bytes] | None = None, **headers: str
    ) -> tuple[int, bytes]:
        """One request as it is: status (0: none) and content."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
            answer = connection.getresponse()
            return answer.status, answer.read()
        except (OSError, http.client.HTTPException):
            return 0, b""
        finally:
            connection.close()

    def kill(self) -> None:
        """As the kernel does it: the first process at once, without a word to the others."""
        self.process.kill()
        self.process.wait()

    def stop(self, number: int = signal.SIGINT) -> int:
        self.process.send_signal(number)
        return self.process.wait(30)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Makes servers; none outlives its test."""
    made: list[Server] = []

    def make(*overrides: str, token: str | None = None) -> Server:
        made.append(Server(tmp_path / f"server{len(made)}.log", *overrides, token=token))
        return made[-1]

    yield make
    for one in made:
        if hasattr(one, "process"):
            one.process.kill()
            one.process.wait()


def request_of(size: list[int], png: bytes) -> bytes:
    """A request with one picture, said to be of `size` (height, width)."""
    header = {"names": None, "records": [{"prompt": "x"}], "record_of": [0], "bytes": [len(png)], "size": size}
    text = json.dumps(header).encode()
    return MAGIC + len(text).to_bytes(4, "big") + text + png


def png_of(size: tuple[int, int]) -> bytes:
    file = BytesIO()
    Image.new("RGB", size).save(file, format="PNG")
    return file.getvalue()


def refused(capsys: pytest.CaptureFixture[str], *overrides: str) -> str:
    assert cli.run(COMMAND, list(overrides)) == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("host", ["0.0.0.0", "'::'"])  # noqa: S104
def test_other_machines_need_a_token(host: str, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.delenv(build.TOKEN_VARIABLE, raising=False)
    told = refused(capsys, f"host={host}")
    assert told.startswith(f"error: host={host.strip(chr(39))}: other machines could use this server; give a token")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["host=example.org"], ["host=example.org: expected one of 127.0.0.1"]),
        (["port=80"], ["port=80: expected an integer >= 1024 and <= 65535"]),
        (["max_images=0"], ["max_images=0"]),
        (["rewards.remote.url=http://a:1"], ["rewards.remote.url: a server scores by itself"]),
        (["token_file=/nowhere/token"], ["token_file=/nowhere/token: cannot be read"]),
        (["+rewards.devices.shapes=cuda:77"], ["rewards.devices.shapes=cuda:77: no such device"]),
        (["+rewards.devices.shape=cpu"], ["rewards.devices.shape: no such expert; there are shapes"]),
        (["+rewards.devices.shapes=gpu"], ["rewards.devices.shapes=gpu: no such device", "offload"]),
    ],
)
def test_wrong_settings_are_refused(overrides: list[str], words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    told = refused(capsys, *overrides)
    assert all(word in told for word in words), told


def test_a_port_that_is_taken_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"port={port}: cannot listen on 127.0.0.1" in refused(capsys, f"port={port}")


def test_without_the_extra_it_says_how_to_get_it(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert 'pip install -e ".[serve]"' in refused(capsys)


@pytest.mark.parametrize("token", ["short", "with a space in it, and long", "ümlaut-of-some-length", ""])
def test_a_token_that_is_none_is_refused(token: str, tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "token").write_text(token + "\n", encoding="utf-8")
    with pytest.raises(UserError, match="secrets"):
        build.remote_token(str(tmp_path / "token"))
    monkeypatch.setenv(build.TOKEN_VARIABLE, token)
    with pytest.raises(UserError, match=f"^{build.TOKEN_VARIABLE}: a token has at least 16"):
        build.remote_token(None)


def test_a_token_comes_from_its_file_or_the_environment(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.delenv(build.TOKEN_VARIABLE, raising=False)
    assert build.remote_token(None) is None
    monkeypatch.setenv(build.TOKEN_VARIABLE, TOKEN)
    assert build.remote_token(None) == TOKEN
    (tmp_path / "token").write_text("another-token-of-length\n")
    assert build.remote_token(str(tmp_path / "token")) == "another-token-of-length"


def test_a_run_says_at_once_that_no_server_answers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from src.train import COMMAND as TRAIN

    url = f"http://127.0.0.1:{free_port()}"
    line = [*tiny_run.SHORT, f"run.dir={tmp_path / 'run'}", f"rewards.remote.url={url}", "rewards.remote.retries=0"]
    assert cli.run(TRAIN, line) == 2
    told = capsys.readouterr().err
    assert f"error: rewards.remote.url={url}: " in told
    assert "no answer after 1 attempts" in told
    assert not (tmp_path / "run").exists()


def test_an_expert_with_a_place_of_its_own_stays_here() -> None:
    config = compose(["rewards.remote.url=http://127.0.0.1:1", "+rewards.devices.shapes=cpu"])
    assert build.build_rewards(config).names == ("shapes",), "no server was asked"


def test_an_expert_made_otherwise_there_is_told() -> None:
    local = LocalExperts({"shapes": ShapesJudge()})
    there = {"shapes": {"_target_": "src.rewards.experts.shapes_judge.ShapesJudge", "bonus": 0.3}}
    answer = json.dumps(encode_answer(local.facts, there, {}, 0)).encode()
    with serving(lambda body: (200, answer)) as served:
        line = [f"rewards.remote.url={served.url}", "+rewards.experts.shapes.bonus=0.5"]
        with pytest.warns(UserWarning, match=r"rewards\.experts\.shapes: the server made it with .*0\.3.*says.*0\.5"):
            build.build_rewards(compose(line))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            build.build_rewards(compose([line[0], "+rewards.experts.shapes.bonus=0.3"]))


@pytest.mark.slow
def test_a_server_with_a_token_limits_and_workers(server: Callable[..., Server], tmp_path: Path) -> None:
    """A real one: who may ask, what may be asked, that batches of several clients come back right, how it ends."""
    one = server("workers=2", "max_batch=4", "max_images=20", "max_bytes=300000", token=TOKEN).start()
    binary = {"Content_Type": CONTENT_TYPE}
    assert one.request("GET", "/health") == (200, b"ok")
    for path in ("/", "/info", "/score", "/docs", "/openapi.json"):
        assert one.request("GET", path)[0] == 401
    assert one.request("POST", "/score", b"x", **binary)[0] == 401
    with pytest.raises(RewardServerError, match=r"HTTP 401.*token_file"):
        RemoteExperts(RemoteSettings(one.url, token="a-wrong-token-of-length"), ["shapes"])
    allowed = {"Authorization": f"Bearer {TOKEN}"}
    assert one.request("POST", "/score", b"x", **binary, **allowed)[0] == 400
    assert one.request("POST", "/score", b"", **binary, **allowed)[0] == 400
    assert one.request("POST", "/score", b"{}", Content_Type="application/json", **allowed)[0] == 415
    assert one.request("POST", "/score", bytes(300_001), **binary, **allowed)[0] == 413
    # Without a length, for ever: the answer comes before the end does.
    sent: list[int] = []
    status = one.request("POST", "/score", endless(sent), **binary, **allowed)[0]
    assert status in (0, 411)  # it may close before all of it could be sent
    large, png = [9000, 9000], png_of((9000, 9000))
    (status, said) = one.request("POST", "/score", request_of(large, png), **binary, **allowed)
    assert (status, b"max_picture_pixels" in said) == (413, True)
    (status, said) = one.request("POST", "/score", request_of([24, 24], png), **binary, **allowed)
    assert (status, b"the header says RGB of (24, 24)" in said) == (400, True)
    assert one.request("GET", "/health") == (200, b"ok")
    assert one.request("GET", "/docs", **allowed)[0] == 404

    remote = RemoteExperts(RemoteSettings(one.url, token=TOKEN, retries=0), ["shapes"])
    records = [to_record(prompt) for prompt in split_prompts("validation")[:21]]
    pixels = (torch.rand(21, 3, 24, 24) * 255).round() / 255
    with pytest.raises(RewardServerError, match=r"HTTP 413.*max_images=20"):
        remote.score(pixels, records, ["shapes"])
    expected, _ = ShapesJudge().score(pixels, records)
    got: dict[int, Any] = {}

    def ask(place: int) -> None:
        rows = slice(place, place + 3)
        got[place] = remote.score(pixels[rows], records[rows], ["shapes"])["shapes"]

    threads = [threading.Thread(target=ask, args=(place,)) for place in range(0, 18, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert torch.equal(torch.cat([got[place].scores for place in range(0, 18, 3)]), expected[:18])

    dying = [number for number, line in processes_of(one.process.pid).items() if "spawn_main" in line]
    assert len(dying) == 2
    for number in dying:
        os.kill(number, signal.SIGKILL)
    patient = RemoteExperts(RemoteSettings(one.url, token=TOKEN), ["shapes"])
    again = patient.score(pixels[:20], records[:20], ["shapes"])["shapes"]
    assert torch.equal(again.scores, expected[:20]), "both workers died and came back"
    assert one.stop() == 0
    assert one.request("GET", "/health")[0] == 0
    assert TOKEN not in one.log.read_text()


@pytest.mark.slow
def test_silent_connections_do_not_keep_a_run_out(server: Callable[..., Server]) -> None:
    """More of them than the server keeps, half of them in the middle of a head; none of them has the token."""
    one = server(token=TOKEN).start()
    with ExitStack() as open_:
        for number in range(300):
            connection = open_.enter_context(socket.create_connection(("127.0.0.1", one.port), timeout=10))
            connection.sendall(b"POST /score HTTP/1.1\r\nX: " if number % 2 else b"")
        begin = time.monotonic()
        remote = RemoteExperts(RemoteSettings(one.url, token=TOKEN, retries=0, timeout=10), ["shapes"])
        records = [to_record(prompt) for prompt in split_prompts("validation")[:2]]
        pixels = (torch.rand(2, 3, 24, 24) * 255).round() / 255
        got = remote.score(pixels, records, ["shapes"])["shapes"]
        assert torch.equal(got.scores, ShapesJudge().score(pixels, records)[0])
        assert time.monotonic() - begin < 10


@pytest.mark.slow
def test_an_answer_that_never_comes_does_not_hold_up_the_end(server: Callable[..., Server]) -> None:
    one = server(token=TOKEN).start()
    (worker,) = [number for number, line in processes_of(one.process.pid).items() if "spawn_main" in line]
    os.kill(worker, signal.SIGSTOP)
    with pytest.raises(RewardServerError, match="no answer after 1 attempts in 2 s"):
        RemoteExperts(RemoteSettings(one.url, token=TOKEN, retries=0, timeout=2.0), ["shapes"])
    begin = time.monotonic()
    assert one.stop() == 0
    # 5 s for the answer and 5 s for the worker; it was 30 s and 5 s.
    assert time.monotonic() - begin < 25
    assert left_behind(one.process.pid) == {}


@pytest.mark.slow
def test_a_server_whose_experts_cannot_be_made_ends_with_one_message(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "src.serve_rewards", f"port={free_port()}", "accelerator=cpu"]
    command.append("+rewards.experts.shapes.bonus=7")
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=READY, check=False)
    assert done.returncode == 2, done.stderr
    assert "error: rewards.experts.shapes: " in done.stderr
    assert "bonus 7 must lie in [0, 1]" in done.stderr
    assert "Traceback" not in done.stderr


def processes_of(group: int) -> dict[int, str]:
    """The living processes of a process group: command lines by id."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, _, their_group = (folder / "stat").read_text().rpartition(")")[2].split()[:3]
            if state != "Z" and int(their_group) == group:
                found[int(folder.name)] = (folder / "cmdline").read_text().replace("\0", " ")
        except OSError:  # it ended while we looked
            continue
    return found


def left_behind(group: int) -> dict[int, str]:
    """What lives on of a group that has ended; Python's own resource tracker takes a moment to notice it."""
    deadline = time.monotonic() + 10
    while processes_of(group) and time.monotonic() < deadline:
        time.sleep(0.1)
    return processes_of(group)


@pytest.mark.slow
def test_a_server_killed_in_mid_run_and_restarted_changes_nothing(
    server: Callable[..., Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The run waits for it and ends with the weights of a run with the same experts in its own process."""
    one = server("rewards=shapes").start()
    steps = ("trainer.max_steps=4", "optim.lr=1e-2", "rollout.group_size=4")
    restarts: list[threading.Thread] = []

    def disaster() -> None:
        """Everything of the server dies when it has the step's pictures and owes the scores."""
        answer = http.client.HTTPConnection.getresponse

        def unanswered(connection: http.client.HTTPConnection) -> Any:
            patch.setattr(http.client.HTTPConnection, "getresponse", answer)
            os.killpg(one.process.pid, signal.SIGKILL)
            one.process.wait()
            restarts.append(threading.Thread(target=lambda: (time.sleep(1.0), one.start())))
            restarts[0].start()
            return answer(connection)

        patch.setattr(http.client.HTTPConnection, "getresponse", unanswered)

    with monkeypatch.context() as patch:
        at_batch(patch, 2, disaster)
        served = tiny_run.train(tmp_path / "served", f"rewards.remote.url={one.url}", *steps)
    assert len(restarts) == 1
    restarts[0].join()
    assert f"rewards: {one.url}: " in capfd.readouterr().err
    local = tiny_run.train(tmp_path / "local", *steps)
    ours, theirs = tiny_run.last_state(served), tiny_run.last_state(local)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert served.rollouts.read_text() == local.rollouts.read_text()
    # Killed alone, its first process leaves nothing behind: the others would hold its port and its memory.
    group = one.process.pid
    one.kill()
    assert left_behind(group) == {}
