"""SSH: connections, the pool that keeps them, and the hosts that operations see.

The only package that imports asyncssh.
"""
