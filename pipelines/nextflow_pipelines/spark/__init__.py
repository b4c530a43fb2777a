"""The engine's edge: the session, Java, GPUs, units run on executors."""
