"""The events of a run, for ``execute(..., on_event=...)`` and ``stream(...)``."""

from .core.events import (
    Event,
    EventsDropped,
    HostConnected,
    HostFinished,
    HostStarted,
    OutputLine,
    RunFinished,
    RunStarted,
    StepFinished,
    StepStarted,
)

__all__ = [
    "Event",
    "EventsDropped",
    "HostConnected",
    "HostFinished",
    "HostStarted",
    "OutputLine",
    "RunFinished",
    "RunStarted",
    "StepFinished",
    "StepStarted",
]
