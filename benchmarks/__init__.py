"""Each module here is one script that measures and prints figures."""
