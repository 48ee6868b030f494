"""The training loops that training.py compares, each in a thread of its own: goldfish's, bare PyTorch, Lightning, Trainer, litgpt."""

import contextlib
import ctypes
import threading
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
from hydra import compose, initialize_config_dir
from linear_loss import OURS
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

from goldfish.cli.train import plain
from goldfish.config import build, home
from goldfish.data.rows import validation_rows
from goldfish.jobs.train import Job, run
from goldfish.objectives.next_token import target_count
from goldfish.training.callbacks import Interrupted
from goldfish.training.trainer import TrainerSettings

ctypes.CDLL(None).mallopt(-8, 1)  # M_ARENA_MAX: threads share one heap, so memory behaves as in a program of one thread


class Size(NamedTuple):
    """Overrides of conf/, the batch, steps of a call, steps between log entries, and counted calls."""

    overrides: str
    rows: int
    tokens: int
    steps: int
    log_every: int
    repeats: int
    vocabulary: int | None = None  # the tokenizer is filled up with tokens that do not occur: the text is too short


PLANNED = 704  # steps of the run that is measured in part: the quickstart's, so that as many rows carry documents
COMMON = "threads=1 optimizer=adamw schedule=constant strategy.accelerator=cpu"
RARELY = "trainer.validate_every=1000 trainer.memorization_every=1000 trainer.checkpoint_every=1000"
SHORT = (
    "data.injection.document_tokens=32 evaluation.prefix_tokens=16 evaluation.suffix_tokens=16"  # documents of "tiny"
)
COMPILED = f"{OURS}, strategy.compile=true"
Pause = Callable[[], None]


def composed(overrides: list[str]) -> dict[str, Any]:
    """Return conf/train.yaml with overrides, as goldfish-train would freeze it."""
    with initialize_config_dir(str(home() / "conf"), version_base="1.3"):
        return plain(compose("train", overrides))


class Task:
    """What all loops train on: the parts of goldfish's configuration, for `steps` steps."""

    def __init__(self, size: Size, k: int | None, steps: int, folder: Path) -> None:
        words = [
            *size.overrides.split(),
            *COMMON.split(),
            *RARELY.split(),
            *(SHORT.split() if size.tokens < 128 else []),
        ]
        words += ["mask=hashed", f"mask.k={k}"] if k else ["mask=none"]
        words += [f"data.batch_size={size.rows}", f"data.sequence_length={size.tokens}"]
        words += [f"data.tokens={max(PLANNED, steps + 1) * size.rows * size.tokens}"]
        words += [f"data.cache_dir={folder.parent / 'cache'}", f"trainer.log_every={size.log_every}"]
        if size.vocabulary:
            tokenizer = build(Job, composed(words)).data.prepare().tokenizer
            tokenizer.add_tokens([f"<unused {i}>" for i in range(len(tokenizer), size.vocabulary)])
            tokenizer.save_pretrained(folder / "tokenizer")
            words += ["data/tokenizer=pretrained", f"data.tokenizer.path={folder / 'tokenizer'}"]
        self.config = composed(words)
        self.folder, self.steps, self.tokens, self.rows = folder, steps, size.tokens, size.rows
        self.log_every = size.log_every
        self.job = build(Job, self.config)
        self.prepared = self.job.data.prepare()
        self.held_out = validation_rows(self.prepared.validation, size.tokens, 4 * size.tokens)

    def model(self) -> LlamaForCausalLM:
        return self.job.model(len(self.prepared.tokenizer), self.prepared.separator, self.job.seed)

    def keep(self, batch: dict[str, Tensor]) -> Tensor:
        return self.job.mask(batch["ids"], boundary_id=self.prepared.separator, visit_B=batch["visit"])

    def loader(self) -> DataLoader:
        """Return the run's batches as `input_ids` and `labels`, with -100 for dropped tokens."""

        def labelled(batch: dict[str, Tensor]) -> dict[str, Tensor]:
            labels = batch["ids"].masked_fill(~self.keep(batch), -100) if self.job.mask.k else batch["ids"]
            return {"input_ids": batch["ids"], "labels": labels}

        loader = self.job.data.train_dataloader()
        loader.collate_fn = labelled
        return loader

    def optimizer(self, model: torch.nn.Module) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
        optimizer = self.job.optimizer(model)
        return optimizer, self.job.schedule(optimizer, PLANNED)


