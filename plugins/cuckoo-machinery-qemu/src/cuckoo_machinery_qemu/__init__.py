"""Machines that QEMU runs directly, without a daemon."""
