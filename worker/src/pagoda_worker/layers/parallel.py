"""Layers that are split over the ranks of a tensor parallel engine: which part of a weight is whose, and where the ranks meet.

A block meets twice: its attention's output and its feed-forward's are sums over ranks (Megatron's split, Shoeybi et al. 2019). Heads and
feed-forward columns are divided, so what lies between needs no word from the others. Knows no process; execution/ranks.py starts those.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from pagoda_worker.errors import ConfigError
from pagoda_worker.layers.linear import Linear, Packer


class Collectives(Protocol):
    """What ranks do together. Every rank makes the same calls in the same order, else all of them wait for ever."""

    rank: int
    size: int
    name: str

    def all_reduce(self, x: Tensor) -> Tensor:
        """The sum over ranks, the same bits on each; may be x itself, overwritten."""
        ...

    def gather(self, x: Tensor) -> Sequence[Tensor]:
        """Every rank's x in the order of ranks, on rank 0; nothing on the others."""
        ...

    def broadcast(self, x: Tensor) -> None:
        """x of rank 0 becomes x everywhere."""
        ...


class Alone:
    """A model on one device: nobody to meet."""

    rank, size, name = 0, 1, ""

    def all_reduce(self, x: Tensor) -> Tensor:
        return x

    def gather(self, x: Tensor) -> Sequence[Tensor]:
        return (x,)

    def broadcast(self, x: Tensor) -> None:
        return


@dataclass(frozen=True, slots=True)
class Part:
    """What one rank holds of a checkpoint's tensor: ranges along one dimension, laid end to end."""

    dim: int
    whole: int
    """The tensor's size in that dimension."""
    ranges: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, dim: int, whole: int, index: int, count: int) -> "Part":
        """The index-th of `count` equal parts."""
        size = whole // count
        return cls(dim, whole, ((index * size, (index + 1) * size),))

    @classmethod
    def heads(cls, dim: int, heads: int, head_dim: int, index: int, count: int) -> "Part":
        """The index-th of `count` equal parts, of one head at least: neighbours then hold the same one."""
        first, some = index * heads // count, max(heads // count, 1)
        return cls(dim, heads * head_dim, ((first * head_dim, (first + some) * head_dim),))

    def cut(self, whole: Tensor) -> Tensor:
        """A view where there is one range."""
        pieces = [whole.narrow(self.dim, start, stop - start) for start, stop in self.ranges]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=self.dim)

    def cut_adapter(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """LoRA's A [r, in] and B transposed [r, out] beside a weight [out, in] of which this is a part: the sum over ranks of what inputs
        are divided among is linear in them, as the weight's own is."""
        along = replace(self, dim=1)
        return (a, along.cut(b)) if self.dim == 0 else (along.cut(a), b)

    @property
    def transposed(self) -> "Part":
        return replace(self, dim=1 - self.dim)

    def shape(self, part: Sequence[int]) -> tuple[int, ...]:
        """Of the whole tensor, from the part's."""
        return (*part[: self.dim], self.whole, *part[self.dim + 1 :])


@dataclass(frozen=True, slots=True)
class HeadShare:
    """Attention heads of each rank."""

    queries: int
    keys: int

    @classmethod
    def of(cls, heads: int, kv_heads: int, ranks: int) -> "HeadShare":
        """Where ranks outnumber KV heads, several hold the same one. Raises ConfigError when heads cannot be divided."""
        if heads % ranks or (kv_heads % ranks and ranks % kv_heads):
            raise ConfigError(
                f"tensorParallel is {ranks}; the model has {heads} attention heads and {kv_heads} KV heads: take a number that divides "
                "both, or a multiple of the KV heads that divides the attention heads"
            )
        return cls(heads // ranks, max(kv_heads // ranks, 1))


def columns_of_rank(columns: int, size: int) -> int:
    """Of a feed-forward. Raises ConfigError."""
    if columns % size:
        raise ConfigError(f"tensorParallel is {size}; the model's feed-forward has {columns} columns: take a number that divides them")
    return columns // size


class RowParallel(Linear):
    """A linear of which each rank holds some columns: its product is the sum over ranks. What is added besides is added once."""

    __slots__ = ("_collectives",)

    def __init__(self, collectives: Collectives, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__(weight, bias)
        self._collectives = collectives

    def pack(self, packer: Packer) -> None:
        if self._collectives.rank:
            self.bias = None  # rank 0 adds it
        super().pack(packer)

    def __call__(self, x: Tensor) -> Tensor:
        return self._collectives.all_reduce(super().__call__(x))

    def add(self, x: Tensor, residual: Tensor) -> Tensor:
        """The sum over ranks is rounded before the residual joins, which is larger: adding it on one rank first would cost bits."""
        return residual + self(x)


def row_parallel(collectives: Collectives, weight: Tensor, bias: Tensor | None = None) -> Linear:
    """A plain linear where there is one rank: its product and the residual are then one kernel."""
    return Linear(weight, bias) if collectives.size == 1 else RowParallel(collectives, weight, bias)


class Vocabulary:
    """Rows of tables over the vocabulary: each rank has as many, the last ones fewer where they do not come out even."""

    def __init__(self, size: int, collectives: Collectives) -> None:
        self._size = size
        self._collectives = collectives
        self._most = rows_of_rank(size, collectives.size)
        self._first = min(collectives.rank * self._most, size)
        self.rows = min(self._most, size - self._first)

    @property
    def part(self) -> Part:
        """Of a checkpoint's table."""
        return Part(0, self._size, ((self._first, self._first + self.rows),))

    def embed(self, ids: Tensor, table: Tensor) -> Tensor:
        """[T] → [T, columns]: one rank has the row, the others add zeros to it."""
        if self._collectives.size == 1:
            return F.embedding(ids, table)
        here = ids - self._first
        elsewhere = (here < 0) | (here >= self.rows)
        found = F.embedding(here.masked_fill(elsewhere, 0), table)
        return self._collectives.all_reduce(found.masked_fill_(elsewhere[:, None], 0))

    def gather(self, logits: Tensor) -> Tensor:
        """[S, rows] → [S, V] on rank 0; the others keep their own."""
        if self._collectives.size == 1:
            return logits
        if self.rows < self._most:
            logits = F.pad(logits, (0, self._most - self.rows))
        parts = self._collectives.gather(logits)
        return torch.cat(list(parts), dim=-1)[:, : self._size] if parts else logits


def rows_of_rank(vocab: int, size: int) -> int:
    """At most."""
    return -(-vocab // size)
