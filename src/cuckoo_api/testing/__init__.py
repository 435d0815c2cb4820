"""For people who test against this project: a fake hypervisor and a suite for every machinery.

``cuckoo_api.testing.fake`` runs a whole server without a virtual machine;
``cuckoo_api.testing.conformance`` holds a machinery plugin to its contract;
``cuckoo_api.testing.guestimage`` gives it the project's own Linux guest to run.
"""
