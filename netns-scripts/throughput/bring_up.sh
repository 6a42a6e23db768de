# How each tunnel comes up between two hosts whose underlay is there. Sourced by peer.sh, not run.
# Tunnels of layer 2 carry a container of each host, as overlayd does; those of layer 3 end at the hosts
# themselves unless a VXLAN is laid over them.
# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154 # dir and mtu come from peer.sh; from, to and address go to it

# bring_up TUNNEL: brings it up and says where to measure: from and to are namespaces, address is that
# of `to`. Secrets and logs are in $dir.
bring_up() {
    case $1 in
        vxlan)
            vxlan_between 192.0.2 $((mtu - 50))
            containers_behind vxlan0 $((mtu - 50))
            ;;
        overlayd)
            containers_alone
            # A session of its own, as each agent has: not the programs' that measure.
            setsid "$HERE/pair.sh" "$(host 1)" "$(host 2)" "$(container 1)" "$(container 2)" "$dir" >>"$dir/log" 2>&1 &
            await "overlayd is not ready" 60 test -e "$dir/ready"
            ;;
        null)
            OVERLAYD=$NULL_OVERLAYD OVERLAYD_MEASURE_PLAINTEXT=nothing-is-encrypted bring_up overlayd
            ;;
        *+vxlan)
            bring_up "${1%+vxlan}"
            # What is left of layer 3's 1420 bytes.
            vxlan_between 10.99.0 1370
            containers_behind vxlan0 1370
            ;;
        wireguard-go) wireguard wireguard-go --foreground ;;
        boringtun) wireguard boringtun-cli --foreground --disable-drop-privileges ;;
        gotatun) wireguard gotatun --foreground --disable-drop-privileges ;;
        *) "up_$1" ;;
    esac
}

# run_in_host N COMMAND...: in the background, in a session of its own, as a service.
run_in_host() {
    local h
    h=$(host "$1")
    shift
    setsid ip netns exec "$h" "$@" >>"$dir/log" 2>&1 </dev/null &
}

# await WHAT SECONDS COMMAND...: waits until the command succeeds.
await() {
    local what=$1 i
    for ((i = 0; i < $2 * 20; i++)); do
        if "${@:3}" >/dev/null 2>&1; then return; fi
        sleep 0.05
    done
    tail -n 5 "$dir/log" >&2
    die "$what after $2 s"
}

await_device() {
    local n
    for n in 1 2; do await "there is no $1" 20 ip -n "$(host "$n")" link show dev "$1"; done
}

# containers_alone: two containers with nothing but loopback.
containers_alone() {
    local n
    for n in 1 2; do add_namespace "$(container "$n")"; done
    from=$(container 1) to=$(container 2) address=10.77.0.2
}

# containers_behind DEVICE MTU: a container of each host and DEVICE are ports of one bridge.
containers_behind() {
    local device=$1 n h c
    containers_alone
    for n in 1 2; do
        h=$(host "$n") c=$(container "$n")
        ip -n "$h" link add br0 type bridge
        ip -n "$h" link set br0 up
        ip link add eth0 mtu "$2" netns "$c" type veth peer name port0 mtu "$2" netns "$h"
        ip -n "$h" link set "$device" mtu "$2" master br0 up
        ip -n "$h" link set port0 master br0 up
        ip -n "$c" address add "10.77.0.$n/24" dev eth0
        ip -n "$c" link set eth0 up
    done
}

# vxlan_between PREFIX MTU: the kernel's VXLAN between PREFIX.1 and PREFIX.2.
vxlan_between() {
    local n
    for n in 1 2; do
        ip -n "$(host "$n")" link add vxlan0 mtu "$2" type vxlan id 77 \
            local "$1.$n" remote "$1.$((3 - n))" dstport 4789
    done
}

# hosts_themselves: layer 3 is measured from host to host.
hosts_themselves() { from=$(host 1) to=$(host 2) address=10.99.0.2; }

# wireguard COMMAND...: one of its programs, which takes the name of the interface last.
wireguard() {
    local n other
    for n in 1 2; do
        wg genkey >"$dir/wg$n.key"
        run_in_host "$n" "$@" "wg$n"
        await "there is no wg$n" 20 test -S "/run/wireguard/wg$n.sock"
    done
    for n in 1 2; do
        other=$((3 - n))
        ip netns exec "$(host "$n")" wg set "wg$n" private-key "$dir/wg$n.key" listen-port 51820 \
            peer "$(wg pubkey <"$dir/wg$other.key")" endpoint "192.0.2.$other:51820" allowed-ips 10.99.0.0/24
        ip -n "$(host "$n")" address add "10.99.0.$n/24" dev "wg$n"
        ip -n "$(host "$n")" link set "wg$n" mtu 1420 up
    done
    hosts_themselves
}

