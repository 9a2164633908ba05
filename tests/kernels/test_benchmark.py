"""The benchmark's logic on a CPU: the way through, the oracle's verdict, and when a bar counts as met."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from kernels import Operations, TokenStatistics, operations, token_statistics
from kernels.benchmark import accuracy, clock, contestants, report
from kernels.benchmark.__main__ import main, shapes
from kernels.benchmark.contestants import Shape
from kernels.benchmark.report import HEAD_BAR_SHAPE, OP1, OP1_BAR_SHAPES, OP2, OP3, STORED, Result

CPU = torch.device("cpu")


def test_a_dry_run_goes_all_the_way_and_says_what_is_absent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--dry-run", "--no-compile", "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "agrees with float64" in said
    assert "torch.compile                    absent: left out" in said
    assert "NOT MET  op 1 at 4608 x 16384: share of the copy bandwidth: not measured" in said
    with (tmp_path / "times.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["cache"] for row in rows} == {"cold", "hot"}
    assert all(row["torch"] == torch.__version__ and row["commit"] for row in rows)
    ours = [row for row in rows if row["contestant"].startswith("ours")]
    assert all(row["status"] == "measured" and float(row["median_ms"]) > 0 for row in ours)
    assert (tmp_path / "times.png").read_bytes().startswith(b"\x89PNG")
    assert len((tmp_path / "accuracy.csv").read_text().splitlines()) == 5


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main([]) == 2
    assert "no GPU" in capsys.readouterr().err


def test_the_real_shapes_include_those_of_the_bars() -> None:
    assert {(s.tokens, s.hidden, s.vocabulary) for s in shapes(dry=False)} >= {*OP1_BAR_SHAPES, HEAD_BAR_SHAPE}


def test_all_contestants_that_claim_the_same_work_give_the_same_gradient(triton_ops: Operations) -> None:
    data = contestants.from_logits(Shape(6, 50), CPU, torch.float32)
    field = [c for c in contestants.logits_contestants(data, triton_ops, compile_=False) if c.work is not None]
    assert len(field) >= 2
    gradients = [c.work()[0] for c in field]  # type: ignore[misc]
    hidden = contestants.from_hidden(Shape(6, 50, 8), CPU, torch.float32)
    field = contestants.hidden_contestants(hidden, triton_ops, compile_=False)
    same = [c.work() for c in field if c.work is not None and c.same_work]
    assert len(same) >= 5
    for group in (gradients, same):
        for other in group[1:]:
            torch.testing.assert_close(other, group[0], rtol=1e-4, atol=1e-5)


def test_the_oracle_passes_what_is_right_and_stops_what_is_not(triton_ops: Operations) -> None:
    data = contestants.from_logits(Shape(6, 300), CPU, torch.bfloat16)
    assert accuracy.hold_to_oracle(triton_ops, data) < 1e-5

    def off(logits: Tensor, ids: Tensor, **options: object) -> TokenStatistics:
        right = token_statistics(logits, ids, **options)  # type: ignore[arg-type]
        return right._replace(logp=right.logp * 1.0001)

    with pytest.raises(accuracy.Failed, match="log-prob off by"):
        accuracy.hold_to_oracle(SimpleNamespace(name="off", token_statistics=off), data)  # type: ignore[arg-type]


def test_small_differences_are_lost_in_bf16_and_not_here(triton_ops: Operations) -> None:
    table = list(accuracy.k3_table(triton_ops, 48, 512, CPU))
    assert [row.apart for row in table] == sorted(row.apart for row in table)
    assert all(row.ours < 1e-3 < row.torch_bfloat16 for row in table)


def measured(name: str, shape: tuple[int, int, int], median: float, **facts: object) -> Result:
    tokens, hidden, vocabulary = shape
    made = Result("x", tokens, hidden, vocabulary, name, "cold", "measured", median_ms=median)
    return replace(made, **facts)  # type: ignore[arg-type]


def test_bars_are_met_by_figures_and_by_nothing_else() -> None:
    nothing = report.bars([], [])
    assert not any(bar.met for bar in nothing)

    shape = OP1_BAR_SHAPES[0]
    liger = measured("Liger", shape, 2.0)
    field = [measured(OP1, shape, 1.0, copy_share=0.86), measured("eager", shape, 3.0), liger]
    met = {bar.name: bar.met for bar in report.bars(field, [])}
    where = f"op 1 at {shape[0]} x {shape[2]}"
    assert met[f"{where}: share of the copy bandwidth"]
    assert met[f"{where}: faster than eager"]
    absent = replace(liger, median_ms=None, status="absent: not installed")
    judged = {bar.name: bar for bar in report.bars([*field[:2], absent], [])}
    assert not judged[f"{where}: faster than Liger"].met
    assert judged[f"{where}: faster than Liger"].found == "absent: not installed"
    slow = [measured(OP1, shape, 4.0, copy_share=0.84), *field[1:]]
    assert not any(bar.met for bar in report.bars(slow, []) if bar.name.startswith(where))


@pytest.mark.parametrize(
    ("fastest", "stored", "extra", "rival", "met"),
    [(1.0, 1.0, 9, 1.3, (True, True, True)), (1.2, 1.0, 10, 1.5, (False, False, False))],
)
def test_the_heads_bars(fastest: float, stored: float, extra: int, rival: float, met: tuple[bool, bool, bool]) -> None:
    field = [
        measured(OP2, HEAD_BAR_SHAPE, 2.0, stores_logits=False, extra_bytes=9),
        measured(OP3, HEAD_BAR_SHAPE, fastest, stores_logits=False, extra_bytes=extra),
        measured(STORED, HEAD_BAR_SHAPE, stored, extra_bytes=100),
        measured("Liger", HEAD_BAR_SHAPE, rival, stores_logits=False),
        measured("labelled only", HEAD_BAR_SHAPE, 0.1, stores_logits=False, same_work=False),
    ]
    found = [bar.met for bar in report.bars(field, []) if bar.name.startswith("ops 2/3")]
    assert tuple(found) == met


def test_contestants_take_turns_and_quantiles_are_those_of_the_rounds() -> None:
    order: list[str] = []
    works = {name: lambda name=name: order.append(name) for name in ("a", "b", "c")}
    timings = clock.measure(works, CPU, rounds=3, cold=True)
    assert "".join(order[9:]) == "abcbcacab"  # after three runs each to warm up
    assert all(t.p10 <= t.median <= t.p90 and not t.replayed for t in timings.values())
    assert operations("torch", "cpu").name == "torch"
