"""What each product is made from, what is up to date, what would be done and at what price.

Belongs here: recipes, freshness, plan, preview, estimate. Does not: making a product. Data comes from settings, ledger
and tables and leaves as recipes, states and plans."""
