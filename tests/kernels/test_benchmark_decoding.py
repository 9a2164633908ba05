"""The decode step's benchmark on a CPU: the way through, the oracle's verdict, and what the contestants compute."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kernels import Operations, decoding, operations
from kernels.benchmark.accuracy import Failed
from kernels.benchmark.decoding import compare, contestants, hold_to_oracle, main, random_data, steps

CPU = torch.device("cpu")
STEP = steps(dry=True)[0]


def test_a_dry_run_goes_all_the_way(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--dry-run", "--no-compile", "--out", str(tmp_path)]) == 0
    assert "tiny, 4 rows, 9 of 12 places: agrees with float64" in capsys.readouterr().out
    with (tmp_path / "decoding.csv").open() as file:
        rows = list(csv.DictReader(file))
    operations_timed = {"rotate_and_store", "decode_attention", "add_rms_norm", "silu_mul"}
    assert {(row["operation"], row["cache"]) for row in rows} == {
        (name, cache) for name in operations_timed for cache in ("cold", "hot")
    }
    assert all(row["status"] == "measured" and float(row["median_ms"]) > 0 and row["commit"] for row in rows)
    assert all(float(row["times_ours"]) == 1.0 for row in rows if row["contestant"] == "ours")


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main([]) == 2
    assert "no GPU" in capsys.readouterr().err


def test_the_real_steps_are_those_of_the_two_trunks() -> None:
    sizes = {(s.trunk, s.rows, s.heads * s.head_dim, s.mlp) for s in steps(dry=False)}
    assert sizes >= {("7B", 32, 4096, 11_008), ("1B", 32, 2048, 5632)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_oracle_passes_what_is_right(triton_ops: Operations, dtype: torch.dtype) -> None:
    # Three roundings at most, which the interpreter cuts off in bfloat16.
    assert hold_to_oracle(triton_ops.decoding, random_data(STEP, CPU, dtype)) < 3 * torch.finfo(dtype).eps + 1e-6


@pytest.mark.parametrize("wrong", [1.03, torch.nan])
def test_the_oracle_stops_what_is_not(wrong: float) -> None:
    def off(*arguments: Tensor) -> Tensor:
        return decoding.decode_attention(*arguments) * wrong

    ops = replace(operations("torch", "cpu").decoding, decode_attention=off)
    with pytest.raises(Failed, match="attention: off by"):
        hold_to_oracle(ops, random_data(STEP, CPU, torch.bfloat16))


def test_all_contestants_of_an_operation_give_the_same(triton_ops: Operations) -> None:
    data = random_data(STEP, CPU, torch.float32)
    field = list(contestants(data, triton_ops.decoding, STEP.filled, compile_=False))
    assert [c.name for c in field if c.operation == "decode_attention"] == [
        "ours",
        "eager torch",
        "SDPA with a mask",
        "SDPA, the host knows the length",
    ]
    for contestant in field:
        ours = next(c for c in field if c.operation == contestant.operation).work()
        got = contestant.work()
        if contestant.name.startswith("SDPA"):
            got = got[:, :, 0]  # type: ignore[index]
        torch.testing.assert_close(got, ours, rtol=1e-4, atol=1e-5)


def test_a_peer_that_fails_is_a_line_and_ours_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: Tensor) -> Tensor:
        raise RuntimeError("no")

    data, ours = random_data(STEP, CPU, torch.float32), operations("torch", "cpu").decoding
    monkeypatch.setattr(decoding, "silu_mul", broken)
    lines = [t for t in compare(STEP, data, ours, 2, 1e9, compile_=False) if t.operation == "silu_mul"]
    assert {(t.contestant, t.status) for t in lines} == {("ours", "measured"), ("eager torch", "failed: RuntimeError")}
    with pytest.raises(RuntimeError, match="no"):
        list(compare(STEP, data, replace(ours, add_rms_norm=broken), 2, 1e9, compile_=False))
