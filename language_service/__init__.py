"""Visual and text tokens to a token stream."""
