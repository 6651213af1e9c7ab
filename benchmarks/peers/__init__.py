"""Every engine of the decoding benchmark as a process that speaks one plain protocol, ours among them."""
