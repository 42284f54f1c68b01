"""Thin Dagster shells, one module per group: they read, call the pure functions of `core`, store, and report."""
