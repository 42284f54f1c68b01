"""One language model: preparing it, loading it, counting its FLOPs, and its logits at given positions.

Belongs here: preparing a model, loading it, FLOPs, memory, native kernels. Does not belong here: pairs, scores,
training. Data comes as a name in the settings and leaves as a model in memory with its record."""
