"""A second policy, made of nothing but torch: what `Policy` and `Decoder` ask for, no transformers in sight.

A prompt is read letter by letter by a recurrent net; a plan is a few tokens of an alphabet of its own, an
image four tokens of another, each token one of eight colours of a 2 x 2 picture.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor, nn

from src.values import IMAGE, PLAN, LevelOutput, LinearHead, TokenContext, TokenLevel

LETTERS = " abcdefghijklmnopqrstuvwxyz"
PLAN_WORDS = ("stop", "a", "b", "c", "d", "e")
COLOURS = torch.tensor(list(product((0.0, 1.0), repeat=3)))  # (8, 3)
SEPARATOR, NOTHING = len(LETTERS), len(LETTERS) + 1


@dataclass
class ToyState:
    """The recurrent state (N, F) after everything read so far."""

    level: str
    hidden: Tensor


class ToyDecoder:
    """Weights at one moment: a frozen copy, so that later training does not reach it."""

    def __init__(self, net: ToyNet) -> None:
        self.net = copy.deepcopy(net).requires_grad_(False)

    @torch.no_grad()
    def start(self, level: str, context: TokenContext, steps: int) -> tuple[ToyState, Tensor]:
        hidden = self.net.read(context)
        return ToyState(level, hidden), hidden

    @torch.no_grad()
    def advance(self, state: ToyState, ids: Tensor) -> Tensor:
        state.hidden = self.net.cell(self.net.tables[state.level](ids), state.hidden)
        return state.hidden

    @torch.no_grad()
    def evaluate(self, level: str, context: TokenContext, ids: Tensor) -> Tensor:
        return self.net.features(level, context, ids)

    def head(self, level: str) -> LinearHead:
        return self.net.head(level)


class ToyNet(nn.Module):
    """Letters, plan words and colours each have their own table; one GRU cell; a head a level."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.letters = nn.Embedding(len(LETTERS) + 2, width)
        self.tables = nn.ModuleDict(
            {PLAN: nn.Embedding(len(PLAN_WORDS), width), IMAGE: nn.Embedding(len(COLOURS), width)}
        )
        self.cell = nn.GRUCell(width, width)
        self.heads = nn.ModuleDict(
            {PLAN: nn.Linear(width, len(PLAN_WORDS), bias=False), IMAGE: nn.Linear(width, len(COLOURS))}
        )

    def read(self, context: TokenContext) -> Tensor:
        hidden = self.letters.weight.new_zeros(len(context), self.cell.hidden_size)
        for ids, mask in zip(context.ids.T, context.mask.T, strict=True):
            hidden = torch.where(mask[:, None], self.cell(self.letters(ids), hidden), hidden)
        return hidden

    def features(self, level: str, context: TokenContext, ids: Tensor) -> Tensor:
        hidden = self.read(context)
        collected = [hidden]
        for token in ids[:, :-1].T:
            hidden = self.cell(self.tables[level](token), hidden)
            collected.append(hidden)
        return torch.stack(collected, 1)

    def head(self, level: str) -> LinearHead:
        layer = self.heads[level]
        return LinearHead(layer.weight, layer.bias)  # type: ignore[arg-type]


class ToyPolicy(nn.Module):
    """Protocol `Policy` over `ToyNet`; everything trains, the reference is a frozen copy of the start."""

    end_id = PLAN_WORDS.index("stop")
    image_tokens = 4

    def __init__(self, width: int = 24, seed: int = 0, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.net = ToyNet(width).to(dtype)
        self._start = (copy.deepcopy(self.net),)

    @property
    def device(self) -> torch.device:
        return self.net.letters.weight.device

    def _context(self, texts: Sequence[str]) -> TokenContext:
        rows = [[LETTERS.index(c) if c in LETTERS else SEPARATOR for c in text.lower()] + [SEPARATOR] for text in texts]
        width = max(map(len, rows))
        ids = torch.tensor([[NOTHING] * (width - len(row)) + row for row in rows])
        mask = torch.tensor([[False] * (width - len(row)) + [True] * len(row) for row in rows])
        return TokenContext(ids, mask)

    def plan_context(self, prompts: Sequence[str]) -> TokenContext:
        return self._context(prompts)

    def image_context(self, prompts: Sequence[str], plans: Sequence[str]) -> TokenContext:
        return self._context([f"{prompt} {plan}" for prompt, plan in zip(prompts, plans, strict=True)])

    def unconditional(self, context: TokenContext) -> TokenContext:
        inner = context.mask.clone()
        inner[:, -1] = False
        return TokenContext(context.ids.masked_fill(inner, NOTHING), context.mask)

    def read_plans(self, ids: Tensor, mask: Tensor) -> list[str]:
        return [
            " ".join(PLAN_WORDS[i] for i in row[keep].tolist() if i != self.end_id)
            for row, keep in zip(ids, mask, strict=True)
        ]

    def paint(self, ids: Tensor) -> Tensor:
        return COLOURS[ids].view(-1, 2, 2, 3).permute(0, 3, 1, 2).contiguous()

    def forward(self, levels: Mapping[str, TokenLevel]) -> dict[str, LevelOutput]:
        return {
            name: LevelOutput(self.net.features(name, level.context, level.ids), self.net.head(name))
            for name, level in levels.items()
        }

    def decoder(self) -> ToyDecoder:
        return ToyDecoder(self.net)

    @contextmanager
    def reference(self) -> Iterator[ToyDecoder]:
        yield ToyDecoder(self._start[0])
