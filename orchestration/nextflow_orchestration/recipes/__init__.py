"""What a recipe may say, and how a mistake in one is told."""
