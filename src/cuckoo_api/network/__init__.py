"""The guests' network: what it carries away as a capture, and what answers in it."""

from cuckoo_api.network.capture import capture
from cuckoo_api.network.sinkhole import Sinkhole

__all__ = ["Sinkhole", "capture"]
