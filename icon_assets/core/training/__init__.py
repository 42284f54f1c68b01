"""A subset becomes a checkpoint.

Belongs here: encoding for training, the plan of steps, fine-tuning, states to resume from, worker processes, the
checkpoint's files and rows. Does not: which samples are trained on, how a checkpoint is measured."""
