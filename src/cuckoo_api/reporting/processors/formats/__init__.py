"""What single file formats say about a file. Each module is loaded for its own files only."""
