#!/bin/sh
# The health check of the NATS servers of compose.yaml.
#
# It also ends a server that stopped serving a stream when its disk was full, once space is free again. A server newer
# than 2.12 (observed with 2.15) does not answer publishes on that stream until it is restarted, which Docker then does.
# As after a crash, nothing that was acknowledged is lost.

wget -q -O /dev/null http://127.0.0.1:8222/healthz 2>/dev/null && exit 0

# Reads the body of the 503, which wget does not print.
if printf 'GET /healthz HTTP/1.0\r\n\r\n' | nc 127.0.0.1 8222 | grep -q 'write error'; then
    free_kilobytes=$(df -Pk /data | awk 'NR == 2 { print $4 }')
    if [ "$free_kilobytes" -ge 8192 ]; then
        echo "ending the server: it stopped serving a stream when its disk was full, and space is free again"
        kill 1
    fi
fi
exit 1
