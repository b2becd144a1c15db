"""Scripts to run, and small pipelines of random weights to run them with."""
