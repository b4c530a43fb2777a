"""A run from source files to report, as a Prefect flow."""
