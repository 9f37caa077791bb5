"""Moving files: between hosts and this machine, whole or not at all."""
