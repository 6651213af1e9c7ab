"""The checks, one module each, with a function `run(sizes, rows)`."""
