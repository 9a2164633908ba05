"""The interpreted sampling kernel: the ids of plain torch, whatever the block size, and float64 figures."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from kernels import Draws, Operations, sample_tokens
from kernels.triton import sampling
from kernels.triton.rows import Launch
from tests.kernels.sampling_cases import (
    EXTREME_UNIFORMS,
    LAST_UNIFORM,
    SETTINGS,
    evenly,
    inputs,
    name_of,
    probabilities,
)


def check(ops: Operations, case: dict[str, Tensor], **setting: Any) -> Draws:
    """The kernel's draws, held to torch in float64 on the same inputs: ids to the token, figures to float32."""
    got = ops.sample_tokens(**case, **setting)
    exact = {name: x.double() for name, x in case.items()}
    want = sample_tokens(**exact, **setting)
    assert torch.equal(got.ids, want.ids)
    for name in ("logp", "entropy"):
        torch.testing.assert_close(getattr(got, name), getattr(want, name), rtol=1e-6, atol=1e-7)
    # The conditional branch is summed in float32.
    torch.testing.assert_close(got.conditional_logp, want.conditional_logp, rtol=2e-6, atol=2e-6)
    return got


# One token; shorter than a block; a block and a bit.
@pytest.mark.parametrize("v", [1, 7, 300, 1025])
@pytest.mark.parametrize("setting", SETTINGS, ids=name_of)
def test_the_ids_are_those_of_torch(triton_ops: Operations, v: int, setting: dict[str, Any]) -> None:
    for logp_of in ("sampled", "full") if len(setting) > 1 or "top_p" in setting else ("sampled",):
        check(triton_ops, inputs(2, v, spread=3.0), **setting, logp_of=logp_of)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("setting", SETTINGS, ids=name_of)
def test_half_precision_with_its_many_ties(triton_ops: Operations, dtype: torch.dtype, setting: dict[str, Any]) -> None:
    check(triton_ops, inputs(2, 300, dtype=dtype, spread=3.0), **setting)


def test_the_image_vocabulary(triton_ops: Operations) -> None:
    check(triton_ops, inputs(2, 16_384, dtype=torch.bfloat16), guidance_scale=5.0)
    check(triton_ops, inputs(1, 16_384, dtype=torch.bfloat16), top_k=100)


@pytest.mark.slow
@pytest.mark.parametrize("setting", SETTINGS, ids=name_of)
def test_the_image_vocabulary_under_every_setting(triton_ops: Operations, setting: dict[str, Any]) -> None:
    check(triton_ops, inputs(6, 16_384, dtype=torch.bfloat16), **setting, logp_of="full")


@pytest.mark.parametrize("setting", [{}, SETTINGS[-1]], ids=name_of)
def test_a_grid_of_uniforms_gives_every_token_its_share(triton_ops: Operations, setting: dict[str, Any]) -> None:
    case, n = inputs(1, 12, spread=0.8), 25
    exact = probabilities(case["logits"][0], case["unconditional"][0], setting)
    c, u = (case[name].expand(n, -1) for name in ("logits", "unconditional"))
    ids = triton_ops.sample_tokens(c, evenly(n), unconditional=u, **setting).ids
    counts = np.bincount(ids, minlength=12)
    assert (np.floor(n * exact - 1e-9) <= counts).all()
    assert (counts <= np.ceil(n * exact + 1e-9)).all()


@pytest.mark.parametrize(("block", "warps"), [(32, 1), (2048, 8)])
@pytest.mark.parametrize("setting", SETTINGS, ids=name_of)
def test_any_block_size_gives_the_same_ids(
    triton_ops: Operations, monkeypatch: pytest.MonkeyPatch, block: int, warps: int, setting: dict[str, Any]
) -> None:
    case = inputs(2, 133)
    monkeypatch.setattr(sampling, "sampling_shape", lambda vocabulary: Launch(block, warps))
    check(triton_ops, case, **setting)