up_nebula() {
    local n
    (
        cd "$dir" || exit
        nebula-cert ca -name throughput
        for n in 1 2; do nebula-cert sign -name "host$n" -ip "10.99.0.$n/24"; done
    )
    for n in 1 2; do
        cat >"$dir/nebula$n.yml" <<END
pki: {ca: $dir/ca.crt, cert: $dir/host$n.crt, key: $dir/host$n.key}
static_host_map: {"10.99.0.$((3 - n))": ["192.0.2.$((3 - n)):4242"]}
listen: {host: 192.0.2.$n, port: 4242, read_buffer: 10485760, write_buffer: 10485760}
cipher: aes
tun: {dev: nebula0, mtu: 1420, tx_queue: 1000}
firewall:
  outbound: [{port: any, proto: any, host: any}]
  inbound: [{port: any, proto: any, host: any}]
END
        run_in_host "$n" nebula -config "$dir/nebula$n.yml"
    done
    await_device nebula0
    hosts_themselves
}

up_fastd() {
    local n
    for n in 1 2; do fastd --machine-readable --generate-key >"$dir/fastd$n.key"; done
    for n in 1 2; do
        cat >"$dir/fastd$n.conf" <<END
mode tap; interface "fastd0"; mtu 1420; method "salsa2012+umac";
bind 192.0.2.$n:10000; secret "$(cat "$dir/fastd$n.key")";
peer "other" { remote 192.0.2.$((3 - n)) port 10000; key "$(fastd_public_key $((3 - n)))"; }
END
        run_in_host "$n" fastd --config "$dir/fastd$n.conf"
    done
    await_device fastd0
    containers_behind fastd0 1400
}

fastd_public_key() {
    printf 'secret "%s";' "$(cat "$dir/fastd$1.key")" | fastd --machine-readable --show-key --config -
}

up_openvpn() {
    local n
    for n in 1 2; do
        openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj "/CN=host$n" \
            -keyout "$dir/openvpn$n.key" -out "$dir/openvpn$n.crt" 2>>"$dir/log"
    done
    openvpn_at 1 --tls-server --dh none
    openvpn_at 2 --tls-client
    await_device openvpn0
    containers_behind openvpn0 1420
}

# openvpn_at N FLAG...
openvpn_at() {
    local n=$1 other=$((3 - $1)) fingerprint
    fingerprint=$(openssl x509 -in "$dir/openvpn$other.crt" -noout -fingerprint -sha256)
    run_in_host "$n" openvpn --dev openvpn0 --dev-type tap --mode p2p --proto udp --mssfix 0 \
        --local "192.0.2.$n" --remote "192.0.2.$other" --port 1194 "${@:2}" \
        --cert "$dir/openvpn$n.crt" --key "$dir/openvpn$n.key" --peer-fingerprint "${fingerprint#*=}" \
        --data-ciphers AES-256-GCM --sndbuf 4000000 --rcvbuf 4000000 --txqueuelen 1000
}

up_tinc() {
    local n
    for n in 1 2; do
        mkdir -p "$dir/tinc$n/hosts"
        cat >"$dir/tinc$n/tinc.conf" <<END
Name = host$n
Mode = switch
DeviceType = tap
Interface = tinc0
ConnectTo = host$((3 - n))
END
        cat >"$dir/tinc$n/hosts/host$n" <<END
Address = 192.0.2.$n
Cipher = aes-256-cbc
Digest = sha256
END
        tincd --config "$dir/tinc$n" --generate-keys=2048 </dev/null >>"$dir/log" 2>&1
    done
    for n in 1 2; do
        cp "$dir/tinc$n/hosts/host$n" "$dir/tinc$((3 - n))/hosts/"
    done
    for n in 1 2; do
        run_in_host "$n" tincd --config "$dir/tinc$n" --no-detach --pidfile "$dir/tinc$n.pid"
    done
    await_device tinc0
    containers_behind tinc0 1400
}

up_vpncloud() {
    local n
    for n in 1 2; do
        # It asks the routes for its own address.
        ip -n "$(host "$n")" route add default dev eth0
        run_in_host "$n" vpncloud --type tap --mode switch --device vpncloud0 --no-port-forwarding \
            --ip "10.99.0.$n/24" --listen "192.0.2.$n:3210" --peer "192.0.2.$((3 - n)):3210" --password throughput
    done
    await_device vpncloud0
    for n in 1 2; do ip -n "$(host "$n")" address flush dev vpncloud0; done
    containers_behind vpncloud0 1420
}
