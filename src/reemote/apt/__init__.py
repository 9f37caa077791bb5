"""Apt: install and remove Debian packages.

APT runs without questions: configuration files that were changed on the host are kept, and while another
program holds a lock of APT or dpkg, it waits, but not for ever. ``changed`` tells whether the set of installed
packages is another than before, as dpkg has it, also where APT failed half-way.
"""

# The order is that of the documentation, so it is not sorted.
# isort: off
from .packages import GetPackages
from .commands import Install, Remove, Update, Upgrade
from .ensured import Package
# isort: on

from .packages import Change, Changes, InstalledPackage, InstalledPackages

__all__ = [
    "Change",
    "Changes",
    "GetPackages",
    "Install",
    "InstalledPackage",
    "InstalledPackages",
    "Package",
    "Remove",
    "Update",
    "Upgrade",
]
