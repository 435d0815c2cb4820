"""YARA: the rules of the working directory, and what they match."""
