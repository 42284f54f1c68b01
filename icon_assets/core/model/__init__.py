"""One language model: preparing it, loading it, counting its FLOPs, and its logits at given positions.

Belongs here: where a model comes from, how it gets into memory, adapters, padded batches, FLOPs, memory, native
kernels. Does not belong here: pairs, scores, training. Data comes as a name in the settings and leaves as a model in
memory with its record.
"""
