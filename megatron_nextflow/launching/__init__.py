"""Starting processes and attending them: here, or by a Slurm script."""
