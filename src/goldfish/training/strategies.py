"""Choose the devices and how they share the work: one class for each strategy.

A strategy provides arguments of lightning.pytorch.Trainer; `shard` prepares the model.
"""

import os
import shutil
from pathlib import Path
from typing import Any, Literal, cast

import torch
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from transformers import LlamaForCausalLM

from goldfish.config.checks import Count, checked
from goldfish.models.estimate import Precision
from goldfish.training.checkpoints import whole_folder, without_pickles

PARALLEL_LAYERS = {
    **dict.fromkeys(("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj"), ColwiseParallel),
    **dict.fromkeys(("self_attn.o_proj", "mlp.down_proj"), RowwiseParallel),
}  # fmt: skip


class Strategy:
    """Train on one device, or with a copy of the model on each of several devices (`strategy: ddp`).

    `accelerator`: "auto", "cpu" or "gpu". `devices`: processes per machine ("auto": all GPUs). `num_nodes`: machines.
    `strategy`: "auto" or "ddp". `precision`: Lightning's name. `activation_checkpointing`: keep only each layer's input
    and recompute the rest in the backward pass (about 30 % slower, far less memory). `compile`: torch.compile each
    layer (on a CPU this takes half a minute or more before the first step).
    """

    whole_checkpoints = True  # a checkpoint is one file, and any other strategy can continue from it
    meshes = False  # True: it needs Lightning's device mesh
    shards = False  # True: a device holds only a part of the weights
    wraps = False  # True: Lightning wraps the module, and only the wrapper's forward gathers the weights
    holds_gradients = False  # True: it clips the gradients itself, and other code cannot read them

    @checked
    def __init__(
        self,
        accelerator: Literal["auto", "cpu", "gpu"] = "auto",
        devices: Count | Literal["auto"] = 1,
        num_nodes: Count = 1,
        strategy: Literal["auto", "ddp"] = "auto",
        precision: Precision = "32-true",
        activation_checkpointing: bool = False,
        compile: bool = False,
    ) -> None:
        if accelerator == "cpu" and devices == "auto":
            raise ValueError("devices='auto': counts GPUs; accelerator='cpu' needs a number; type strategy.devices=2")
        if strategy == "auto" and (devices == "auto" or devices * num_nodes > 1):
            raise ValueError(
                f"devices={devices}, num_nodes={num_nodes}: both must be 1; for several type strategy=ddp or fsdp2"
            )
        self.accelerator, self.devices, self.num_nodes = accelerator, devices, num_nodes
        self.strategy, self.precision = strategy, precision
        self.activation_checkpointing, self.compile = activation_checkpointing, compile

    @property
    def processes(self) -> int | None:
        """Return how many processes train; None if that depends on the machine."""
        return None if self.devices == "auto" else self.devices * self.num_nodes

    @property
    def processes_here(self) -> int:
        """Return how many processes train on this machine."""
        return max(1, torch.cuda.device_count()) if self.devices == "auto" else self.devices

    @property
    def data_parallel(self) -> int | None:
        """Return the number of processes that get different rows of a step; None if it depends on the machine."""
        return self.processes

    def refuse(self) -> str | None:
        """Return why this machine cannot run the strategy, and what to type instead; None if it can."""
        found = torch.cuda.device_count()
        needed = 1 if self.devices == "auto" else self.devices
        if self.accelerator == "gpu" and found < needed:
            return (
                f"strategy.devices={self.devices}: this machine has {found or 'no'} GPU{'s' * (found != 1)}; type "
                + (f"strategy.devices={found}, or " if found else "")
                + f"strategy={'single' if needed == 1 else 'ddp_cpu'}"
            )
        compiler = os.environ.get("CXX", "g++")  # as torch.compile finds it
        if self.compile and shutil.which(compiler) is None:
            return (
                f"strategy.compile=true: torch.compile needs a C++ compiler, and there is no {compiler}; install g++ "
                "(or name another in the environment variable CXX), or type strategy.compile=false"
            )
        return None

    def arguments(self) -> dict[str, Any]:
        """Return arguments of lightning.pytorch.Trainer. Call it in the process that trains."""
        return dict(
            accelerator=self.accelerator,
            devices=self.devices,
            num_nodes=self.num_nodes,
            strategy=self.lightning(),
            precision=self.precision,
        )

    def lightning(self) -> Any:
        """Return the Lightning strategy, or its name."""
        return self.strategy

    def shard(self, module: nn.Module, model: LlamaForCausalLM, mesh: DeviceMesh | None) -> None:
        """Apply checkpointing, compilation and sharding to `model`, a part of `module`. Called once, on the device."""
        if self.activation_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if self.compile:
            for layer in model.model.layers:
                layer.compile()

    def whole_weights(self, model: LlamaForCausalLM) -> dict[str, Tensor]:
        """Return the gathered weights on the CPU to the first process. All processes must call it."""
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        return cast(dict[str, Tensor], get_model_state_dict(model, options=options))


class _Sharded(Strategy):
    """Train on several devices, each with a part of the weights, gradients and optimizer state."""

    shards = True

    @checked
    def __init__(
        self,
        accelerator: Literal["auto", "cpu", "gpu"] = "gpu",
        devices: Count | Literal["auto"] = "auto",
        num_nodes: Count = 1,
        precision: Precision = "32-true",
        activation_checkpointing: bool = False,
        compile: bool = False,
        checkpoints: Literal["whole", "sharded"] = "whole",
    ) -> None:
        super().__init__(accelerator, devices, num_nodes, "ddp", precision, activation_checkpointing, compile)
        self.whole_checkpoints = checkpoints == "whole"


