"""All computation. Nothing here uses Dagster, and heavy libraries such as torch are imported inside functions."""
