"""The vision half of a model, in torch alone: pixels in, visual tokens out."""
