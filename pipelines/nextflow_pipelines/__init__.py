"""How work is spread over a cluster: the stage contract, the Spark session, one file a stage.

What a stage does to a document is a plain function in `nextflow_data` or `nextflow_tokenize`. Importing this package loads
no Spark.
"""
