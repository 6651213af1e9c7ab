"""Which sequences run in the next step, and how far: plain policy, no tensors, no transport."""
