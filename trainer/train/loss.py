"""The loss of anonymization prompt learning, in the letters of the method.

    P        the prefix, (N, D): the only thing that learns
    z_t      the noised latents at noise level t, (B, C, H, W)
    c₁       the prompt with the prefix in front
    c₂       the neutral prompt: the name replaced (identity data), or the prompt itself (generic data)
    ε(…)     what the model says, (B, C, H, W): noise or velocity, see `model.diffusion`
    η        the strength of the negative guidance

The method's loss is

    L = ‖ ε(z_t, t, c₁) − sg[ ε(z_t, t, c₂) − η (ε(z_t, t, c₁) − ε(z_t, t, c₂)) ] ‖²

where sg stops the gradient. As published it takes three passes through the model. But the ε(c₁) inside sg has
the value of the one outside, so with Δ = ε(c₁) − ε(c₂) the residual is (1 + η) Δ and the gradient is

    ∇L = 2 (1 + η) Δ · ∂ε(c₁)/∂P   =   ∇ [ (1 + η) ‖Δ‖² ]    with ε(c₂) held fixed.

One pass with a graph and one target pass suffice, and the target does not depend on P, so it can be kept.

Source:
    Shi et al., Anonymization Prompt Learning, arXiv:2405.16895.
"""

from __future__ import annotations

from torch import Tensor


def distance(eps: Tensor, eps_target: Tensor) -> Tensor:
    """The mean squared difference of what the model says, d, for each example.

    Args:
        eps: Shape (B, C, H, W), or whatever the latents have behind B.
        eps_target: The same shape.

    Returns:
        Shape (B,), float32.

    Example:
        >>> import torch
        >>> distance(torch.ones(2, 1, 2, 2), torch.zeros(2, 1, 2, 2))
        tensor([1., 1.])
    """
    return (eps.float() - eps_target.float()).pow(2).flatten(1).mean(dim=1)


def apl_loss(eps: Tensor, eps_neutral: Tensor, eta: float, weight: Tensor) -> Tensor:
    """The loss whose gradient is that of L, each example weighted.

    Args:
        eps: ε(z_t, t, c₁), shape (B, C, H, W), with a graph that leads to P.
        eps_neutral: ε(z_t, t, c₂), shape (B, C, H, W), without one.
        eta: η.
        weight: Shape (B,); sums to 1 for a mean.

    Returns:
        A scalar.

    Example:
        >>> import torch
        >>> eps = torch.full((1, 1, 1, 1), 3.0, requires_grad=True)
        >>> apl_loss(eps, torch.ones(1, 1, 1, 1), eta=1.0, weight=torch.ones(1)).backward()
        >>> eps.grad.item()    # 2 (1 + η) Δ
        8.0
    """
    return (1 + eta) * (weight * distance(eps, eps_neutral.detach())).sum()
