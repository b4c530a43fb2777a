"""When things run and what people see: the recipe, the Prefect flow, the `mnf` command, launchers, reports.

Importing this package loads none of Prefect, Spark or torch.
"""
