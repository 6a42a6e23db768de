#!/usr/bin/env bash
# capture.sh [HOST] [--count N] [--decrypt]: shows N packets (default 20) of the underlay at a host (default 1).
#   --decrypt  let tshark decrypt and check them; needs agents started by up.sh --esp-key-log
# It waits for traffic: run ping.sh beside it.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"

n=1 count=20 decrypt=''
while [ $# -gt 0 ]; do
    case $1 in
        --count)
            [ $# -ge 2 ] || die "--count needs a number"
            count=$2
            shift
            ;;
        --decrypt) decrypt=yes ;;
        [1-9] | [1-9][0-9]) n=$1 ;;
        *) die "usage: capture.sh [HOST] [--count N] [--decrypt]" ;;
    esac
    shift
done
need_root_and awk grep
need_up
h=$(host "$n")
has_netns "$h" || die "there is no host $n"
# The data of encrypted and of unencrypted networks; not the TLS of managers and keys.
filter='udp port 4500 or udp port 4789'

if [ -z "$decrypt" ]; then
    command -v tcpdump >/dev/null || die "tcpdump is missing; see README.md for the Debian packages"
    exec ip netns exec "$h" tcpdump -n -i eth0 -c "$count" "$filter"
fi

for command in tshark ethtool; do
    command -v "$command" >/dev/null || die "$command is missing; see README.md for the Debian packages"
done
keys=()
while IFS= read -r line; do
    keys+=(-o "uat:esp_sa:$line")
done < <(cat "$WORK"/h*/esp_sa 2>/dev/null | sort -u)
[ "${#keys[@]}" -gt 0 ] || die "there are no keys; start with up.sh N --encrypted --esp-key-log and ping once"
# tshark wants packets as they are on a wire, not as the kernel batches them.
ip netns exec "$h" ethtool -K eth0 gso off gro off tx-udp-segmentation off >/dev/null
exec ip netns exec "$h" tshark -n -i eth0 -c "$count" -f "$filter" \
    -o esp.enable_encryption_decode:TRUE -o esp.enable_authentication_check:TRUE "${keys[@]}"
