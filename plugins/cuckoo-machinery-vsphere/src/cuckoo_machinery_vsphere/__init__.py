"""Machines on VMware vSphere."""
