"""Configure optimizers and learning-rate schedules; they become torch objects once the model exists."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Annotated, Any, Protocol

import torch
from annotated_types import Ge, Le
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from goldfish.config.checks import NonNegative, Positive, Share, ShareBelowOne, checked


class OptimizerSource(Protocol):
    """Makes the optimizer of a model. `takes_shards`: whether it can work on parts of matrices."""

    takes_shards: bool

    def __call__(self, model: nn.Module) -> torch.optim.Optimizer: ...


ScheduleSource = Callable[[torch.optim.Optimizer, int], LRScheduler]


class AdamW:
    """Use AdamW on all parameters (Loshchilov & Hutter 2019). The paper: lr 4e-4, betas (0.9, 0.95), weight decay 0.1.

    `lr`: peak learning rate, more than 0. `beta1`, `beta2`: decay of the mean of the gradients and of their squares, 0 to
    below 1. `weight_decay`: at least 0, of matrices only. Raises ValueError for values outside these bounds. Fused: an eighth of the time of torch's default (11 M parameters, CPU).

    Examples:
        >>> from goldfish import AdamW, LlamaFromConfig
        >>> model = LlamaFromConfig(hidden_size=32, layers=1, heads=2, intermediate_size=64)(100, 0, seed=0)
        >>> [group["weight_decay"] for group in AdamW(lr=1e-3)(model).param_groups]  # matrices, norms
        [0.1, 0.0]
    """

    takes_shards = True

    @checked
    def __init__(
        self,
        lr: Positive = 4e-4,
        beta1: ShareBelowOne = 0.9,
        beta2: ShareBelowOne = 0.95,
        weight_decay: NonNegative = 0.1,
    ) -> None:
        self.lr, self.betas, self.weight_decay = lr, (beta1, beta2), weight_decay

    def __call__(self, model: nn.Module) -> torch.optim.Optimizer:
        """Return the optimizer of the model's trained parameters."""
        # Decided by name, because a shard of a matrix may have one dimension.
        is_vector = lambda name: "norm" in name or name.endswith(".bias")  # noqa: E731
        trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
        groups = [
            {"params": [p for name, p in trained if not is_vector(name)], "weight_decay": self.weight_decay},
            {"params": [p for name, p in trained if is_vector(name)], "weight_decay": 0.0},
        ]
        has_memory = not any(parameter.is_meta for _, parameter in trained)  # torch cannot fuse on the meta device
        return torch.optim.AdamW(groups, lr=self.lr, betas=self.betas, fused=has_memory)


class Muon:
    """Use Muon on the matrices of the layers (Jordan et al. 2024), and AdamW on embeddings, head and norms.

    At the sizes of the examples it learns a text in far fewer steps than AdamW. `lr`: peak learning rate of
    Muon, more than 0. `adamw_lr`: of AdamW. `momentum`: of Muon, 0 to below 1. `beta1`, `beta2`: of AdamW, 0 to below 1.
    `weight_decay`: of both, at least 0. `newton_schulz_steps`: iterations that orthogonalise an update, 1 to 99. Not with
    strategies that shard the weights. Raises ValueError for values outside these bounds.

    Examples:
        >>> from goldfish import LlamaFromConfig, Muon
        >>> model = LlamaFromConfig(hidden_size=32, layers=1, heads=2, intermediate_size=64)(100, 0, seed=0)
        >>> [group["lr"] for group in Muon()(model).param_groups]  # matrices of the layers, the rest
        [0.02, 0.01]
    """

    takes_shards = False  # the update of a matrix needs the whole matrix

    @checked
    def __init__(
        self,
        lr: Positive = 0.02,
        adamw_lr: Positive = 1e-2,
        momentum: ShareBelowOne = 0.95,
        beta1: ShareBelowOne = 0.9,
        beta2: ShareBelowOne = 0.95,
        weight_decay: NonNegative = 0.1,
        newton_schulz_steps: Annotated[int, Ge(1), Le(99)] = 3,
    ) -> None:
        self._muon: dict[str, Any] = dict(
            lr=lr, momentum=momentum, weight_decay=weight_decay, ns_steps=newton_schulz_steps
        )
        self._adamw: dict[str, Any] = dict(lr=adamw_lr, betas=(beta1, beta2), weight_decay=weight_decay)

    def __call__(self, model: nn.Module) -> torch.optim.Optimizer:
        """Return the optimizer of the model's trained parameters."""
        named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
        layers = [parameter for name, parameter in named if parameter.ndim == 2 and ".layers." in name]
        in_layers = {id(parameter) for parameter in layers}
        rest = [parameter for _, parameter in named if id(parameter) not in in_layers]
        return _Both(torch.optim.Muon(layers, **self._muon), torch.optim.AdamW(rest, **self._adamw))


class _Both(torch.optim.Optimizer):
    """Combine two optimizers of different parameters, so that Lightning counts their step once."""

    def __init__(self, first: torch.optim.Optimizer, second: torch.optim.Optimizer) -> None:
        self.parts = (first, second)
        super().__init__(first.param_groups + second.param_groups, defaults={})
        self._share_groups()

    def _share_groups(self) -> None:
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Step both optimizers."""
        loss = closure() if closure is not None else None
        for part in self.parts:
            part.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """Return the states of both optimizers."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the states of both optimizers."""
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self._share_groups()


class _WarmupDecay(ABC):
    """Warm up linearly over a share `warmup` of the steps, then multiply the learning rate by `_factor_after`."""

    def __init__(self, warmup: float, floor: float) -> None:
        self.warmup, self.floor = warmup, floor

    def __call__(self, optimizer: torch.optim.Optimizer, steps: int) -> LambdaLR:
        """Return the schedule of a run of `steps` optimizer steps."""
        warm = self.warmup * steps

        def factor(step: int) -> float:
            done = max(0.0, (step - warm) / max(1.0, steps - warm))
            return min(1.0, (step + 1) / max(1.0, warm)) * self._factor_after(done)

        return LambdaLR(optimizer, factor)

    @abstractmethod
    def _factor_after(self, done: float) -> float:
        """Return the factor of the learning rate after a share `done` of the steps that follow the warm-up."""


class WarmupCosine(_WarmupDecay):
    """Warm up linearly over a share `warmup` of the steps, then follow a cosine down to `floor` x the learning rate.

    The paper: warmup 0.105 (1000 of 9536 steps), floor 0.1 (from 4e-4 to 4e-5).
    """

    @checked
    def __init__(self, warmup: Share = 0.1, floor: Share = 0.1) -> None:
        super().__init__(warmup, floor)

    def _factor_after(self, done: float) -> float:
        return self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * done))


class WarmupLinear(_WarmupDecay):
    """Warm up linearly over a share `warmup` of the steps, then decay linearly to `floor` x the learning rate."""

    @checked
    def __init__(self, warmup: Share = 0.05, floor: Share = 0.05) -> None:
        super().__init__(warmup, floor)

    def _factor_after(self, done: float) -> float:
        return 1 - (1 - self.floor) * done


class Constant:
    """Warm up linearly over a share `warmup` of the steps (0: none), then stay constant (the paper's extreme case)."""

    @checked
    def __init__(self, warmup: Share = 0.0) -> None:
        self.warmup = warmup

    def __call__(self, optimizer: torch.optim.Optimizer, steps: int) -> LambdaLR:
        """Return the schedule of a run of `steps` optimizer steps."""
        return LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / max(1.0, self.warmup * steps)))
