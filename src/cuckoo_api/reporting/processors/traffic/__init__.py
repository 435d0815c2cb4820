"""Packets, and the conversations they are parts of."""
