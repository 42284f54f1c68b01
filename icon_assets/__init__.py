"""icon_assets: which instruction-tuning samples are worth training on, as Dagster assets."""
