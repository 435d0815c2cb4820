"""Machines that libvirt runs. The core finds it by its entry point, :mod:`.plugin`."""
