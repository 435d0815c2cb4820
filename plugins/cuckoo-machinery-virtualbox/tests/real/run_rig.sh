#!/bin/bash
# The first process of a rig, in namespaces of its own: run_rig.sh FOLDER WORK. FOLDER is from
# build_rig.sh, and stays as it is; WORK is seen under its own name inside. The X server's number
# is printed once it is ready. When this process ends, the kernel ends all that it started.
set -euo pipefail
root=$1 work=$2
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
mount -t tmpfs tmpfs "$root/tmp"
mount -t tmpfs tmpfs "$root/run"
mount --bind /dev "$root/dev"
mkdir -p "$root$work"
mount --bind "$work" "$root$work"
mount -o remount,bind,ro "$root"
ip link set lo up
# not exec: this shell has to collect the processes that lose their parents
chroot "$root" Xvfb -displayfd 1 -screen 0 800x600x24 -nolisten tcp 2>"$work/xvfb.log"
