"""Estimate the parameters, FLOPs and memory of a run before anything is allocated.

The numbers are exact for what is counted, because the real model and optimizer run on tensors without memory (torch's
meta device and fake tensors). Letters: B rows of a forward pass, T tokens of a row, L layers, D hidden size.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

Precision = Literal["32-true", "bf16-true", "bf16-mixed"]  # Lightning's names; "true": the weights also have this type
OptimizerSource = Callable[[torch.nn.Module], torch.optim.Optimizer]


@dataclass(frozen=True)
class Parameters:
    """Count the trained parameters of a model, tied ones once. `embedding`: token embeddings and an untied LM head."""

    total: int
    embedding: int

    @property
    def non_embedding(self) -> int:
        """Return the number of parameters outside embeddings and LM head."""
        return self.total - self.embedding


@dataclass(frozen=True)
class Memory:
    """Hold the bytes on one device. `activations`: tensors kept for the backward pass, and the loss's gradients.
    `checkpointed`: the same with activation checkpointing. `problem`: why it cannot work; if set, the rest is 0."""

    strategy: str
    weights: int = 0
    gradients: int = 0
    optimizer: int = 0
    activations: int = 0
    checkpointed: int = 0
    problem: str = ""

    def total(self, checkpointing: bool = False) -> int:
        """Return the sum in bytes."""
        activations = self.checkpointed if checkpointing else self.activations
        return self.weights + self.gradients + self.optimizer + activations


def empty(config: LlamaConfig, dtype: torch.dtype = torch.float32) -> LlamaForCausalLM:
    """Return the model on the meta device: shapes and types without memory."""
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
        torch.nn.Module.to(model, dtype)
    return model


def parameters(config: LlamaConfig) -> Parameters:
    """Count the model's parameters by arithmetic, which works for any size."""
    hidden, heads, kv_heads = config.hidden_size, config.num_attention_heads, config.num_key_value_heads or 1
    head = config.head_dim or hidden // heads
    attention = 2 * hidden * head * (heads + kv_heads) + config.attention_bias * (
        head * (heads + 2 * kv_heads) + hidden
    )
    mlp = 3 * hidden * config.intermediate_size + config.mlp_bias * (2 * config.intermediate_size + hidden)
    embedding = config.vocab_size * hidden * (1 if config.tie_word_embeddings else 2)
    layers = config.num_hidden_layers * (attention + mlp + 2 * hidden)  # 2: the norms
    return Parameters(embedding + layers + hidden, embedding)


