"""Run the services as processes on this machine."""

from tandem.stack.process import ServiceProcess
from tandem.stack.stack import Stack, StackConfig, interrupt_on_signals

__all__ = [
    "ServiceProcess",
    "Stack",
    "StackConfig",
    "interrupt_on_signals",
]
