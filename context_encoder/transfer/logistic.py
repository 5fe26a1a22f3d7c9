"""Multinomial logistic regression on standardised features."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


class Standardizer:
    """Shifts and scales features to mean 0 and deviation 1 over the images given to it."""

    def __init__(self, x: Tensor) -> None:
        self._mean = x.mean(0)
        deviation = x.std(0, correction=0)
        # A constant feature has no information; it becomes 0 instead of noise.
        self._factor = torch.where(deviation > 1e-6 * (1 + self._mean.abs()), 1 / deviation, 0.0)

    def __call__(self, x: Tensor) -> Tensor:
        return (x - self._mean) * self._factor


def fit_logistic(
    x: Tensor, y: Tensor, classes: int, l2: Sequence[float], *, max_iterations: int = 100
) -> Iterator[Tensor]:
    """Multinomial logistic regression by full-batch L-BFGS with strong Wolfe line search.

    It minimises mean cross-entropy + l2 / 2 * |weights|^2; the biases are not penalised. The
    result is deterministic. The search uses coordinates in which the loss has about the same
    curvature in all directions (see :func:`_curvature`): this takes about 20 iterations instead
    of hundreds, and does not move the minimum.

    Args:
        x: float ``(N, D)``, standardised.
        y: int64 ``(N,)``, below ``classes``.
        classes: K.
        l2: the penalties; each fit starts from the previous result.
        max_iterations: largest number of iterations per penalty.

    Yields:
        ``(D + 1, K)`` per penalty: weights, and the biases in the last row.
    """
    covariance = x.T @ x / len(x)
    weights, biases = x.new_zeros(x.shape[1], classes), x.new_zeros(classes)
    for strength in l2:
        factor = _curvature(covariance, classes, strength)
        # weights = factor^-T @ free
        free = (factor.T @ weights).requires_grad_(True)
        biases.requires_grad_(True)
        optimizer = torch.optim.LBFGS(
            [free, biases],
            max_iter=max_iterations,
            history_size=10,
            tolerance_grad=1e-5,
            tolerance_change=1e-7,
            line_search_fn="strong_wolfe",
        )
        weights = _fit(optimizer, free, biases, factor, x, y, strength)
        biases = biases.detach()
        yield torch.cat([weights, biases[None]])


def _fit(
    optimizer: torch.optim.LBFGS,
    free: Tensor,
    biases: Tensor,
    factor: Tensor,
    x: Tensor,
    y: Tensor,
    l2: float,
) -> Tensor:
    def weights() -> Tensor:
        solved: Tensor = torch.linalg.solve_triangular(factor.T, free, upper=True)
        return solved

    def closure() -> Tensor:
        optimizer.zero_grad()
        current = weights().T.contiguous()  # so that the product with x in backward is fast
        loss: Tensor = F.cross_entropy(F.linear(x, current, biases), y)
        loss = loss + l2 / 2 * current.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return weights().detach()


def _curvature(covariance: Tensor, classes: int, l2: float) -> Tensor:
    """Lower Cholesky factor of the loss's second derivative at equal class probabilities."""
    likely = 1 / classes
    diagonal = torch.full_like(covariance[0], l2 + 1e-5)  # 1e-5: against rounding
    factor: Tensor = torch.linalg.cholesky(
        likely * (1 - likely) * covariance + torch.diag(diagonal)
    )
    return factor


def accuracy(x: Tensor, y: Tensor, theta: Tensor) -> float:
    """Fraction of the images whose largest score is that of their class."""
    return float((torch.addmm(theta[-1], x, theta[:-1]).argmax(1) == y).float().mean())
