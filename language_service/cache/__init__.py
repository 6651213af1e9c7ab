"""The paged key-value cache: who owns which block, and the tensors."""
