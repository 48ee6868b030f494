"""Train with DeepSpeed's ZeRO, which shards optimizer state, gradients and weights. Needs the extra deepspeed."""

import os
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy
from torch import Tensor
from transformers import LlamaForCausalLM

from goldfish.config.checks import Count, checked
from goldfish.models.estimate import Precision
from goldfish.tools.extras import install, require
from goldfish.training.checkpoints import whole_folder, without_pickles
from goldfish.training.strategies import StepsOutside, Strategy


class DeepSpeed(Strategy):
    """Use ZeRO (arXiv 1910.02054): `stage` 1 shards the optimizer state, 2 also the gradients, 3 also the weights.

    A checkpoint is a folder in DeepSpeed's own format. A run can continue from it only with this strategy, the same
    stage and the same number of processes. DeepSpeed writes pickles; they are loaded with torch's `weights_only`, so a
    file cannot run code. DeepSpeed manages the gradients, so objectives that weigh their targets or have stages are
    refused. Tested on CPU processes (gloo), untested on GPUs.
    """

    shards = True
    whole_checkpoints = False
    wraps = True
    holds_gradients = True

    @checked
    def __init__(
        self,
        accelerator: Literal["auto", "cpu", "gpu"] = "gpu",
        devices: Count | Literal["auto"] = "auto",
        num_nodes: Count = 1,
        precision: Precision = "32-true",
        activation_checkpointing: bool = False,
        compile: bool = False,
        stage: Literal[1, 2, 3] = 2,
    ) -> None:
        require("DeepSpeed", install("deepspeed"), "deepspeed")
        super().__init__(accelerator, devices, num_nodes, "ddp", precision, activation_checkpointing, compile)
        self.stage = stage

    def lightning(self) -> Any:
        if self.accelerator == "cpu":
            os.environ["DS_ACCELERATOR"] = "cpu"  # DeepSpeed reads it on import
        zero = dict(stage=self.stage, overlap_comm=False, contiguous_gradients=True)
        return _ZeRO(
            config=dict(
                train_micro_batch_size_per_gpu=1,  # any value: only DeepSpeed's own speed log uses it
                managed_gradient_accumulation=False,  # step() always ends a step, after any number of backward passes
                zero_allow_untested_optimizer=True,
                zero_optimization=zero,
            )
        )

    def whole_weights(self, model: LlamaForCausalLM) -> dict[str, Tensor]:
        if self.stage < 3:
            return super().whole_weights(model)
        import deepspeed

        with deepspeed.zero.GatheredParameters(list(model.parameters())):
            return {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}


class _ZeRO(StepsOutside, DeepSpeedStrategy):
    """Run Lightning's DeepSpeedStrategy also on CPU processes."""

    def setup_environment(self) -> None:
        import deepspeed

        # Otherwise DeepSpeed compiles C++ for CPU processes; if that is killed, every later run hangs.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        DDPStrategy.setup_environment(self)

    def setup_distributed(self) -> None:
        if self.root_device.type != "cpu":
            return super().setup_distributed()
        self.set_world_ranks()
        self._init_deepspeed_distributed()

    def setup(self, trainer: Any) -> None:
        assert isinstance(self.config, dict) and self.lightning_module is not None
        self.config["gradient_clipping"] = self.lightning_module.clip or 0.0
        super().setup(trainer)

    def _setup_model_and_optimizer(self, model: Any, optimizer: Any, lr_scheduler: Any = None) -> Any:
        import deepspeed

        engine, optimizer, _, _ = deepspeed.initialize(
            args=Namespace(device_rank=self.local_rank),  # Lightning passes the GPU's index; CPU processes have none
            config=self.config,
            model=model,
            model_parameters=[parameter for parameter in model.parameters() if parameter.requires_grad],
            optimizer=optimizer,
            lr_scheduler=lr_scheduler,
            dist_init_required=False,
        )
        return engine, optimizer

    @contextmanager
    def block_backward_sync(self) -> Iterator[None]:
        yield

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any | None = None) -> None:
        with whole_folder(Path(self.broadcast(filepath)), self.global_rank == 0, self.barrier) as temporary:
            super().save_checkpoint(checkpoint, temporary, storage_options)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        from deepspeed.runtime.fp16.loss_scaler import LossScaler
        from deepspeed.runtime.zero.config import ZeroStageEnum
        from deepspeed.utils.tensor_fragment import fragment_address

        known = torch.serialization.safe_globals([LossScaler, ZeroStageEnum, fragment_address])
        with without_pickles(Path(checkpoint_path)), known:
            return super().load_checkpoint(checkpoint_path)
