import torch

from polypath.recipes.random_routers import dimensions, tangents


def test_the_tangent_kernel_is_that_of_the_gradients() -> None:
    drawn = []

    def normal(*size: int) -> torch.Tensor:
        drawn.append(torch.randn(*size, dtype=torch.float64))
        return drawn[-1]

    x = torch.nn.functional.normalize(torch.randn(5, 7, dtype=torch.float64), dim=1)
    kernel = tangents(x, normal, hidden=4)
    inner, outer = drawn[0].requires_grad_(), (drawn[1]).requires_grad_()
    rows = []
    for one in x:
        value = (one @ inner).relu() @ outer / 2
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(value, (inner, outer))]))
    jacobian = torch.stack(rows)
    torch.testing.assert_close(kernel, jacobian @ jacobian.T)


def test_the_trace_turns_the_sign_of_the_companion_check() -> None:
    found = [dimensions(seed) for seed in range(4)]
    assert all(scaled > 0.2 for scaled, _ in found)
    assert all(raw < 0 for _, raw in found)
