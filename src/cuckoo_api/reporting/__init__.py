"""Results on disk become a report."""

from cuckoo_api.reporting.service import ProcessingFailed, make_report

__all__ = ["ProcessingFailed", "make_report"]
