"""How the vision tokenizer is trained: its losses, steps, checkpoints, and a recipe's training stages."""
