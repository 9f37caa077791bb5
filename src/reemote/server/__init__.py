"""The REST API: every operation of the catalogue over HTTP, for the user who runs it.

The only package that imports FastAPI.
"""
