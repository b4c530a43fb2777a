"""The steps of dedup: candidate pairs, verification, the choice of who stays."""
