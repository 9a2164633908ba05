"""Streaming: the last look is the rollout that `roll_out` gives, the looks before are grey where nothing is yet."""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from typing import Any

import pytest
import torch

from src import build
from src.demo.stream import GREY, Look, looks, partial_pixels
from src.rollout.decode import decode, stream
from src.rollout.levels import RolloutSettings, roll_out
from src.rollout.noise import rollout_key, uniforms
from src.values import IMAGE, PLAN, Sampling
from tests.tiny_run import default_config

PROMPT = "two green squares"
SETTINGS = RolloutSettings(Sampling(1.0), Sampling(1.0, 1.5), 24)


@cache
def policy() -> Any:
    return build.build_policy(default_config()).eval()


@pytest.mark.parametrize("every", [None, 1, 7])
def test_the_last_look_is_the_rollout(every: int | None) -> None:
    keys = [rollout_key(3, PROMPT, 0, candidate) for candidate in range(2)]
    seen = list(looks(policy(), policy().decoder(), PROMPT, keys, SETTINGS, every))
    with torch.no_grad():
        wanted = roll_out(policy(), policy().decoder(), [PROMPT] * 2, keys, SETTINGS)
    assert [look.finished for look in seen] == [False] * (len(seen) - 1) + [True]
    assert list(seen[-1].plans) == wanted.plans
    torch.testing.assert_close(seen[-1].pixels, wanted.pixels, rtol=0, atol=0)
    tokens = [look.tokens for look in seen]
    assert tokens == sorted(tokens)
    plans = [look.plans[0] for look in seen if look.pixels is None]
    assert all(later.startswith(earlier) for earlier, later in pairwise(plans))
    assert all(look.plans == seen[-1].plans for look in seen if look.pixels is not None)
    if every == 1:
        assert [look.tokens for look in seen if look.pixels is not None] == list(range(1, policy().image_tokens + 1))


def test_unpainted_patches_are_grey() -> None:
    """In raster order: of a 6 x 6 grid on 24 x 24 pixels, 8 tokens are the first row and two patches of the second."""
    assert policy().image_tokens == 36
    ids = torch.arange(8)[None]
    pixels = partial_pixels(policy(), ids)[0]
    full = policy().paint(torch.cat([ids, torch.zeros((1, 28), dtype=torch.int64)], 1))[0]
    torch.testing.assert_close(pixels[:, :4], full[:, :4], rtol=0, atol=0)
    torch.testing.assert_close(pixels[:, 4:8, :8], full[:, 4:8, :8], rtol=0, atol=0)
    assert bool((pixels[:, 4:8, 8:] == GREY).all())
    assert bool((pixels[:, 8:] == GREY).all())


@pytest.mark.parametrize("level", [PLAN, IMAGE])
def test_stream_is_decode_token_by_token(level: str) -> None:
    keys = [rollout_key(5, PROMPT, rollout) for rollout in range(3)]
    if level == PLAN:
        context, sampling, end = policy().plan_context([PROMPT] * 3), SETTINGS.plan, policy().end_id
        noise, other = uniforms(keys, level, 24), None
    else:
        context, sampling, end = policy().image_context([PROMPT] * 3, ["a plan"] * 3), SETTINGS.image, None
        noise, other = uniforms(keys, level, policy().image_tokens), policy().unconditional(context)
    wanted = decode(policy().decoder(), level, context, noise, sampling, other, end)
    steps = [ids.clone() for ids in stream(policy().decoder(), level, context, noise, sampling, other, end)]
    assert [ids.shape[1] for ids in steps] == list(range(1, len(steps) + 1))
    assert torch.equal(steps[-1], wanted.ids)
    for ids in steps:
        assert torch.equal(ids, wanted.ids[:, : ids.shape[1]])
    with pytest.raises(ValueError, match="needs an unconditional context"):
        next(stream(policy().decoder(), level, context, noise, Sampling(1.0, 2.0), None, end))


def test_a_look_is_checked() -> None:
    with pytest.raises(ValueError, match="5 of 4 tokens"):
        Look(("a",), 5, 4)
    with pytest.raises(ValueError, match="2 pictures, 1 plans"):
        Look(("a",), 4, 4, torch.zeros(2, 3, 4, 4))
