"""Rows, bars and files; and the whole way on the tiny model."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from kernels import operations
from src.benchmark import rollouts, train_step
from src.benchmark.__main__ import COMMAND, _of_size
from src.benchmark.rollouts import Bench, beside_ours
from src.benchmark.rows import OURS, TRAIN_STEP, Row, bars, table
from src.cli import command as cli
from src.policies.base import EngineSettings

STEP = Row("image_step", "7b", 16, OURS, seconds=4.0, ms_per_token=6.94)
PEERS = [
    Row("peers", "7b", 16, OURS, seconds=4.0),
    Row("peers", "7b", 16, "T2I-R1's loop", seconds=20.0),
    Row("peers", "7b", 16, "transformers generate", seconds=8.0),
    Row("peers", "7b", 16, "transformers generate, compiled (default)", seconds=5.0),
    Row("peers", "7b", 16, "transformers generate, compiled (reduce-overhead)", status="failed", note="X"),
]


def test_the_best_form_of_a_peer_counts() -> None:
    found = {bar.name: bar for bar in bars([STEP, *beside_ours(PEERS)], "NVIDIA H200")}
    assert found["7b, 16 images, a token step"].met is True
    assert found["7b, images/s against T2I-R1's loop"].found == "5.00x"
    assert found["7b, images/s against T2I-R1's loop"].met is True
    assert found["7b, images/s against transformers generate"].found == "1.25x"
    assert found["7b, images/s against transformers generate"].met is False


def test_a_peer_that_never_ran_is_not_beaten() -> None:
    rows = beside_ours([PEERS[0], replace(PEERS[1], status="failed", seconds=None)])
    assert [bar.met for bar in bars(rows, "NVIDIA H200")] == [False, False]


@pytest.mark.parametrize(("ms", "met"), [(7.0, True), (7.01, False)])
def test_times_count_on_the_card_they_were_promised_for(ms: float, met: bool) -> None:
    row = replace(STEP, ms_per_token=ms)
    assert bars([row], "NVIDIA H200")[0].met is met
    assert bars([row], "NVIDIA H100 80GB HBM3")[0].met is None


def test_the_whole_step_has_a_time_and_a_peak() -> None:
    row = Row("train_step", "7b", 16, TRAIN_STEP, seconds=9.5, peak_gib=39.0)
    assert [bar.met for bar in bars([row], "NVIDIA H200")] == [False, True]
    assert [bar.met for bar in bars([replace(row, what="whole step, guided")], "NVIDIA H200")] == []


def test_failures_are_shown_with_their_reason() -> None:
    assert "failed" in table(PEERS)
    assert table(PEERS).splitlines()[-1].endswith("(reduce-overhead): X")


def test_a_part_leaves_no_memory_to_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the whole step's peak would be that of the largest rollout measured before it."""
    held: list[int] = []

    def measured(bench: Bench, *_: object) -> list[Row]:
        held.append(bench.policy._keeper.memory.bytes)
        return []

    monkeypatch.setattr(rollouts, "image_steps", lambda bench, *_: [bench.images(2)] and measured(bench))
    monkeypatch.setattr(train_step, "train_step", measured)
    config = SimpleNamespace(rounds=1, images=[2], scaling=[2], parts=["scaling", "train_step"], group_size=2)
    config.memory_gib = 40.0
    device = torch.device("cpu")
    _of_size("tiny", config, device, 1.0, operations("torch", device), EngineSettings())
    assert held[0] > 0
    assert held[1] == 0


@pytest.mark.parametrize(
    ("held", "overwrite", "message"),
    [
        ("cpu.csv", False, "is not empty; choose another folder or add overwrite=true"),
        ("thesis.tex", False, "is not empty"),
        ("thesis.tex", True, "holds thesis.tex, which this command did not write"),
    ],
)
def test_somebody_elses_folder_is_refused_before_anything_is_measured(
    tmp_path: Path, held: str, overwrite: bool, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / held).write_text("theirs", encoding="utf-8")
    words = ["sizes=[tiny]", "rounds=1", f"out={tmp_path}", f"overwrite={overwrite}"]
    assert cli.run(COMMAND, words) == 2
    assert message in capsys.readouterr().err
    assert [(path.name, path.read_text(encoding="utf-8")) for path in tmp_path.iterdir()] == [(held, "theirs")]


@pytest.mark.slow
def test_the_whole_way_on_the_tiny_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["sizes=[tiny]", "images=[4]", "scaling=[2,4]", "rounds=1", "group_size=2", "compile=false"]
    assert cli.run(COMMAND, [*arguments, f"out={tmp_path}"]) == 0
    with (tmp_path / "cpu.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["section"] for row in rows} == {"image_step", "scaling", "ablation", "peers", "train_step"}
    assert {row["status"] for row in rows} == {"ok"}
    guided = [row for row in rows if row["section"] == "train_step" and row["what"].endswith(", guided")]
    whole, *parts = (float(row["seconds"]) for row in guided)
    assert whole == pytest.approx(sum(parts), rel=1e-3)
    assert (tmp_path / "cpu.png").stat().st_size > 5000
    assert "images/s against T2I-R1's loop" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argument", "message"),
    [("sizes=[3b]", "sizes=3b: expected some of tiny, 1b, 7b"), ("parts=[all]", "parts=all"), ("rounds=0", "rounds=0")],
)
def test_wrong_choices(argument: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(COMMAND, [argument]) == 2
    assert message in capsys.readouterr().err
