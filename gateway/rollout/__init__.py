"""Move traffic between releases, watch a canary, and roll it back by itself.

Others use `traffic` (which release answers a request), `mirror` (ask both releases) and `wiring` (open it all).
This file imports nothing, so that `policy` stays free of what its neighbours need.
"""
