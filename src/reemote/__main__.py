"""``python -m reemote``: the command line."""

from .cli.main import main

main()
