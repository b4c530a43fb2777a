"""Scorers of ours, one a file: what is measured from pixels, without a model."""
