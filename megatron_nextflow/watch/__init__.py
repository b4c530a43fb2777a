"""Is the training well: losses, hangs, slow processes, logs, metrics."""
