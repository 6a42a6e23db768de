#!/usr/bin/env bash
# up.sh N [--encrypted] [--ipv6] [--esp-key-log]
# N hosts on one underlay, an agent in each, one network, one container on each host.
#   --encrypted    make the network encrypted
#   --ipv6         let the agents speak IPv6 on the underlay
#   --esp-key-log  let the agents write their keys, so that capture.sh --decrypt can read the traffic
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"

usage() { die "usage: up.sh N [--encrypted] [--ipv6] [--esp-key-log]"; }

hosts='' encrypted=() ipv6='' key_log=''
for argument; do
    case $argument in
        --encrypted) encrypted=(--encrypted) ;;
        --ipv6) ipv6=yes ;;
        --esp-key-log) key_log=yes ;;
        [1-9] | [1-9][0-9]) hosts=$argument ;;
        *) usage ;;
    esac
done
[ -n "$hosts" ] || usage
need_root_and awk grep
need_overlayd

"$HERE/down.sh"
ip netns list | awk '$1 == "ovl-net" {found = 1} END {exit found}' ||
    die "namespace ovl-net is there already: an up.sh with another WORK made it, and down.sh with that removes it"
# No directory that is there already: down.sh removes this one, and /tmp is everybody's.
mkdir -m 700 -- "$WORK" || die "let WORK name a directory that up.sh may make and down.sh remove"
: >"$MARK"

undo() {
    trap - EXIT
    trap '' INT TERM HUP
    echo "up.sh: not finished; removing what was made" >&2
    "$HERE/down.sh"
}
trap undo EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# The underlay's switch.
SWITCH=ovl-net
ip netns add "$SWITCH"
ip -n "$SWITCH" link add br0 type bridge mcast_snooping 0
ip -n "$SWITCH" link set br0 up
for ((n = 1; n <= hosts; n++)); do
    h=$(host "$n")
    ip netns add "$h"
    ip -n "$h" link set lo up
    ip link add eth0 netns "$h" type veth peer name "h$n" netns "$SWITCH"
    ip -n "$SWITCH" link set "h$n" master br0 up
    ip -n "$h" address add "192.0.2.$n/24" dev eth0
    ip -n "$h" address add "2001:db8::$n/64" dev eth0 nodad
    ip -n "$h" link set eth0 up
done

for ((n = 1; n <= hosts; n++)); do
    flags=()
    if [ -n "$key_log" ]; then flags=(--esp-key-log "$WORK/h$n/esp_sa"); fi
    start_agent "$(host "$n")" "$WORK/h$n" "${flags[@]}"
done
if [ -n "$ipv6" ]; then
    first=2001:db8::1 manager='[2001:db8::1]:2377'
else
    first=192.0.2.1 manager=192.0.2.1:2377
fi
on 1 init --advertise-addr "$first" >/dev/null
token=$(on 1 token worker -q)
for ((n = 2; n <= hosts; n++)); do
    on "$n" join --token "$token" "$manager"
done
on 1 create "${encrypted[@]}" --subnet 10.77.0.0/24 --subnet fd00:77::/64 "$NET"
for ((n = 1; n <= hosts; n++)); do
    "$HERE/attach.sh" "$n" "$n"
done
trap - EXIT INT TERM HUP
echo "Up: $hosts hosts. Try ping.sh, throughput.sh, capture.sh, or a command at host 1's agent:"
echo "    $OVERLAYD --socket $(socket 1) status"
