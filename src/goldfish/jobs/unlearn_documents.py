"""Make a run of goldfish-train forget its injected documents, and evaluate the model in the same way as that run."""

from typing import Any

from transformers import LlamaForCausalLM

from goldfish.evaluation.engine import prepare_defences
from goldfish.jobs.base import Run, evaluate_run
from goldfish.models.llama import LlamaFromPretrained, count_parameters
from goldfish.training.optimizers import OptimizerSource
from goldfish.training.strategies import Strategy
from goldfish.unlearning.documents import InjectedDocuments, validation_loss
from goldfish.unlearning.module import Batches
from goldfish.unlearning.objectives import Method


class UnlearnDocuments:
    """Forget the injected documents of a finished run by `method`; ValueError if the method cannot forget documents."""

    def __init__(self, source: InjectedDocuments, method: Method) -> None:
        if (reason := source.refuse(method)) is not None:
            raise ValueError(reason)
        self.source, self.method = source, method

    def refuse(self, optimizer: OptimizerSource, strategy: Strategy) -> str | None:
        """Return None: the model fits, since a model of this size was trained already."""
        return None

    def begin(self, run: Run, epochs: int, batch_size: int, seed: int) -> tuple[LlamaForCausalLM, Batches]:
        """Return the run's model and the batches: its documents, and as many windows of its background text."""
        self.parts = self.source.parts(run.on_progress)
        self.prepared = self.parts.data.prepared
        prepare_defences(self.parts.evaluation, self.parts.data)
        self.seen = self.source.exposures()
        forget, retain = self.source.rows(self.parts.data, epochs * len(self.seen), seed)
        run.on_progress("building the model")
        weights = LlamaFromPretrained(str(self.source.folder / "model"))
        model = weights(len(self.prepared.tokenizer), self.prepared.separator, seed)
        return model, Batches(self.method.takes, forget, retain, [], batch_size, epochs, seed)

    def measure(self, run: Run, model: LlamaForCausalLM, batches: Batches) -> dict[str, Any]:
        """Evaluate the model in the same way as the run; return the content of result.json.

        `seed`, `strategy`, `k`, `h`: those of the run. `cost`, `tokens`: the sums of both. `trained`: the run's folder.
        """
        parts, before = self.parts, self.source.result
        metrics = evaluate_run(run, model, self.prepared, self.seen, parts.mask, parts.evaluation)
        return {
            **{key: before[key] for key in ("seed", "strategy", "k", "h", "control", "exposures")},
            "trained": str(self.source.folder),
            "parameters": count_parameters(model),
            "steps": batches.steps,
            **self.source.account(self.method, batches),
            "metrics": {**metrics, "val_loss": validation_loss(model, parts.data, parts.objective)},
        }
