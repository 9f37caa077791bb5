"""What a deployment may know of the host that it runs on."""

from .core.context import Context

__all__ = ["Context"]
