"""Nameless machines for cuckoo-api-server."""
