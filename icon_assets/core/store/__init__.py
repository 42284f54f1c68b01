"""Tables, views, and the record of what was made.

Belongs here: schema, Delta tables, published views, ledger. Does not: assets, models, what a column means.
Every other room reads and writes its tables through this one.
"""
