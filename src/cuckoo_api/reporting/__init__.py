"""Results on disk become a report. Nothing is imported here: every worker would wait for it."""
