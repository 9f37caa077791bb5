"""Test deployments without a machine to spare.

:func:`sandbox` gives real SSH hosts inside this process; :class:`Fake` gives scripted ones without
any network.
"""

from .fake import Fake
from .sandbox import Sandbox, sandbox

__all__ = ["Fake", "Sandbox", "sandbox"]
