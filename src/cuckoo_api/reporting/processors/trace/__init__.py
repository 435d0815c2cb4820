"""strace's output, read as a stream."""
