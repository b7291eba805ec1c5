"""A short training run, for tests of what a network can learn."""

from collections.abc import Callable

import torch
from torch import Tensor, nn


def fit(net: nn.Module, loss: Callable[[], Tensor], steps: int) -> list[float]:
    """The losses of some steps of AdamW on one batch."""
    optimizer, losses = torch.optim.AdamW(net.parameters(), 1e-2), []
    for _ in range(steps):
        value = loss()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(value.item())
    return losses
