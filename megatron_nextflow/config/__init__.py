"""What a training can be told. No torch."""
