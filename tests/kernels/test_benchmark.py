"""The benchmark's logic on a CPU: the way through, the oracle's verdict, and when a bar counts as met."""

from __future__ import annotations

import csv
import weakref
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from kernels import Operations, TokenStatistics, operations, token_statistics
from kernels.benchmark import accuracy, clock, contestants, report
from kernels.benchmark.__main__ import _compare, main, shapes
from kernels.benchmark.contestants import Contestant, Shape
from kernels.benchmark.decoding import main as decoding_main
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


@pytest.mark.parametrize("run", [main, decoding_main], ids=["loss", "decoding"])
@pytest.mark.parametrize(
    ("held", "words", "message"),
    [
        ("times.csv", [], "holds times.csv already; give another folder, or add --overwrite"),
        ("decoding.csv", [], "holds decoding.csv already"),
        ("thesis.tex", ["--overwrite"], "holds thesis.tex, which no benchmark wrote"),
    ],
)
def test_nothing_is_written_into_somebody_elses_folder(
    tmp_path: Path, run: Any, held: str, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / held).write_text("theirs", encoding="utf-8")
    assert run(["--dry-run", "--no-compile", "--out", str(tmp_path), *words]) == 2
    assert message in capsys.readouterr().err
    assert [(path.name, path.read_text(encoding="utf-8")) for path in tmp_path.iterdir()] == [(held, "theirs")]


def test_earlier_output_may_be_written_over(tmp_path: Path) -> None:
    own = (*report.WRITTEN, report.DECODING)
    (tmp_path / "times.csv").touch()
    assert report.taken(tmp_path, own, overwrite=True) is None
    assert report.taken(tmp_path / "new", own, overwrite=False) is None
    assert "is a file" in str(report.taken(tmp_path / "times.csv", own, overwrite=True))


def test_cut_off_it_keeps_the_shapes_it_was_through_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut_off(shape: Shape, *rest: Any) -> list[Result]:
        if shape.hidden:
            raise KeyboardInterrupt
        return _compare(shape, *rest)

    monkeypatch.setattr("kernels.benchmark.__main__._compare", cut_off)
    with pytest.raises(KeyboardInterrupt):
        main(["--dry-run", "--no-compile", "--out", str(tmp_path)])
    with (tmp_path / "times.csv").open() as file:
        assert {row["hidden"] for row in csv.DictReader(file)} == {"0"}
    assert (tmp_path / "bars.csv").is_file()


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
    gradients = [c.work() for c in field]  # type: ignore[misc]
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
    judged = {bar.name.split(": ", 1)[1]: bar.met for bar in report.bars(field, []) if bar.name.startswith("ops 2/3")}
    names = (
        "best that stores no logits: faster than Liger",
        "time beside stored logits",
        "memory beside stored logits",
    )
    assert tuple(judged.pop(name) for name in names) == met
    assert judged == {"faster than Liger": met[0], "faster than labelled only (labelled cross-entropy only)": False}


def test_every_peer_of_the_head_has_its_bar_and_an_absent_one_is_not_beaten() -> None:
    field = [
        measured(OP3, HEAD_BAR_SHAPE, 1.0, stores_logits=False),
        measured("Liger", HEAD_BAR_SHAPE, 1.4, stores_logits=False),
        replace(measured("gone", HEAD_BAR_SHAPE, 0.0, stores_logits=False), median_ms=None, status="absent: no wheel"),
    ]
    judged = {bar.name.split(": ", 1)[1]: bar for bar in report.bars(field, []) if bar.name.startswith("ops 2/3")}
    assert judged["faster than Liger"].met
    assert not judged["faster than gone"].met
    assert judged["faster than gone"].found == "absent: no wheel"
    assert [r.times_ours for r in report.beside_ours(field)] == [1.0, 1.4, None]


def peer(name: str, work: Any) -> Contestant:
    return Contestant(name, work)


def test_a_peer_with_another_gradient_or_an_error_is_reported_and_the_race_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    right = torch.ones(4)
    calls = iter(range(100))

    def late() -> Tensor:
        if next(calls) > 2:
            raise ValueError("out of memory, say")
        return right

    def never() -> Tensor:
        raise KeyError("an option that is gone")

    field = [
        peer(OP1, lambda: right),
        peer("half", lambda: 0.5 * right),
        peer("noisy", lambda: 1.01 * right),
        peer("never", never),
        peer("late", late),
        Contestant("other upstream", lambda: -right, wanted=lambda: -right),
        Contestant("other work", lambda: 3 * right, same_work=False),
        Contestant("other work, done wrong", lambda: 3 * right, same_work=False, wanted=lambda: 2 * right),
    ]
    monkeypatch.setattr(contestants, "logits_contestants", lambda *_: field)
    results = _compare(Shape(4, 8), operations("torch", "cpu"), CPU, torch.float32, 2, 1.0, 1.0, False)
    status = {r.contestant: r.status for r in results}
    assert status == {
        OP1: "measured",
        "half": "failed: another gradient",
        "noisy": "measured",
        "never": "failed: KeyError: 'an option that is gone'",
        "late": "failed: ValueError: out of memory, say",
        "other upstream": "measured",
        "other work": "measured",
        "other work, done wrong": "failed: another gradient",
    }
    assert len(results) == 16


