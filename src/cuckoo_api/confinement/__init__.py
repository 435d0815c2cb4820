"""What a process gives up before it touches anything that a guest or a client wrote.

Imports nothing of the project, and nothing that starts slowly: worker processes use it first.
"""

from cuckoo_api.confinement.confine import Layer, confine, confinement

__all__ = ["Layer", "confine", "confinement"]
