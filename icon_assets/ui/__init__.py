"""`icon-assets ui`: Dagster's web interface behind a guard, with daemon and code server, as processes that end
together."""