@pytest.mark.parametrize("setting", [{}, SETTINGS[-1]], ids=name_of)
def test_rows_and_uniforms_may_lie_anywhere(triton_ops: Operations, setting: dict[str, Any]) -> None:
    """As in the decode loop: both branches in one tensor, the uniforms a column; and along V not contiguous."""
    stacked = torch.cat([inputs(4, 50)["logits"], inputs(4, 50, seed=1)["logits"]])
    noise = torch.rand(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    plain = {"logits": stacked[:4], "unconditional": stacked[4:], "uniform": noise[:, 1]}
    want = check(triton_ops, plain, **setting)
    wide = torch.zeros(8, 2, 64)
    wide[:, 1, :50] = stacked
    across = stacked.t().contiguous().t()
    assert across.stride() == (1, 8)
    for rows in (wide[:, 1, :50], across):
        case = {"logits": rows[:4], "unconditional": rows[4:], "uniform": noise[:, 1]}
        for got, expected in zip(triton_ops.sample_tokens(**case, **setting), want, strict=True):
            assert torch.equal(got, expected)


@pytest.mark.parametrize("level", [0.0, 80.0])
def test_equal_logits_are_uniform(triton_ops: Operations, level: float) -> None:
    case = {"logits": torch.full((8, 8), level), "uniform": evenly(8)}
    for setting in ({}, {"top_k": 1}, {"top_p": 0.3}):
        drawn = check(triton_ops, case, **setting)
        assert drawn.ids.tolist() == list(range(8))


def test_ties_are_of_mixed_logits_to_the_last_bit(triton_ops: Operations) -> None:
    pair = torch.tensor([[0.1, 2.3, 0.1, 2.3, 2.3] * 7]).expand(10, -1)
    case = {"logits": pair, "unconditional": -0.7 * pair, "uniform": evenly(10)}
    drawn = check(triton_ops, case, guidance_scale=7.3, temperature=0.9, top_k=1)
    assert all(token % 5 in (1, 3, 4) for token in drawn.ids.tolist())


@pytest.mark.parametrize("setting", SETTINGS, ids=name_of)
def test_logits_of_80_and_uniforms_at_both_ends(triton_ops: Operations, setting: dict[str, Any]) -> None:
    row = torch.linspace(-80, 80, 101)
    logits = torch.stack([row, row.flip(0), row - 200, row.where(row > 0, -80.0), row.roll(27)])
    case = {"logits": logits, "unconditional": logits.roll(1, 0) * 0.9}
    check(triton_ops, case | {"uniform": torch.tensor([0.0, 0.0, 2.0**-53, 0.3, 0.7]).double()}, **setting)
    # At the upper end masses below a rounding of the sum are no one's; here the last token's is not.
    near = {name: x / 80 for name, x in case.items()}
    check(triton_ops, near | {"uniform": torch.full((5,), LAST_UNIFORM, dtype=torch.float64)}, **setting)


def test_extreme_uniforms_give_the_ids_of_torch(triton_ops: Operations) -> None:
    """Also where tokens at the vocabulary's end have less than a rounding of the whole: sums of two orders disagree."""
    truncated = ({"top_k": 9}, {"top_p": 1 - 1e-9}, {"guidance_scale": 5.0, "top_k": 12, "top_p": 0.9999999})
    for v, seeds, spread, settings_ in (
        (2, 10, 30.0, [{}]),
        (17, 40, 20.0, [{}, {"guidance_scale": 5.0, "temperature": 0.7}]),
        (17, 5, 20.0, truncated),
        (40, 8, 60.0, [{}]),
        (1025, 5, 20.0, [{}]),
    ):
        drawn = [inputs(1, v, seed=seed, spread=spread) for seed in range(seeds)]
        rows = {
            name: torch.cat([case[name] for case in drawn for _ in EXTREME_UNIFORMS])
            for name in ("logits", "unconditional")
        }
        uniform = torch.tensor(EXTREME_UNIFORMS, dtype=torch.float64).repeat(seeds)
        for setting in settings_:
            check(triton_ops, rows | {"uniform": uniform}, **setting)


def test_uniforms_at_the_boundaries_between_tokens(triton_ops: Operations) -> None:
    """Where sums are exact the ids are equal at every boundary; where they are rounded, a little beside it."""
    for possible in (1, 2, 8, 13):
        logits = torch.full((possible, 17), -1e4)
        logits[:, [*range(16, 16 - 2 * possible, -2)] if possible < 9 else slice(2, 15)] = 0.3
        at = torch.arange(possible, dtype=torch.float64) / possible
        for setting in ({}, {"top_k": possible}, {"top_p": 1 - 1e-9}):
            check(triton_ops, {"logits": logits, "uniform": at}, **setting)
    for seed in range(10):
        case = inputs(1, 17, seed=seed)
        mass = (case["logits"].double() - case["logits"].double().amax()).exp()[0].cumsum(0)
        edges = (mass / mass[-1])[:-1]
        rows = {"logits": case["logits"].expand(16, -1).contiguous()}
        for beside, token in ((1 - 1e-11, 0), (1 + 1e-11, 1)):
            drawn = check(triton_ops, rows | {"uniform": edges * beside})
            assert drawn.ids.tolist() == [place + token for place in range(16)]
        at = triton_ops.sample_tokens(**rows, uniform=edges).ids
        assert all(got in (place, place + 1) for place, got in enumerate(at.tolist()))


@pytest.mark.parametrize("uniform", [0.0, 0.5, LAST_UNIFORM])
@pytest.mark.parametrize("possible", [(0,), (2, 5), (0, 19), (17, 18)])
def test_a_token_of_probability_zero_is_never_drawn(
    triton_ops: Operations, monkeypatch: pytest.MonkeyPatch, possible: tuple[int, ...], uniform: float
) -> None:
    monkeypatch.setattr(sampling, "sampling_shape", lambda vocabulary: Launch(16, 1))
    logits = torch.full((1, 20), -1e4)
    logits[:, list(possible)] = 0.1
    at = torch.tensor([uniform], dtype=torch.float64)
    for setting in ({}, {"top_k": 12}, {"top_p": 0.999}):
        drawn = triton_ops.sample_tokens(logits, at, **setting)
        assert drawn.ids.item() == (possible[-1] if uniform == LAST_UNIFORM else sample_tokens(logits, at).ids.item())
        assert drawn.ids.item() in possible


@pytest.mark.parametrize("size", [1e4, 1e30])
def test_extreme_logits(triton_ops: Operations, size: float) -> None:
    logits = torch.tensor([[size, -size, 0.0, size]]).expand(2, -1)
    case = {"logits": logits, "unconditional": -logits, "uniform": torch.tensor([0.1, 0.9], dtype=torch.float64)}
    for setting in ({}, {"top_k": 3}, {"top_p": 0.9}):
        drawn = check(triton_ops, case, guidance_scale=5.0, temperature=0.7, **setting)
        assert drawn.ids.tolist() == [0, 3]
        torch.testing.assert_close(drawn.entropy, torch.full((2,), math.log(2)))


@pytest.mark.parametrize("setting", SETTINGS, ids=name_of)
def test_a_row_does_not_depend_on_its_neighbours(triton_ops: Operations, setting: dict[str, Any]) -> None:
    case = inputs(5, 70)
    whole = triton_ops.sample_tokens(**case, **setting)
    alone = triton_ops.sample_tokens(**{name: x[3:4] for name, x in case.items()}, **setting)
    for got, want in zip(alone, whole, strict=True):
        assert torch.equal(got, want[3:4])


def test_a_nan_shows_in_its_own_row_alone(triton_ops: Operations) -> None:
    for place, setting in ((0, SETTINGS[-1]), (19, SETTINGS[-1]), (7, {})):
        case = inputs(3, 20)
        case["logits"][1, place] = math.nan
        drawn = triton_ops.sample_tokens(**case, **setting)
        assert drawn.logp.isnan().tolist() == [False, True, False]
        assert 0 <= drawn.ids[1].item() < 20


numbers = st.floats(-30, 30, width=16) | st.sampled_from([-1.0, 0.0, 1.0])


@settings(max_examples=30)
@given(
    st.lists(numbers, min_size=1, max_size=20),
    st.floats(0.2, 3.0),
    st.sampled_from([1.0, 1.5, 7.3]),
    st.none() | st.integers(1, 22),
    st.none() | st.floats(0.01, 1.0),
    st.floats(0, 0.999999),
    st.sampled_from(["sampled", "full"]),
)
def test_random_rows_in_small_blocks(
    triton_ops: Operations,
    values: list[float],
    tau: float,
    w: float,
    top_k: int | None,
    top_p: float | None,
    uniform: float,
    logp_of: str,
) -> None:
    case = {
        "logits": torch.tensor([values]),
        "unconditional": torch.tensor([values[::-1]]),
        "uniform": torch.tensor([uniform], dtype=torch.float64),
    }
    setting = {"temperature": tau, "guidance_scale": w, "top_k": top_k, "top_p": top_p, "logp_of": logp_of}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "sampling_shape", lambda vocabulary: Launch(16, 1))
        check(triton_ops, case, **setting)


