"""Training: the LightningModule, its optimizers, callbacks and devices."""
