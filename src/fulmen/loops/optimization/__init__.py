"""What a training step gives back, and the closure that optimizers call for it."""
