"""A training started, found again and watched: here, on Slurm, as a flow."""
