#!/usr/bin/env bash
# peer.sh TUNNEL SECONDS [MTU...]: measures one tunnel once, between two hosts joined by one cable, and
# prints JSON. throughput.sh runs it in a sandbox (namespaces of processes, mounts and network) that
# takes along whatever is started and made here when this script ends, however it ends.
#   without MTU  all figures of the table, on an underlay with an MTU of 1500
#   with MTUs    one TCP stream for each, with segments as long as an underlay of that MTU carries
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=../lib.sh
. "$(dirname "$0")/../lib.sh"
# shellcheck source-path=SCRIPTDIR source=tunnels.sh
. "$(dirname "$0")/tunnels.sh"
# shellcheck source-path=SCRIPTDIR source=bring_up.sh
. "$(dirname "$0")/bring_up.sh"
# shellcheck source-path=SCRIPTDIR source=figures.sh
. "$(dirname "$0")/figures.sh"

main() {
    tunnel=$1 seconds=$2 from='' to='' address=''
    shift 2
    mtu=$(printf '%s\n' "${@:-1500}" | sort -n | tail -n 1)
    umask 077
    # Names of namespaces, control sockets and secrets of tunnels: nobody else's.
    mount -t tmpfs -o mode=755 tmpfs /run
    dir=/run/throughput
    mkdir -m 700 /run/netns /run/wireguard "$dir"

    local n
    for n in 1 2; do add_namespace "$(host "$n")"; done
    ip link add eth0 mtu "$mtu" netns "$(host 1)" type veth peer name eth0 mtu "$mtu" netns "$(host 2)"
    for n in 1 2; do
        ip -n "$(host "$n")" address add "192.0.2.$n/24" dev eth0
        ip -n "$(host "$n")" link set eth0 up
    done
    bring_up "$tunnel"
    await "no ping comes through $tunnel" 30 ip netns exec "$from" ping -n -c 1 -W 1 "$address"
    # Warms caches, neighbours, and the clock of the processor.
    iperf 1 >/dev/null
    if [ $# -gt 0 ]; then by_mtu "$@"; else all_figures; fi
}

add_namespace() {
    ip netns add "$1"
    ip -n "$1" link set lo up
}

all_figures() {
    {
        tcp tcp1_gbps
        tcp tcp4_gbps --parallel 4
        tcp tcp_reverse_gbps --reverse
        udp udp1300_gbps 1300 '* 1300 * 8 / 1e9'
        udp udp64_kpps 64 '/ 1e3'
        ping_mean
        request_response
    } | jq --slurp --compact-output add
}

# by_mtu MTU...
by_mtu() {
    local headers size
    # What the tunnel adds, and the headers of IPv4 and TCP.
    case $tunnel in
        overlayd) headers=$((92 + 40)) ;;
        vxlan) headers=$((50 + 40)) ;;
        *) die "$tunnel is not measured by MTU" ;;
    esac
    for size; do
        tcp gbps --set-mss $((size - headers)) | jq --compact-output --argjson mtu "$size" '{mtu: $mtu} + .'
    done
}

main "$@"
