"""One module for each part of the report; each has ``run`` and ``EMPTY``.

``run(evidence, job, notes)`` makes the part. ``EMPTY`` is what stands there when it failed.
"""
