"""The demo model: drawn images, questions about them, training, and its measured accuracy."""
