"""Everything that computes. Nothing here knows Dagster; torch and its friends are imported inside functions."""
