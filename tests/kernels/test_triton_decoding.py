"""The interpreted kernels of the decode step against plain torch in float64, on the same inputs."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels import DecodeOperations, Operations, decoding
from kernels.triton.attention import LEAST_PLACES, WARPS_A_MULTIPROCESSOR, AttentionLaunch, attend, attention_launch
from tests.kernels.problems import draw

# Relative rounding of a result. The interpreter cuts a bfloat16 off where a GPU rounds to nearest: twice as much.
ROUNDING = {torch.float32: 1e-5, torch.float16: 2**-11 * 1.01, torch.bfloat16: 2**-7}


@pytest.fixture(scope="module")
def ops(triton_ops: Operations) -> DecodeOperations:
    return triton_ops.decoding


def cache(n: int, kv_heads: int, s: int, head_dim: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Keys whose scores differ by a few, and values."""
    keys = draw(n, kv_heads, s, head_dim, seed=2, scale=3.0, dtype=dtype)
    return keys, draw(n, kv_heads, s, head_dim, seed=3, dtype=dtype)


def in_float64(q: Tensor, keys: Tensor, values: Tensor, first: Tensor, length: Tensor) -> Tensor:
    return decoding.decode_attention(q.double(), keys.double(), values.double(), first, length)


def assert_rounded(got: Tensor, want: Tensor) -> None:
    """The float64 result in got's dtype."""
    torch.testing.assert_close(got.double(), want.double(), rtol=ROUNDING[got.dtype], atol=4e-6)


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize(("query_heads", "kv_heads"), [(3, 3), (6, 2)])
@pytest.mark.parametrize("head_dim", [24, 32, 64, 128])
def test_rotation_writes_one_place_of_the_cache(
    ops: DecodeOperations, dtype: torch.dtype, query_heads: int, kv_heads: int, head_dim: int
) -> None:
    n, s, place = 2, 5, torch.tensor([3], dtype=torch.int32)
    qkv = draw(n, (query_heads + 2 * kv_heads) * head_dim, seed=1, dtype=dtype)
    cos, sin = draw(n, head_dim, seed=4), draw(n, head_dim, seed=5)
    keys, values = cache(n, kv_heads, s, head_dim, dtype)
    before = keys.clone(), values.clone()
    wide = keys.double(), values.double()
    want = decoding.rotate_and_store(qkv.double(), cos, sin, *wide, place)
    got = ops.rotate_and_store(qkv, cos, sin, keys, values, place)
    assert got.dtype == dtype
    assert_rounded(got, want)
    assert_rounded(keys, wide[0])
    assert torch.equal(values.double(), wide[1])
    others = torch.arange(s) != 3
    assert torch.equal(keys[:, :, others], before[0][:, :, others])
    assert torch.equal(values[:, :, others], before[1][:, :, others])


@pytest.mark.parametrize("place", [-1, 4, 1000])
def test_a_place_out_of_range_is_written_nowhere(ops: DecodeOperations, place: int) -> None:
    whole = torch.zeros(3, 2, 2, 4, 8)  # the cache lies between others
    keys, values = whole[1, 0][None], whole[1, 1][None]
    q = ops.rotate_and_store(draw(1, 48, seed=1), torch.ones(1, 8), torch.ones(1, 8), keys, values, torch.tensor(place))
    assert q.abs().sum() > 0
    assert not whole.any()


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize(("query_heads", "kv_heads"), [(2, 2), (6, 2), (5, 1)])
@pytest.mark.parametrize("head_dim", [24, 32, 64, 128])
def test_attention(ops: DecodeOperations, dtype: torch.dtype, query_heads: int, kv_heads: int, head_dim: int) -> None:
    q, (keys, values) = draw(3, query_heads, head_dim, seed=1, dtype=dtype), cache(3, kv_heads, 40, head_dim, dtype)
    first, length = torch.tensor([0, 5, 32], dtype=torch.int32), torch.tensor(33, dtype=torch.int32)
    got = ops.decode_attention(q, keys, values, first, length)
    assert got.dtype == dtype
    assert_rounded(got, in_float64(q, keys, values, first, length))


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_however_it_is_cut_attention_sees_its_places_and_nothing_else(data: st.DataObject) -> None:
    n, s = data.draw(st.integers(1, 2)), data.draw(st.integers(1, 24))
    kv_heads, group = data.draw(st.integers(1, 2)), data.draw(st.integers(1, 3))
    length = data.draw(st.integers(0, s))
    first = torch.tensor(data.draw(st.lists(st.integers(0, s), min_size=n, max_size=n)))
    launch = AttentionLaunch(
        block=2 ** data.draw(st.integers(1, 4)),
        heads=2 ** data.draw(st.integers(0, 2)),
        splits=data.draw(st.integers(1, 5)),
        warps=4,
    )
    q, (keys, values) = draw(n, kv_heads * group, 6, seed=s, scale=3.0), cache(n, kv_heads, s, 6)
    want = in_float64(q, keys, values, first, torch.tensor(length))
    outside = (torch.arange(s) < first[:, None]) | (torch.arange(s) >= length)
    for x in (keys, values):
        x.masked_fill_(outside[:, None, :, None], torch.nan)
    got = attend(q, keys, values, first, torch.tensor(length), 6**-0.5, launch)
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=4e-6)


