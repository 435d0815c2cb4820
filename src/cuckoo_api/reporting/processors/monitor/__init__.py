"""The logs of the monitor that Cuckoo's and CAPE's Windows analyzers put into processes."""
