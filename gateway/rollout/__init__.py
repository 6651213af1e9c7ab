"""Move traffic to a canary release, and roll it back.

The rest of the gateway uses three modules: `traffic` routes a request to a release, `mirror` also sends it to the
canary, and `wiring` opens everything. This file imports nothing, so that `policy` loads without its neighbours.
"""
