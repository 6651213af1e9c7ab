"""One script per figure the README quotes; each compares within one run."""
