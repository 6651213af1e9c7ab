"""Rollouts: which release answers a conversation, how a canary is judged, and who decides what happens next.

`choice`, `plan`, `counts`, `significance`, `guard`, `state` and `controller` are plain Python: no clock, no network.
The stores keep the state, `keeper` joins all of it to a running gateway, and `service` answers operators.
"""
