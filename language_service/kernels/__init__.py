"""The arithmetic of the decoder's layers, made for one kind of processor each; every kind gives the same numbers."""
