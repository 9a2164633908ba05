"""The page without a browser: what a visitor may ask for, frames in order, what is shown of them, the command."""

from __future__ import annotations

import socket
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from src.cli import command as cli
from src.cli.compose import compose
from src.demo.__main__ import COMMAND, shown
from src.demo.page import GAP, changes, cleared, enlarged, mosaic, status
from src.demo.request import CANDIDATES, GUIDANCE, SEED, TEMPERATURE, Request
from src.demo.stream import Look
from src.demo.studio import BASE, TRAINED, Frame, Result, Studio
from src.images import to_image
from src.rewards.ensemble import RewardEnsemble
from src.rewards.experts.shapes_judge import ShapesJudge
from src.trained import choose_model, load_policy
from tests.tiny_run import lora_run

PROMPT = "two green squares"


@cache
def studio() -> Studio:
    chosen = choose_model(compose([f"run={lora_run().path}"], "demo"))
    return Studio(load_policy(chosen), RewardEnsemble({"shapes": ShapesJudge()}), chosen["sampling"], trained=True)


@given(
    st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=40).filter(str.strip),
    st.floats(*GUIDANCE), st.floats(*TEMPERATURE), st.integers(*SEED), st.integers(*CANDIDATES),
)  # fmt: skip
def test_what_is_in_range_is_taken(prompt: str, guidance: float, heat: float, seed: int, candidates: int) -> None:
    request = Request(prompt, guidance, heat, float(seed), float(candidates))  # type: ignore[arg-type]
    assert (request.prompt, request.seed, request.candidates) == (prompt.strip(), seed, candidates)
    assert isinstance(request.seed, int)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (("  ", 1.5, 1.0), "prompt: is empty"),
        ((None, 1.5, 1.0), "prompt: is empty"),
        (("a" * 1001, 1.5, 1.0), "1001 letters"),
        (("\ud800", 1.5, 1.0), "half a character"),
        (("a\0", 1.5, 1.0), r"control character U\+0000"),
        (("a", 0.5, 1.0), "guidance_scale: 0.5"),
        (("a", float("nan"), 1.0), "guidance_scale: nan is not a number"),
        (("a", 1.5, 0.0), "temperature: 0.0"),
        (("a", 1.5, None), "temperature: None is not a number"),
        (("a", 1.5, 1.0, -1), "seed: -1"),
        (("a", 1.5, 1.0, 0.5), "seed: 0.5; expected an integer"),
        (("a", 1.5, 1.0, 0, 17), "candidates: 17"),
        (("a", 1.5, 1.0, 0, True), "candidates: True is not a number"),
    ],
)
def test_what_is_out_of_range_is_refused(fields: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Request(*fields)


def test_both_sides_paint_in_turn_and_the_best_is_named() -> None:
    frames = list(studio().paint(Request(PROMPT, 1.5, 1.0, 3, 3)))
    sides = [frame.side for frame in frames]
    assert sides == sorted(sides, key=(BASE, TRAINED).index)
    results = [frame for frame in frames if frame.result is not None]
    assert [frame.side for frame in results] == [BASE, TRAINED]
    assert [frame.look.finished for frame in frames] == [frame.result is not None for frame in frames]
    for frame in results:
        assert frame.result is not None
        rewards = [entry["reward"] for entry in frame.result.entries]
        assert len(rewards) == 3
        assert rewards[frame.result.best] == max(rewards)
    assert not torch.equal(results[0].look.pixels, results[1].look.pixels), "the adapter counts"  # type: ignore[arg-type]
    # The base is the base: its pictures are those of a studio without the adapter.
    chosen = choose_model(compose([], "demo"))
    alone = Studio(load_policy(chosen), RewardEnsemble({"shapes": ShapesJudge()}), studio().sampling, trained=False)
    *_, last = alone.paint(Request(PROMPT, 1.5, 1.0, 3, 3))
    assert (last.side, last.look.plans) == (BASE, results[0].look.plans)
    torch.testing.assert_close(last.look.pixels, results[0].look.pixels, atol=1e-5, rtol=0)


def test_who_leaves_holds_nobody_up() -> None:
    """An iterator that nobody asks on keeps no lock, closed or not, and a failure is raised where frames are read."""
    left = studio().paint(Request(PROMPT, 1.5, 1.0))
    next(left)
    closed = studio().paint(Request(PROMPT, 1.5, 1.0))
    next(closed)
    closed.close()  # type: ignore[attr-defined]
    *_, last = studio().paint(Request(PROMPT, 1.5, 1.0))
    assert last.result is not None
    assert len(list(left)) > 1
    broken = Studio(None, studio()._rewards, studio().sampling, trained=False)  # type: ignore[arg-type]
    with pytest.raises(AttributeError):
        next(broken.paint(Request(PROMPT, 1.5, 1.0)))


def image(**settings: Any) -> dict[str, Any]:
    return settings


def test_what_a_frame_changes() -> None:
    sides, pixels = (BASE, TRAINED), torch.linspace(0, 1, 2 * 3 * 24 * 24).view(2, 3, 24, 24)
    assert cleared(sides, image)[:4] == ["", None, "_waiting ..._", {"value": None, "visible": False}]
    plan = changes(Frame(TRAINED, Look(("p", "q"), 0, 36)), sides, "same", image)
    assert plan == ["same"] * 4 + ["p", "same", "planning ...", "same"]
    half = changes(Frame(BASE, Look(("p", "q"), 18, 36, pixels)), sides, "same", image)
    assert half[1].size == (144 * 2 + GAP, 144)
    assert half[2] == "painting: 18 of 36 tokens"
    entries = ({"scores": {}}, {"scores": {"shapes": 0.5}, "reward": 0.5, "details": {"count": 1.0}})
    done = Frame(BASE, Look(("p", "q"), 36, 36, pixels), Result(entries, 1))
    plan_text, picture, text, shown_candidates = changes(done, sides, "same", image)[:4]
    assert plan_text == "q"
    assert picture.tobytes() == enlarged(to_image(pixels[1])).tobytes()
    assert text == "**best of 2: candidate 2, reward 0.500**  \nshapes 0.50, count 1.00"
    sheet = shown_candidates["value"]
    assert shown_candidates["visible"]
    # Two tiles of 144 pixels with a border of 4 each, in a row of four; only the kept one's border is coloured.
    assert sheet.size == (4 * 152, 152 + 22)
    assert sheet.crop((156, 4, 300, 148)).tobytes() == enlarged(to_image(pixels[1]), 144).tobytes()
    assert (sheet.getpixel((0, 0)), sheet.getpixel((152, 0))) == ((255, 255, 255), (37, 99, 235))
    assert "no expert" in status(Frame(BASE, Look(("p",), 36, 36, pixels[:1]), Result(entries[:1], 0)))
    assert mosaic(pixels[:1]).size == (288, 288)


def test_no_place_of_the_machine_is_shown(tmp_path: Path) -> None:
    assert shown(str(tmp_path / "runs" / "mine")) == str(Path("runs") / "mine")
    assert shown("runs/mine") == "runs/mine"
    assert shown(compose([], "demo").model.path) == str(Path("src") / "shapes" / "checkpoint")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run={tmp}/my_rum"], "Did you mean {tmp}/my_run?"),
        (["adapter={tmp}/none"], "adapter={tmp}/none: no such folder"),
        (["port=80"], "port=80: expected"),
        (["paint_every=0"], "paint_every=0: expected an integer >= 1"),
        (["guidance_scale=0"], "guidance_scale=0.0: expected"),
        (["n=3"], "n: no such key"),
    ],
)
def test_wrong_input_gives_one_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    pytest.importorskip("gradio", reason='no gradio: pip install -e ".[demo]"')
    (tmp_path / "my_run").mkdir()
    (tmp_path / "my_run" / "config.yaml").write_text("model: {path: x}")
    assert cli.run(COMMAND, [argument.format(tmp=tmp_path) for argument in arguments]) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert len(told) == 1
    assert message.format(tmp=tmp_path) in told[0]


def test_without_gradio_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("src.demo.__main__.find_spec", lambda name: None)
    assert cli.run(COMMAND, []) == 2
    assert capsys.readouterr().err.strip() == 'error: demo: Gradio is missing; pip install -e ".[demo]"'


def test_a_port_that_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("gradio", reason='no gradio: pip install -e ".[demo]"')
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert cli.run(COMMAND, [f"port={taken.getsockname()[1]}"]) == 2
    assert "already in use" in capsys.readouterr().err
