"""Decide and run: what may be asked of the server, and how an analysis goes."""
