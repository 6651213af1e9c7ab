"""The demo model: drawn pictures, questions about them, training, and its measured accuracy."""
