"""What surrounds a run: the Prefect server, interrupts, and what earlier runs left."""
