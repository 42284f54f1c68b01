"""Features of a sample from one pass of the model over it alone.

Belongs here: NLL with and without prompt, embeddings, similarity of embeddings. Does not belong here: contribution,
arms. Data comes as samples and leaves as rows of `sample_features` and `probe_features`.
"""