def ours(task: Task, pause: Pause, compiled: bool = False) -> LlamaForCausalLM:
    """Run goldfish-train's own `run()`, stopped as by Ctrl-C after the last step."""
    done: list[None] = []

    def stop_requested() -> bool:  # asked once a step
        pause()
        done.append(None)
        return len(done) == task.steps

    config = task.config | {"strategy": task.config["strategy"] | {"compile": compiled}}
    folder = task.folder / f"run_{compiled}"
    folder.mkdir(parents=True)
    with contextlib.suppress(Interrupted):
        run(config, folder, "experiments/speed/training.py", stop_requested)
    saved = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    model = task.model()
    model.load_state_dict({key[6:]: value for key, value in saved.items() if key.startswith("model.")})
    return model


def bare(task: Task, pause: Pause) -> LlamaForCausalLM:
    model = task.model()
    optimizer, schedule = task.optimizer(model)
    for batch in islice(task.loader(), task.steps):
        model(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        pause()
    return model


class Plain(pl.LightningModule):
    """The smallest LightningModule that trains, with the loss of transformers or of goldfish."""

    def __init__(self, task: Task, pause: Pause, with_goldfish_loss: bool) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.model, self.task, self.pause, self.with_goldfish_loss = task.model(), task, pause, with_goldfish_loss

    def configure_optimizers(self) -> Any:
        optimizer, schedule = self.task.optimizer(self.model)
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        optimizer: Any = self.optimizers()
        if self.with_goldfish_loss:
            keep = self.task.keep(batch)
            loss = self.task.job.objective(self.model, batch["ids"], keep) / target_count(keep)
        else:
            loss = self.model(**batch).loss
        self.manual_backward(loss)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule: Any = self.lr_schedulers()
        schedule.step()
        if self.trainer.loggers:
            self.log("train/loss", loss.detach())
        self.pause()


def lightning(
    task: Task, pause: Pause, with_goldfish_loss: bool = False, with_logging: bool = False
) -> LlamaForCausalLM:
    """Run our Trainer without callbacks, loggers and checkpoints, or with our loggers and Lightning's `self.log`."""
    module = Plain(task, pause, with_goldfish_loss)
    settings = TrainerSettings(options={"enable_checkpointing": False})
    logger = task.job.logger(task.folder / "lightning_logs") if with_logging else False
    trainer = settings.trainer(task.steps, task.job.strategy, [], logger, str(task.folder / "lightning"))
    trainer.log_every_n_steps = task.log_every
    trainer.fit(module, task.job.data.train_dataloader() if with_goldfish_loss else task.loader())
    return module.model


def hugging_face(task: Task, pause: Pause) -> LlamaForCausalLM:
    class AfterStep(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            pause()

    class WithLoader(Trainer):
        def get_train_dataloader(self) -> Any:
            return self.accelerator.prepare(task.loader())

    model = task.model()
    arguments = TrainingArguments(
        str(task.folder / "trainer"),
        max_steps=task.steps,
        per_device_train_batch_size=task.rows,
        max_grad_norm=1.0,
        logging_steps=task.log_every,
        report_to="tensorboard",
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
    )
    rows = task.job.data.rows()
    WithLoader(model, arguments, train_dataset=rows, optimizers=task.optimizer(model), callbacks=[AfterStep()]).train()
    return model


def litgpt(task: Task, pause: Pause, compiled: bool = True) -> torch.nn.Module:
    """Run `litgpt.pretrain.fit` as its `main` does. Where tokens are dropped, its loss is given our labels."""
    from lightning.fabric import Fabric
    from litgpt import GPT, Config, pretrain
    from litgpt.args import EvalArgs, TrainArgs
    from litgpt.scripts.convert_hf_checkpoint import copy_weights_hf_llama
    from litgpt.utils import choose_logger

    start = task.model()
    known = start.config
    config = Config(
        name="benchmark",
        block_size=task.tokens,
        vocab_size=known.vocab_size,
        padded_vocab_size=known.vocab_size,
        n_layer=known.num_hidden_layers,
        n_head=known.num_attention_heads,
        n_embd=known.hidden_size,
        intermediate_size=known.intermediate_size,
        norm_class_name="RMSNorm",
        norm_eps=known.rms_norm_eps,
        mlp_class_name="LLaMAMLP",
        rotary_percentage=1.0,
        parallel_residual=False,
        bias=False,
    )
    gpt = GPT(config)
    weights: dict[str, Tensor] = {}
    copy_weights_hf_llama(config, {}, weights, dict(start.state_dict()))
    gpt.load_state_dict(weights)
    gpt.transformer.wte.weight = gpt.lm_head.weight
    logger = choose_logger("tensorboard", task.folder / f"litgpt_{compiled}", name="pretrain")
    fabric = Fabric(accelerator="cpu", devices=1, precision="32-true", loggers=[logger])
    model = fabric.setup(torch.compile(gpt) if compiled else gpt)
    settings = task.job.optimizer  # it finds the norms by their names in transformers
    matrices, norms = ([p for p in gpt.parameters() if (p.ndim < 2) == is_norm] for is_norm in (False, True))
    groups = [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": norms, "weight_decay": 0.0}]
    optimizer = fabric.setup_optimizers(torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas))

    def batches() -> Iterator[Tensor]:
        ended = torch.full((task.rows, 1), -100)  # the last token of a row has no target
        for step, batch in enumerate(task.loader()):
            if step:
                pause()
            labels.now = torch.cat([batch["labels"], ended], 1)
            yield torch.cat([batch["input_ids"], ended], 1)

    if task.job.mask.k:
        pretrain.chunked_cross_entropy = _with_labels
    state = {"model": model, "optimizer": optimizer, "iter_num": 0, "step_count": 0}
    train = TrainArgs(
        save_interval=None,
        log_interval=task.log_every,
        global_batch_size=task.rows,
        micro_batch_size=task.rows,
        max_tokens=task.steps * task.rows * task.tokens,
        lr_warmup_steps=0,
        max_norm=1.0,
        min_lr=settings.lr,
    )
    evaluate = EvalArgs(interval=10**9, final_validation=False)
    labels.now = None
    held_out = [torch.ones(1, task.tokens + 1, dtype=torch.int64)]  # it insists on trying two
    pretrain.fit(fabric, 1, state, batches(), held_out, task.folder, None, train, evaluate)
    return gpt


labels = threading.local()  # of the batch that this thread's litgpt is at


def _with_labels(logits: Tensor, targets: Tensor, **settings: Any) -> Tensor:
    """Compute litgpt's cross entropy on the labels of the batch in place of all its tokens."""
    from litgpt.utils import chunked_cross_entropy

    if labels.now is not None:  # not one of the trials before training
        targets = labels.now[:, 1:].contiguous()
    return chunked_cross_entropy(logits, targets, **settings)


LOOPS: dict[str, Callable[[Task, Pause], torch.nn.Module]] = {
    OURS: ours,
    COMPILED: partial(ours, compiled=True),
    "bare PyTorch": bare,
    "Lightning alone": lightning,
    "Lightning with self.log": partial(lightning, with_logging=True),
    "Lightning alone, goldfish_loss": partial(lightning, with_goldfish_loss=True),
    "Hugging Face Trainer": hugging_face,
    "litgpt pretrain": litgpt,
    "litgpt pretrain, not compiled": partial(litgpt, compiled=False),
}


class Standing:
    """A training loop in a thread of its own. A call lets it do `steps` steps; between calls it waits."""

    def __init__(self, loop: Callable[[Task, Pause], torch.nn.Module], task: Task, steps: int) -> None:
        self._go, self._stands = threading.Semaphore(0), threading.Semaphore(0)
        self._done, self._error, self._model = 0, None, None

        def pause() -> None:
            self._done += 1
            if self._done % steps == 0:
                self._stands.release()
                self._go.acquire()

        def work() -> None:
            self._go.acquire()
            try:
                self._model = loop(task, pause)
            except BaseException as error:
                self._error = error
            self._stands.release()

        threading.Thread(target=work, daemon=True).start()

    def __call__(self) -> None:
        self._go.release()
        self._stands.acquire()
        if self._error:
            raise self._error

    def model(self) -> torch.nn.Module:
        """Let the loop end, and return what it trained."""
        self()
        return self._model
