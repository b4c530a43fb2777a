"""The stage contract: fingerprints, units of work, the commit."""
