#!/bin/sh
# Starts again what starts by itself, so that a reboot analysis records it from the first moment:
# cron with its @reboot jobs, start scripts, what init was told to run besides its own, systemd's services, and a
# login.
# The agent may be there before init has come to cron: two of them would fight for its lock.
tries=0
until [ -s /run/crond.pid ] || [ "$tries" -ge 50 ]; do
    sleep 0.1
    tries=$((tries + 1))
done
# Stopped, not killed: init would start another cron at once. Its lock goes with the file.
[ -r /run/crond.pid ] && kill -STOP "$(cat /run/crond.pid)" 2>/dev/null
rm -f /run/crond.pid /run/crond.reboot
for script in /etc/rc.local /etc/init.d/S*; do
    [ -x "$script" ] && "$script" start </dev/null &
done
sed -n 's/^[^:#]*:[^:]*:\(once\|respawn\|sysinit\|wait\):-*//p' /etc/inittab 2>/dev/null |
    grep -v -e /etc/init.d/rcS -e /usr/lib/guest-agent/ -e 'cron -f' -e getty |
    while read -r line; do
        sh -c "exec $line" </dev/null &
    done
# There is no systemctl here to enable a unit of systemd: each one that was put there is taken for enabled.
sed -n 's/^ExecStart=[-@:+!|]*//p' /etc/systemd/system/*.service 2>/dev/null |
    while read -r line; do
        sh -c "exec $line" </dev/null &
    done
cron -f &
cd "$HOME" && "$SHELL" -l -c : </dev/null
wait
