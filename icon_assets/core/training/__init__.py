"""A subset becomes a checkpoint.

Belongs here: encoding for training, the plan of steps, fine-tuning, states to resume from, worker processes, the
checkpoint's files. Does not belong here: choosing training samples, measuring a checkpoint."""
