#!/bin/bash
# Puts the real VirtualBox of Debian sid into a folder: build_rig.sh FOLDER. As root; about two
# minutes and 1.3 GB. Nothing on the host is changed. A folder that is complete is left as it is.
#
# There is no kernel driver in there. VirtualBoxVM can do without one: its interpreter runs the
# whole machine. A shell script stands in for VBoxHeadless, which cannot, and starts it.
set -euo pipefail
target=${1:?usage: build_rig.sh FOLDER}
[ ! -e "$target/ready" ] || exit 0
command -v debootstrap >/dev/null || { echo "there is no debootstrap: apt-get install debootstrap" >&2; exit 1; }
# where this host's own packages come from
mirror=$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' | head -n 1)
work=$target.new
# else every process of this script would see the folder's file systems, and leave them there
[ "${RIG_UNSHARED:-}" ] || exec env RIG_UNSHARED=1 unshare --mount --pid --fork --kill-child "$0" "$target"

rm -rf --one-file-system "$work"
mkdir -p "$work"
debootstrap --variant=minbase --components=main,contrib sid "$work" "$mirror"
mount -t proc proc "$work/proc"
# the host's proxy and the like, where it has any
apt-config dump | grep '^Acquire::' >"$work/etc/apt/apt.conf.d/99host" || true
cp /etc/resolv.conf /etc/hosts "$work/etc/"
printf '#!/bin/sh\nexit 101\n' >"$work/usr/sbin/policy-rc.d"
chmod +x "$work/usr/sbin/policy-rc.d"
chroot "$work" apt-get update
# virtualbox-source stands in for virtualbox-dkms, which would build a kernel module;
# systemd-standalone-sysusers for systemd; virtualbox-qt has VirtualBoxVM
DEBIAN_FRONTEND=noninteractive chroot "$work" apt-get install -y --no-install-recommends \
    virtualbox virtualbox-source systemd-standalone-sysusers virtualbox-qt xvfb xauth
chroot "$work" apt-get clean

# VBoxSVC runs "VBoxHeadless --comment NAME --startvm UUID --vrde config", and expects the process
# with that very id to lock the machine
cat >"$work/usr/lib/virtualbox/VBoxHeadless" <<'SHIM'
#!/bin/sh
while [ $# -gt 0 ]; do
    [ "$1" != --startvm ] || uuid=$2
    shift
done
exec /usr/lib/virtualbox/VirtualBoxVM --startvm "$uuid" --execute-all-in-iem --driverless
SHIM
chmod 755 "$work/usr/lib/virtualbox/VBoxHeadless"
umount "$work/proc"
touch "$work/ready"
rm -rf --one-file-system "$target"
mv "$work" "$target"
