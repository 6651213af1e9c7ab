"""The demo model: drawn images, questions, training and evaluation."""