def test_a_graph_that_cannot_be_captured_leaves_all_ungraphed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Graph:
        def replay(self) -> None: ...

    pools: list[object] = []

    def graph(_: Graph, pool: object) -> Any:
        pools.append(pool)
        return nullcontext()

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", graph)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", object)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    device = torch.device("cuda")

    def reads_back() -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    captured = clock._captured({"a": lambda: None, "b": lambda: None}, device)
    assert captured is not None
    assert captured.keys() == {"a", "b"}
    assert pools[0] is pools[1]  # or the largest shape's pools would not fit the card
    assert clock._captured({"a": lambda: None, "b": reads_back}, device) is None


def test_each_shape_is_compiled_anew_and_giving_up_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    contestants._COMPILED["old"] = None
    seen: list[object] = []

    def field(*_: object) -> list[Contestant]:
        def work() -> Tensor:
            seen.append(torch._dynamo.config.fail_on_recompile_limit_hit)
            return torch.ones(1)

        seen.append(dict(contestants._COMPILED))
        return [peer(OP1, work)]

    monkeypatch.setattr(contestants, "logits_contestants", field)
    _compare(Shape(4, 8), operations("torch", "cpu"), CPU, torch.float32, 1, 1.0, 1.0, True)
    assert seen[0] == {}
    assert len(seen) > 1
    assert all(flag is True for flag in seen[1:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", [{}, {"kl": "exact", "entropy": True, "guidance_scale": 5.0}])
def test_the_heads_oracle_passes_what_is_right_and_stops_what_is_not(
    triton_ops: Operations, dtype: torch.dtype, case: dict[str, Any]
) -> None:
    data = contestants.from_hidden(Shape(7, 300, 32), CPU, dtype)
    assert accuracy.hold_head_to_oracle(triton_ops, data, **case) < (1e-4 if dtype == torch.float32 else 0.5)

    def wrong(name: str, change: Any) -> Operations:
        original = getattr(triton_ops, name)
        return replace(triton_ops, **{name: lambda *a, **k: change(original(*a, **k))})

    def moved(result: Any) -> Any:
        return result._replace(statistics=result.statistics._replace(logp=result.statistics.logp - 2.0))

    steep = wrong("head_statistics", lambda s: s._replace(logp=s.logp + 0.1 * (s.logp - s.logp.detach())))
    with pytest.raises(accuracy.Failed, match="op 2: the gradient"):
        accuracy.hold_head_to_oracle(steep, data, **case)
    with pytest.raises(accuracy.Failed, match="op 3: the gradient"):
        accuracy.hold_head_to_oracle(wrong("one_pass_head", lambda r: r._replace(loss=1.1 * r.loss)), data, **case)
    with pytest.raises(accuracy.Failed, match="op 3: logp off"):
        accuracy.hold_head_to_oracle(wrong("one_pass_head", moved), data, **case)


def test_what_a_failed_work_held_is_free_while_the_others_run() -> None:
    held: list[weakref.ref[Tensor]] = []

    def fails() -> None:
        large = torch.ones(8)
        held.append(weakref.ref(large))
        try:
            raise ValueError(f"inside, with {len(large)}")
        except ValueError as error:
            raise RuntimeError("outside") from error

    def others() -> None:
        assert [reference() for reference in held] == [None] * len(held)

    timings, failed = clock.measure({"fails": fails, "others": others}, CPU, 2, cold=True)
    assert timings.keys() == {"others"}
    assert str(failed["fails"]) == "outside"
    assert held


def test_contestants_take_turns_and_quantiles_are_those_of_the_rounds() -> None:
    order: list[str] = []
    works = {name: lambda name=name: order.append(name) for name in ("a", "b", "c")}
    timings, failed = clock.measure(works, CPU, rounds=3, cold=True)
    assert not failed
    assert "".join(order[9:]) == "abcbcacab"  # after three runs each to warm up
    assert all(t.p10 <= t.median <= t.p90 and not t.replayed for t in timings.values())
