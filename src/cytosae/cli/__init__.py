"""The command line: one thin file a verb, loaded only when it is called."""

from cytosae.cli._main import main

__all__ = ["main"]
