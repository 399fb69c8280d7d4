#!/bin/sh
# The health check of the NATS servers of compose.yaml.
#
# It also ends a server that gave a stream up when its disk was full, once there is room again: a newer server than 2.12
# (2.15 was seen to) answers no publish on that stream until it is started anew, which Docker then does. As after a
# crash, nothing that was acknowledged is lost.

wget -q -O /dev/null http://127.0.0.1:8222/healthz 2>/dev/null && exit 0

# What it says, which wget does not show of an answer of 503.
if printf 'GET /healthz HTTP/1.0\r\n\r\n' | nc 127.0.0.1 8222 | grep -q 'write error'; then
    free_kilobytes=$(df -Pk /data | awk 'NR == 2 { print $4 }')
    if [ "$free_kilobytes" -ge 8192 ]; then
        echo "ending the server: it gave a stream up when its disk was full, and there is room again"
        kill 1
    fi
fi
exit 1
