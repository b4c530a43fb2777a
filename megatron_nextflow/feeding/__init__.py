"""Which pack is next."""