@pytest.mark.parametrize("splits", [1, 3])
def test_scores_far_apart_neither_overflow_nor_vanish(splits: int) -> None:
    q, (keys, values) = draw(2, 2, 16, seed=1, scale=10.0), cache(2, 2, 48, 16)
    keys *= 5
    first, length = torch.tensor([0, 3]), torch.tensor(48)
    scores = (keys @ q[..., None]) * 16**-0.5
    assert scores.abs().max() > 300
    got = attend(q, keys, values, first, length, 16**-0.5, AttentionLaunch(4, 1, splits, 4))
    torch.testing.assert_close(got.double(), in_float64(q, keys, values, first, length), rtol=2e-4, atol=1e-4)


def test_a_row_does_not_depend_on_the_others(ops: DecodeOperations) -> None:
    launch = AttentionLaunch(8, 1, 3, 4)
    q, (keys, values) = draw(3, 2, 32, seed=1), cache(3, 2, 40, 32)
    first, length = torch.tensor([0, 9, 30]), torch.tensor(40)
    x, delta, weight, gate_up = (draw(3, 50, seed=seed) for seed in (4, 5, 6, 7))

    def answers(rows: slice) -> list[Tensor]:
        attended = attend(q[rows], keys[rows], values[rows], first[rows], length, 0.2, launch)
        return [
            attended,
            *ops.add_rms_norm(x[rows], delta[rows], weight[0], 1e-6),
            ops.silu_mul(gate_up[rows]),
        ]

    together = answers(slice(None))
    for row in range(3):
        for one, all_ in zip(answers(slice(row, row + 1)), together, strict=True):
            assert torch.equal(one[0], all_[row])


def test_places_beyond_the_cache_are_not_read(ops: DecodeOperations) -> None:
    keys, values = (x[:, :, :7] for x in cache(1, 2, 12, 16))
    q = draw(1, 2, 16, seed=1)
    got = ops.decode_attention(q, keys, values, torch.tensor([-3]), torch.tensor(12))
    assert_rounded(got, in_float64(q, keys, values, torch.tensor([0]), torch.tensor(7)))


def test_the_cache_and_all_else_may_be_views(ops: DecodeOperations) -> None:
    """A layer of all layers' cache laid out place by place; columns of a wider projection; one row for all."""
    n, heads, s, head_dim = 2, 2, 6, 8
    whole = torch.zeros(n, s, 2, heads, head_dim)
    keys, values = (whole[:, :, which].transpose(1, 2) for which in (0, 1))
    qkv, cos, sin = draw(n, 60, seed=1)[:, 5:53], draw(1, 8, seed=2).expand(2, 8), draw(8, 2, seed=3).T
    wide = torch.zeros(n, heads, s, head_dim).double(), torch.zeros(n, heads, s, head_dim).double()
    want_q = decoding.rotate_and_store(qkv.double(), cos, sin, *wide, torch.tensor(4))
    q = ops.rotate_and_store(qkv, cos, sin, keys, values, torch.tensor(4))
    assert_rounded(q, want_q)
    assert_rounded(keys, wide[0])
    assert_rounded(values, wide[1])
    values.copy_(draw(n, heads, s, head_dim, seed=6))
    turned = q.transpose(0, 1).contiguous().transpose(0, 1)
    first, length = torch.tensor([1, 9, 2])[::2], torch.tensor([5])
    assert_rounded(
        ops.decode_attention(turned, keys, values, first, length, 0.3),
        decoding.decode_attention(q.double(), keys.double(), values.double(), first, length, 0.3),
    )
    x, gate_up = draw(40, 2, seed=4).T, draw(2, 30, seed=5)[:, 3:25]
    assert_rounded(ops.add_rms_norm(x, None, x[0], 1e-6)[1], decoding.add_rms_norm(x.double(), None, x[0], 1e-6)[1])
    assert_rounded(ops.silu_mul(gate_up), decoding.silu_mul(gate_up.double()))


def test_a_cache_that_is_not_contiguous_along_a_head_is_refused(ops: DecodeOperations) -> None:
    keys = torch.zeros(2, 2, 8, 5).transpose(2, 3)
    one = torch.tensor(1)
    with pytest.raises(ValueError, match=r"keys: strides \(80, 40, 1, 5\) of shape \(2, 2, 5, 8\)"):
        ops.decode_attention(torch.zeros(2, 2, 8), keys, torch.zeros(2, 2, 5, 8), torch.zeros(2).long(), one)
    with pytest.raises(ValueError, match="values: strides"):
        ops.rotate_and_store(torch.zeros(2, 48), *torch.zeros(2, 2, 8), torch.zeros(2, 2, 5, 8), keys, one)


