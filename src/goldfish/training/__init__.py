"""Train a model: the LightningModule, its optimizers, callbacks and strategies."""
