"""Experts whose matrices are a low-rank product and a few whole rows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polypath.errors import InputError
from polypath.experts.activations import Activation


class LowRankSparse(nn.Module):
    """y = U (V x) + S x + b, where S has only some rows.

    u: (out, r). v: (r, in). kept: (n,) int64, the rows of S that are stored, ascending; a buffer.
    sparse: (n, in), those rows. bias: (out,) or None.
    Source: LoSparse (Li et al. 2023), as MC-SMoE (Li et al. 2023), section 3.3, has it.
    """

    kept: Tensor

    def __init__(self, ins: int, outs: int, rank: int, rows: int, bias: bool = False) -> None:
        super().__init__()
        if not 0 < rank <= min(ins, outs) or not 0 <= rows <= outs:
            raise InputError(
                f"LowRankSparse: rank={rank}, rows={rows} of a matrix {outs} × {ins}; "
                "1 ≤ rank ≤ both sides and rows ≤ the outputs are needed"
            )
        self.u = nn.Parameter(torch.empty(outs, rank))
        self.v = nn.Parameter(torch.empty(rank, ins))
        self.register_buffer("kept", torch.arange(rows))
        self.sparse = nn.Parameter(torch.empty(rows, ins))
        self.bias = nn.Parameter(torch.zeros(outs)) if bias else None

    @classmethod
    @torch.no_grad()
    def split(cls, weight: Tensor, rank: int, bias: Tensor | None = None) -> LowRankSparse:
        """A matrix (out, in) as U V from its first singular vectors, and all that is left as S."""
        outs, ins = weight.shape
        made = cls(ins, outs, rank, outs, bias is not None).to(weight)
        u, sizes, v = torch.linalg.svd(weight.float(), full_matrices=False)
        roots = sizes[:rank].sqrt()
        made.u.copy_(u[:, :rank] * roots)
        made.v.copy_(roots[:, None] * v[:rank])
        made.sparse.copy_(weight.float() - made.u.float() @ made.v.float())
        if bias is not None and made.bias is not None:
            made.bias.copy_(bias)
        return made

    def dense(self) -> Tensor:
        """(out, in): the matrix that it stands for."""
        return (self.u @ self.v).index_add(0, self.kept, self.sparse)

    @torch.no_grad()
    def shed(self) -> None:
        """Store only the rows of S that are not zero."""
        filled = (self.sparse != 0).any(1).nonzero()[:, 0]
        self.kept = self.kept[filled]
        self.sparse = nn.Parameter(self.sparse[filled].clone())

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in) to y (..., out)."""
        y = F.linear(F.linear(x, self.v), self.u, self.bias)
        whole = len(self.kept) == len(self.u)
        rest = F.linear(x, self.sparse)
        return y + rest if whole else y.index_add(-1, self.kept, rest)

    def extra_repr(self) -> str:
        outs, rank = self.u.shape
        return f"{self.v.shape[1]} → {outs}, rank {rank}, {len(self.kept)} rows"


class CompressedExpert(nn.Module):
    """down(activation(up x)) whose maps are `LowRankSparse`.

    dim, hidden: D and F. rows: how many rows the inner and the outer map keep.
    """

    def __init__(
        self,
        dim: int,
        hidden: int,
        activation: Activation,
        rank: int,
        rows: Sequence[int],
        bias: bool = False,
    ) -> None:
        super().__init__()
        self.activation = activation
        self.inner = LowRankSparse(dim, activation.width * hidden, rank, rows[0], bias)
        self.outer = LowRankSparse(hidden, dim, rank, rows[1], bias)

    @classmethod
    def split(
        cls, weights: Sequence[Tensor | None], activation: Activation, rank: int
    ) -> CompressedExpert:
        """One expert's weights as `FeedForward` reads them, apart; it computes what it did."""
        w_in, b_in, w_out, b_out = weights
        assert w_in is not None and w_out is not None
        dim, hidden = w_out.shape
        rows = (len(w_in), dim)
        made = cls(dim, hidden, activation, rank, rows, b_in is not None).to(w_in)
        made.inner = LowRankSparse.split(w_in, rank, b_in)
        made.outer = LowRankSparse.split(w_out, rank, b_out)
        return made

    @property
    def maps(self) -> list[LowRankSparse]:
        return [self.inner, self.outer]

    def forward(self, rows: Tensor) -> Tensor:
        """rows (R, D) to (R, D)."""
        return self.outer(self.activation(self.inner(rows)))
