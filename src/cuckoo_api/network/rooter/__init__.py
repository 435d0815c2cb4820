"""The one process that may change the host's network, and the server's end of its socket."""
