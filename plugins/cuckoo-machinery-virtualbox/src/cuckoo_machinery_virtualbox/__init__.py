"""VirtualBox machines, driven by VBoxManage."""
