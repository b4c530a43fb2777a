"""What the objective is a sum of: one file a term."""
