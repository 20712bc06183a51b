"""Training: settings, trainer, the loss of a step, targets, checkpoints, what is written and pushed."""
