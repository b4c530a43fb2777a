"""Which documents share a sequence, what it costs, and what its sample holds."""