def flops_per_token(config: LlamaConfig, sequence_length: int) -> int:
    """Return the model FLOPs of forward and backward pass for a token: 6 per matrix weight + 12 L D T for attention.

    They are the FLOPs of "model FLOPs utilisation" (PaLM, arXiv 2204.02311, appendix B): attention counts as not
    causal, the LM head counts for every token, and recomputation does not count.
    """
    model = empty(config)
    matrices = sum(p.numel() for p in model.model.layers.parameters() if p.ndim == 2)
    matrices += model.get_output_embeddings().weight.numel()
    hidden = config.num_attention_heads * (config.head_dim or config.hidden_size // config.num_attention_heads)
    return int(6 * matrices + 12 * config.num_hidden_layers * hidden * sequence_length)


def optimizer_bytes(optimizer: OptimizerSource, model: LlamaForCausalLM) -> int:
    """Return the bytes of the optimizer's state after a step; `model` is on the meta device."""
    for parameter in model.parameters():
        parameter.grad = torch.empty_like(parameter)
    made = optimizer(model)
    made.step()
    return _tensor_bytes(made.state_dict())


def activation_bytes(config: LlamaConfig, rows: int, sequence_length: int, precision: Precision) -> tuple[int, int]:
    """Return the bytes kept for the backward pass, without and with activation checkpointing.

    Models of one and two layers run on fake tensors while the tensors that autograd saves are counted; the difference
    is one layer. Attention is torch's fused one. The loss (goldfish.losses.linear_loss) keeps no logits, only the
    gradients of the hidden states and, in float32, of the LM head.
    """
    one, two = (_saved_bytes(config, layers, rows, sequence_length, precision) for layers in (1, 2))
    layer, rest = two - one, 2 * one - two
    itemsize = 2 if precision == "bf16-true" else 4  # of the hidden states between layers
    inputs = config.num_hidden_layers * rows * sequence_length * config.hidden_size * itemsize
    hidden = rows * sequence_length * config.hidden_size * (4 if precision == "32-true" else 2)
    rest += hidden + 4 * config.vocab_size * config.hidden_size
    return rest + config.num_hidden_layers * layer, rest + layer + inputs


def _saved_bytes(config: LlamaConfig, layers: int, rows: int, sequence_length: int, precision: Precision) -> int:
    from torch._subclasses.fake_tensor import FakeTensorMode  # imported here: slow, and training does not need it

    config = copy.deepcopy(config)
    config.num_hidden_layers = layers
    saved: dict[int, Tensor] = {}  # keeps the tensors alive, so that no two storages get the same address

    def keep(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage()._cdata] = tensor
        return tensor

    dtype = torch.bfloat16 if precision == "bf16-true" else torch.float32
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with FakeTensorMode(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
            model = LlamaForCausalLM(config)
            ids_BT = torch.zeros(rows, sequence_length, dtype=torch.int64)
            body = model.model
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                hidden_BTD = body.embed_tokens(ids_BT)
                angles = body.rotary_emb(hidden_BTD, position_ids=torch.arange(sequence_length)[None])
                for layer in body.layers:  # body(ids_BT) would build an attention mask for fake tensors
                    hidden_BTD = layer(hidden_BTD, attention_mask=None, position_embeddings=angles)
                body.norm(hidden_BTD)
            own = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
            return sum(t.untyped_storage().nbytes() for storage, t in saved.items() if storage not in own)
    finally:
        torch.set_default_dtype(before)


def memory(
    config: LlamaConfig,
    optimizer: OptimizerSource,
    precision: Precision,
    devices: int,
    batch_size: int,
    micro_batch_size: int | None,
    sequence_length: int,
) -> list[Memory]:
    """Return the memory on each device for every strategy, on a single device and on `devices` devices.

    `batch_size`: rows of a step over all devices; `micro_batch_size`: rows of a forward pass on one (None = its share).
    Not counted: fragmentation, communication buffers except DDP's, one chunk of the loss's logits.
    """
    share = max(1, batch_size // devices)
    shared, alone = (min(rows, micro_batch_size or rows) for rows in (share, batch_size))
    dtype = torch.bfloat16 if precision == "bf16-true" else torch.float32
    model = empty(config, dtype)
    weights, state = _tensor_bytes(list(model.parameters())), optimizer_bytes(optimizer, model)
    ddp = activation_bytes(config, shared, sequence_length, precision)
    found = [
        Memory("single", weights, weights, state, *activation_bytes(config, alone, sequence_length, precision)),
        Memory("ddp", weights, 2 * weights, state, *ddp),  # DDP's buckets hold the gradients a second time
        _fsdp("fsdp, fsdp2", config, optimizer, precision, devices, shared, sequence_length),
        *_deepspeed(config, optimizer, precision, devices, shared, sequence_length),
    ]
    part, name = copy.deepcopy(config), f"tensor_parallel={devices}"
    for key in ("num_attention_heads", "num_key_value_heads", "intermediate_size"):
        if getattr(config, key) % devices:
            return [*found, Memory(name, problem=f"{key}={getattr(config, key)} is no multiple of {devices}")]
        setattr(part, key, getattr(config, key) // devices)  # the head size and all outside the layers is not split
    return [*found, _fsdp(name, part, optimizer, precision, 1, alone, sequence_length)]


def _fsdp(
    name: str,
    config: LlamaConfig,
    optimizer: OptimizerSource,
    precision: Precision,
    devices: int,
    rows: int,
    sequence_length: int,
) -> Memory:
    """Estimate FSDP: all sharded, plus the gathered weights. Under bf16-mixed these and activations are bfloat16."""
    model = empty(config, torch.bfloat16 if precision == "bf16-true" else torch.float32)
    weights, state = _tensor_bytes(list(model.parameters())), optimizer_bytes(optimizer, model)
    compute: Precision = "32-true" if precision == "32-true" else "bf16-true"
    activations = activation_bytes(config, rows, sequence_length, compute)
    shard = _share(weights, devices)
    return Memory(name, shard + _gathered(config, compute), shard, _share(state, devices), *activations)


def _deepspeed(
    config: LlamaConfig,
    optimizer: OptimizerSource,
    precision: Precision,
    devices: int,
    rows: int,
    sequence_length: int,
) -> list[Memory]:
    """Estimate ZeRO (arXiv 1910.02054): stage 1 shards the optimizer state, 2 also gradients, 3 also weights.

    The state is float32, with a float32 copy of the weights. bf16-mixed stores weights and gradients in bfloat16.
    """
    compute: Precision = "32-true" if precision == "32-true" else "bf16-true"
    total = sum(parameter.numel() for parameter in empty(config).parameters())
    weights = total * (4 if compute == "32-true" else 2)
    shard = _share(weights, devices)
    state = _share(optimizer_bytes(optimizer, empty(config)) + 4 * total, devices)
    activations = activation_bytes(config, rows, sequence_length, compute)
    stages = [(weights, weights), (weights, shard), (shard + _gathered(config, compute), shard)]
    return [Memory(f"deepspeed stage {n}", *held, state, *activations) for n, held in enumerate(stages, start=1)]


def _gathered(config: LlamaConfig, precision: Precision) -> int:
    """Return the bytes of gathered weights: all outside the layers, the current layer and the prefetched next one."""
    model = empty(config, torch.float32 if precision == "32-true" else torch.bfloat16)
    layer = _tensor_bytes(list(model.model.layers[0].parameters()))
    return _tensor_bytes(list(model.parameters())) - (config.num_hidden_layers - 2) * layer


def _share(size: int, devices: int) -> int:
    return -(-size // devices)


def _tensor_bytes(found: Any) -> int:
    """Return the bytes of all tensors in nested dicts and lists."""
    if isinstance(found, Tensor):
        return found.numel() * found.itemsize
    if isinstance(found, dict):
        return sum(map(_tensor_bytes, found.values()))
    return sum(map(_tensor_bytes, found)) if isinstance(found, list | tuple) else 0
