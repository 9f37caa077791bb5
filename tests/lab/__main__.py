"""Build the root file system of the lab's hosts: ``python -m tests.lab``."""

import sys

from tests.lab.image import main

sys.exit(main(sys.argv[1:]))
