"""What each product is made from, which products are up to date, what the next run would do and what it costs.

Belongs here: recipes, freshness, plan, preview, estimate. Does not belong here: making a product. Data comes from
settings, ledger and tables and leaves as recipes, states and plans."""
