"""How complex a function experts can be under routes that are fixed.

Source: Where to find Grokking in LLM Pretraining?, arXiv 2506.21551, section on theory.
"""

from __future__ import annotations

import torch
from torch import Tensor

from polypath.errors import InputError


@torch.no_grad()
def routed_kernel(gates: Tensor, kernels: Tensor, normalised: bool = True) -> Tensor:
    """(N, N): Σ_e g_e(x) g_e(x') K_e(x, x'), the kernel of experts under a router that is fixed.

    gates: (N, E). kernels: (E, N, N), each expert's own. normalised: scaled to a unit diagonal,
    without which how sharp the gate is moves the trace more than its ways move the rank.
    """
    kernel = torch.einsum("ne,me,enm->nm", gates, gates, kernels)
    if not normalised:
        return kernel
    scale = kernel.diagonal().clamp_min(torch.finfo(kernel.dtype).tiny).rsqrt()
    return kernel * scale[:, None] * scale


@torch.no_grad()
def effective_dimension(kernel: Tensor, ridge: float) -> float:
    """Tr(H (H + λI)⁻¹) of a kernel (N, N): its rank for λ → 0, its trace over λ for λ → ∞."""
    if ridge <= 0:
        raise InputError(f"effective dimension: ridge={ridge}; a positive number is needed")
    values = torch.linalg.eigvalsh(kernel.double()).clamp_min(0)
    return float((values / (values + ridge)).sum())