def test_float64_is_left_to_torch(ops: DecodeOperations) -> None:
    with pytest.raises(ValueError, match=r"gate_up: dtype torch\.float64"):
        ops.silu_mul(torch.zeros(2, 8).double())


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("width", [1, 40, 64, 300])
def test_norm_and_sum(ops: DecodeOperations, dtype: torch.dtype, width: int) -> None:
    x, delta, weight = (draw(3, width, seed=seed, dtype=dtype) for seed in range(3))
    total, normed = ops.add_rms_norm(x, delta, weight[0], 1e-5)
    assert_rounded(total, x.double() + delta.double())
    want = decoding.add_rms_norm(total, None, weight[0], 1e-5)[1]
    # Rounded twice, before and after the weight.
    torch.testing.assert_close(normed, want, rtol=3 * ROUNDING[dtype], atol=1e-6)
    same, alone = ops.add_rms_norm(total, None, weight[0], 1e-5)
    assert same is total
    assert torch.equal(alone, normed)


def test_a_float32_weight_gives_a_float32_norm(ops: DecodeOperations) -> None:
    x, weight = draw(2, 48, seed=1, dtype=torch.float16), draw(48, seed=2)
    normed = ops.add_rms_norm(x, None, weight, 1e-6)[1]
    want = decoding.add_rms_norm(x, None, weight, 1e-6)[1]
    assert normed.dtype == want.dtype == torch.float32
    torch.testing.assert_close(normed, want, rtol=2**-10, atol=0)


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("width", [1, 50, 1100])
@pytest.mark.filterwarnings("ignore:overflow encountered in exp:RuntimeWarning")  # of the interpreter
def test_silu_mul(ops: DecodeOperations, dtype: torch.dtype, width: int) -> None:
    gate_up = draw(2, 2 * width, seed=1, scale=5.0, dtype=dtype)
    gate_up[0, 0] = -200.0 if dtype == torch.float16 else -1e30  # exp(-gate) is more than float32 holds
    got = ops.silu_mul(gate_up)
    assert got.dtype == dtype
    want = decoding.silu_mul(gate_up.double())
    torch.testing.assert_close(got.double(), want, rtol=2.02 * ROUNDING[dtype], atol=1e-6)


def test_no_row_is_no_launch(ops: DecodeOperations) -> None:
    empty, one, none = torch.zeros(0, 2, 5, 8), torch.tensor(1), torch.zeros(0).long()
    q = ops.rotate_and_store(torch.zeros(0, 48), torch.zeros(0, 8), torch.zeros(0, 8), empty, empty, one)
    assert ops.decode_attention(q, empty, empty, none, one).shape == (0, 2, 8)
    assert ops.add_rms_norm(torch.zeros(0, 8), torch.zeros(0, 8), torch.ones(8), 1e-6)[1].shape == (0, 8)
    assert ops.silu_mul(torch.zeros(0, 8)).shape == (0, 4)


@pytest.mark.parametrize(
    ("rows", "kv_heads", "wanted"),
    [(32, 32, (16, 1, 1, 4)), (32, 16, (32, 1, 1, 8)), (2, 32, (32, 1, 8, 8)), (1, 32, (32, 1, 16, 8))],
)
def test_the_real_trunks_fill_an_h200(rows: int, kv_heads: int, wanted: tuple[int, ...]) -> None:
    """7B and 1B, 16 images guided: one share is enough; few rows are cut."""
    assert attention_launch(rows, kv_heads, 1, 1000, 128, 132) == AttentionLaunch(*wanted)


@given(
    rows=st.integers(1, 512),
    kv_heads=st.sampled_from([1, 2, 8, 16, 32]),
    group=st.integers(1, 16),
    places=st.integers(1, 5000),
    head_dim=st.sampled_from([24, 64, 128, 256]),
    multiprocessors=st.sampled_from([1, 108, 132]),
)
def test_work_is_cut_as_far_as_the_card_and_the_cache_ask_for(
    rows: int, kv_heads: int, group: int, places: int, head_dim: int, multiprocessors: int
) -> None:
    launch = attention_launch(rows, kv_heads, group, places, head_dim, multiprocessors)
    programs = rows * kv_heads * math.ceil(group / launch.heads)
    assert launch.block & (launch.block - 1) == launch.heads & (launch.heads - 1) == 0
    room = WARPS_A_MULTIPROCESSOR * multiprocessors
    if launch.splits > 1:
        assert (launch.splits - 1) * LEAST_PLACES < places
        assert programs * launch.splits * launch.warps <= 1.5 * room
    elif places > LEAST_PLACES:
        assert programs * launch.warps >= 0.6 * room
