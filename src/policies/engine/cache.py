"""Keys and values of rollouts: allocated once, reused over rollouts and training steps, at fixed addresses."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Cache sizes are multiples of this, so that contexts of different lengths get the same shape.
PLACES_STEP = 64
# The share of free memory that a cache may take: it stays allocated through the update, which needs the rest.
SHARE_OF_FREE_MEMORY = 0.5


@dataclass(frozen=True, slots=True)
class CacheShape:
    """The size of one row and position of a cache."""

    layers: int
    heads: int
    head_dim: int
    dtype: torch.dtype
    device: torch.device

    def elements(self, rows: int, places: int) -> int:
        """Of the keys, and as many of the values."""
        return self.layers * rows * self.heads * places * self.head_dim

    def bytes(self, rows: int, places: int) -> int:
        """Keys and values of `rows` rows with `places` places."""
        return 2 * self.elements(rows, places) * self.dtype.itemsize


@dataclass(slots=True)
class DecodeState:
    """The state of a decode: N rows of one level, contexts padded on the left, all filled up to the same position.

    keys, values (L, N, H, S, D); first (N,) int64, each row's first real place; length (1,) int64, how many places
    are filled, on the device. reach: how many places attention looks at, kept on the host, never below `length`;
    None: all S, where what is not filled has to be zero. turn: which use of the cache this is.
    """

    level: str
    keys: Tensor
    values: Tensor
    first: Tensor
    length: Tensor
    reach: int | None
    turn: int


class CacheMemory:
    """One block of memory that every decode of a policy uses in turn; it grows when needed.

    turn counts its uses; moves, how often addresses given out earlier became invalid, or a level's rows moved apart
    on them.
    """

    def __init__(self) -> None:
        self._keys: Tensor | None = None
        self._values: Tensor | None = None
        self._small: dict[int, tuple[Tensor, Tensor]] = {}
        self._places: dict[str, int] = {}
        self._budget: int | None = None
        self.turn = 0
        self.moves = 0

    def open(self, level: str, shape: CacheShape, rows: int, places: int) -> DecodeState:
        """An empty state of `rows` rows with room for `places` tokens at least; every earlier state is void.

        A level never gets fewer places than before, and for equal rows and places the same addresses.
        """
        before, moves = self._places.get(level, 0), self.moves
        places = max(rounded_places(places), before)
        self._places[level] = places
        keys, values = self._memory(shape, shape.elements(rows, places))
        if before not in (0, places) and self.moves == moves:
            self.moves += 1  # enough memory, but captures have the strides of fewer places
        if rows not in self._small:
            small = torch.zeros(rows + 1, dtype=torch.int64, device=shape.device)
            self._small[rows] = small[1:], small[:1]
        first, length = self._small[rows]
        form = (shape.layers, rows, shape.heads, places, shape.head_dim)
        self.turn += 1
        return DecodeState(level, keys.view(form), values.view(form), first, length, None, self.turn)

    def _memory(self, shape: CacheShape, elements: int) -> tuple[Tensor, Tensor]:
        keys, values = self._keys, self._values
        fits = keys is not None and keys.dtype == shape.dtype and keys.device == shape.device
        if keys is None or values is None or not fits or len(keys) < elements:
            self._forget()
            del keys, values
            keys = torch.empty(elements, dtype=shape.dtype, device=shape.device)
            values = torch.empty_like(keys)
            self._keys, self._values = keys, values
        return keys[:elements], values[:elements]

    def release(self) -> None:
        """Free the memory; the next `open` allocates again and measures again what fits."""
        self._forget()
        self._budget = None
        self._places.clear()

    def _forget(self) -> None:
        self.moves += 1
        self._keys = self._values = None
        self._small.clear()

    @property
    def bytes(self) -> int:
        """What is held now."""
        return 0 if self._keys is None else 2 * self._keys.numel() * self._keys.dtype.itemsize

    def rows_that_fit(self, level: str, shape: CacheShape, places: int) -> int | None:
        """How many rows of `places` places the device's memory has room for, at least 1; None on a CPU: no limit known.

        Measured once, so that every step splits its rollouts the same way: a share of the unused memory. Rows count
        with the places that `open` gives the level, which are never fewer than before.
        """
        if shape.device.type != "cuda":
            return None
        if self._budget is None:
            free, _ = torch.cuda.mem_get_info(shape.device)
            cached = torch.cuda.memory_reserved(shape.device) - torch.cuda.memory_allocated(shape.device)
            self._budget = int(SHARE_OF_FREE_MEMORY * (free + cached + self.bytes))
        return rows_within(self._budget, shape, max(places, self._places.get(level, 0)))


def rows_within(budget: int, shape: CacheShape, places: int) -> int:
    """How many rows of `places` places `budget` bytes hold, at least 1."""
    return max(1, budget // shape.bytes(1, rounded_places(places)))


def rounded_places(places: int) -> int:
    """How many places a cache has that needs `places`."""
    return -(-places // PLACES_STEP) * PLACES_STEP
