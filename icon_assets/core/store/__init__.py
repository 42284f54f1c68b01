"""Tables, views, and the ledger of products.

Belongs here: schema, Delta tables, published views, ledger. Does not belong here: assets, models, the meaning of
columns. Every other room reads and writes its tables through this one.
"""