class FSDP2(_Sharded):
    """Shard the weights over the devices (FSDP2), and split the layers' matrices over `tensor_parallel` of them.

    The rows of a step are divided into processes / tensor_parallel shares. Tensor parallelism does not split embedding,
    head and norms. `checkpoints`: "whole" (one file that any strategy can continue from) or "sharded" (a folder, each
    process writes its part). Works on GPUs (NCCL) and CPU processes (gloo).
    """

    meshes = True

    @checked
    def __init__(
        self,
        accelerator: Literal["auto", "cpu", "gpu"] = "gpu",
        devices: Count | Literal["auto"] = "auto",
        num_nodes: Count = 1,
        precision: Precision = "32-true",
        activation_checkpointing: bool = False,
        compile: bool = False,
        checkpoints: Literal["whole", "sharded"] = "whole",
        tensor_parallel: Count = 1,
    ) -> None:
        super().__init__(accelerator, devices, num_nodes, precision, activation_checkpointing, compile, checkpoints)
        self.tensor_parallel = tensor_parallel
        if (self.processes or tensor_parallel) % tensor_parallel:
            raise ValueError(f"tensor_parallel={tensor_parallel}: must divide the {self.processes} processes")
        if compile and tensor_parallel > 1:
            raise ValueError(
                f"compile=true: torch 2.13 cannot compile layers that tensor_parallel={tensor_parallel} splits; "
                "type compile=false or tensor_parallel=1"
            )

    @property
    def data_parallel(self) -> int | None:
        return None if self.processes is None else self.processes // self.tensor_parallel

    def lightning(self) -> Any:
        processes = self.processes or torch.cuda.device_count() * self.num_nodes
        if processes % self.tensor_parallel:
            raise ValueError(f"strategy.tensor_parallel={self.tensor_parallel}: must divide the {processes} GPUs")
        return _ModelParallel(
            processes // self.tensor_parallel,
            self.tensor_parallel,
            save_distributed_checkpoint=not self.whole_checkpoints,
        )

    def shard(self, module: nn.Module, model: LlamaForCausalLM, mesh: DeviceMesh | None) -> None:
        assert mesh is not None
        config, parts = model.config, self.tensor_parallel
        super().shard(module, model, mesh)
        if parts > 1:
            for name in ("num_attention_heads", "num_key_value_heads", "intermediate_size"):
                if getattr(config, name) % parts:
                    raise ValueError(f"strategy.tensor_parallel={parts}: must divide {name}={getattr(config, name)}")
            for layer in model.model.layers:
                parallelize_module(
                    layer, mesh["tensor_parallel"], {name: how() for name, how in PARALLEL_LAYERS.items()}
                )
        how: dict[str, Any] = dict(mesh=mesh["data_parallel"])
        if self.precision == "bf16-mixed":
            how |= dict(mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32))
        for layer in model.model.layers:
            fully_shard(layer, **how)
        fully_shard(module, **how)


class _ModelParallel(ModelParallelStrategy):
    """Write a sharded checkpoint next to the previous one, and then replace that."""

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any | None = None) -> None:
        if not self._save_distributed_checkpoint:
            return super().save_checkpoint(checkpoint, filepath, storage_options)
        with whole_folder(Path(self.broadcast(filepath)), self.global_rank == 0, self.barrier) as temporary:
            super().save_checkpoint(checkpoint, temporary, storage_options)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        with without_pickles(Path(checkpoint_path)):
            return super().load_checkpoint(checkpoint_path, weights_only)


class FSDP(_Sharded):
    """Shard the weights over the GPUs with the first version of FSDP; prefer fsdp2 for new work."""

    wraps = True

    def lightning(self) -> Any:
        from transformers.models.llama.modeling_llama import LlamaDecoderLayer

        return _FSDP1(
            auto_wrap_policy={LlamaDecoderLayer}, state_dict_type="full" if self.whole_checkpoints else "sharded"
        )


class StepsOutside:
    """Run steps outside the wrapped module's forward, because a step has a backward pass for every micro-batch."""

    lightning_module: Any

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        assert self.lightning_module is not None
        return self.lightning_module.training_step(*args, **kwargs)

    def validation_step(self, *args: Any, **kwargs: Any) -> Any:
        assert self.lightning_module is not None
        return self.lightning_module.validation_step(*args, **kwargs)


class _FSDP1(StepsOutside, FSDPStrategy):
    """Write a sharded checkpoint next to the previous one, and then replace that."""

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any | None = None) -> None:
        if self._state_dict_type == "full":
            return super().save_checkpoint(checkpoint, filepath, storage_options)
        with whole_folder(Path(self.broadcast(filepath)), self.global_rank == 0, self.barrier) as temporary:
            super().save_checkpoint(checkpoint, temporary, storage_options)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        with without_pickles(Path(checkpoint_path)):
            return super().load_checkpoint(checkpoint_path, weights_only)


def clip_gradients(model: nn.Module, largest: float) -> None:
    """Scale all gradients, also sharded ones, so that their total norm is at most `largest`."""
    if isinstance(model, FullyShardedDataParallel):
        model.clip_grad_norm_(largest)
        return
    by_mesh: dict[Any, list[nn.Parameter]] = {}  # torch adds norms only of gradients on the same device mesh
    for parameter in model.parameters():
        if parameter.grad is not None:
            by_mesh.setdefault(getattr(parameter.grad, "device_mesh", None), []).append(parameter)
    norms = [nn.utils.get_total_norm([p.grad for p in group if p.grad is not None]) for group in by_mesh.values()]
    norms = [norm.full_tensor() if isinstance(norm, DTensor) else norm for norm in norms]
    norm = norms[0] if len(norms) == 1 else torch.stack(norms).norm()
    for group in by_mesh.values():
        nn.utils.clip_grads_with_norm_(group, largest, norm)
