#!/usr/bin/env bash
# local.sh [SECONDS [ROUNDS]]: one TCP stream between two containers on one host, through overlayd (TAP to
# TAP) and through a kernel bridge (veth to veth), in turn; medians and their ratio. Makes what it needs and
# removes it. Nothing has to be up.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"

[ $# -le 2 ] || die "usage: local.sh [SECONDS [ROUNDS]]"
seconds=${1:-3} rounds=${2:-3}
need_root_and awk grep iperf3 setpriv sort
need_overlayd
WORK=$(mktemp -d)
# The host, its containers, the bridge and what is at it.
h=ovl-local c1=ovl-local1 c2=ovl-local2 b=ovl-bridge b1=ovl-bridge1 b2=ovl-bridge2

stop() {
    trap - EXIT INT TERM
    stop_agent "$WORK/h1"
    for namespace in "$h" "$c1" "$c2" "$b" "$b1" "$b2"; do
        ip netns delete "$namespace" 2>/dev/null || true
    done
    rm -rf -- "$WORK"
}
trap stop EXIT
trap 'exit 1' INT TERM

for namespace in "$h" "$c1" "$c2" "$b" "$b1" "$b2"; do
    ip netns add "$namespace"
    ip -n "$namespace" link set lo up
done
# An underlay that leads nowhere.
ip -n "$h" link add eth0 type veth peer name nowhere
ip -n "$h" address add 192.0.2.1/24 dev eth0
ip -n "$h" link set eth0 up
ip -n "$h" link set nowhere up
start_agent "$h" "$WORK/h1"
on 1 init --advertise-addr 192.0.2.1 >/dev/null
on 1 create --encrypted --subnet 10.77.0.0/24 --gateway 10.77.0.254 "$NET" >/dev/null
for n in 1 2; do on 1 attach "$NET" --netns "ovl-local$n" --ip "10.77.0.$n" >/dev/null; done

ip -n "$b" link add br0 type bridge
ip -n "$b" link set br0 up
for n in 1 2; do
    ip link add eth0 netns "ovl-bridge$n" type veth peer name "port$n" netns "$b"
    ip -n "$b" link set "port$n" master br0 up
    ip -n "ovl-bridge$n" address add "10.77.0.$n/24" dev eth0
    ip -n "ovl-bridge$n" link set eth0 up
done

# rate FROM TO: one run in Mbit/s; the server serves it and ends.
rate() {
    # Ends with this shell at the latest: with no client it would wait for one for ever.
    setpriv --pdeathsig TERM ip netns exec "$2" iperf3 --server --one-off >/dev/null &
    local server=$!
    sleep 0.3
    ip netns exec "$1" iperf3 --client 10.77.0.2 --time "$seconds" --format m |
        awk '/receiver/ {for (i = 2; i <= NF; i++) if ($i ~ /bits\/sec/) print $(i - 1)}'
    wait "$server"
}
median() { sort -n | awk '{all[NR] = $1} END {print all[int((NR + 1) / 2)]}'; }

for ((round = 1; round <= rounds; round++)); do
    rate "$c1" "$c2" >>"$WORK/overlayd"
    rate "$b1" "$b2" >>"$WORK/bridge"
done
awk -v overlayd="$(median <"$WORK/overlayd")" -v bridge="$(median <"$WORK/bridge")" -v rounds="$rounds" 'BEGIN {
    printf "overlayd, TAP to TAP         %.1f Gbit/s\n", overlayd / 1000
    printf "kernel bridge, veth to veth  %.1f Gbit/s\n", bridge / 1000
    printf "ratio                        %.2f (medians of %d)\n", overlayd / bridge, rounds
}'