def test_no_rows_are_no_launch(triton_ops: Operations) -> None:
    assert [tuple(x.shape) for x in triton_ops.sample_tokens(**inputs(0, 5))] == [(0,)] * 4


def test_results_go_where_they_are_wanted(triton_ops: Operations) -> None:
    case = inputs(4, 9)
    out = Draws(torch.zeros(4, dtype=torch.int64), *(torch.zeros(4) for _ in range(3)))
    given = triton_ops.sample_tokens(**case, guidance_scale=2.0, out=out)
    assert all(x is y for x, y in zip(given, out, strict=True))
    for got, want in zip(out, triton_ops.sample_tokens(**case, guidance_scale=2.0), strict=True):
        assert torch.equal(got, want)
    with pytest.raises(ValueError, match=r"out.ids: .*\(4,\)"):
        triton_ops.sample_tokens(**inputs(3, 9), out=out)


def test_what_the_kernel_does_not_compute_in_is_refused(triton_ops: Operations) -> None:
    with pytest.raises(ValueError, match=r"logits: dtype torch\.float64"):
        triton_ops.sample_tokens(**inputs(2, 5, dtype=torch.float64))
    with pytest.raises(ValueError, match="top_k=0"):
        triton_ops.sample_tokens(**inputs(2, 5), top_k=0)


class Recorded(TorchDispatchMode):
    """Names of all torch operations that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def test_beside_the_launch_nothing_runs_that_a_graph_could_not_capture(
    triton_ops: Operations, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One launch, outputs allocated or given, and no tensor operation, thus no read-back and no copy."""
    launches = []

    class Kernel:
        def __getitem__(self, grid: tuple[int, ...]) -> Any:
            return lambda *args, **options: launches.append((grid, args))

    monkeypatch.setattr(sampling, "sampling_kernel", Kernel())
    case = inputs(4, 9)
    out = Draws(torch.zeros(4, dtype=torch.int64), *(torch.zeros(4) for _ in range(3)))
    for setting in SETTINGS:
        with Recorded() as recorded:
            triton_ops.sample_tokens(**case, **setting, validate=False, out=out)
        assert recorded.names == []
        with Recorded() as recorded:
            triton_ops.sample_tokens(**case, **setting, validate=False)
        assert set(recorded.names) == {"aten.empty.memory_format"}
    assert len(launches) == 2 * len(SETTINGS)
    assert {grid for grid, _ in launches} == {(4,)}
