# The tunnels that throughput.sh compares, and what they need. Sourced, not run.
# shellcheck shell=bash

# shellcheck disable=SC2034 # used where this is sourced
TUNNELS=(vxlan overlayd wireguard-go wireguard-go+vxlan boringtun boringtun+vxlan gotatun gotatun+vxlan
    nebula nebula+vxlan fastd openvpn tinc vpncloud)

# A build that encrypts nothing, to see what the cipher costs. It has to be asked for by name.
NULL_OVERLAYD=${NULL_OVERLAYD:-$HERE/../target/null/release/overlayd}

# title TUNNEL: what the table calls it.
title() {
    case $1 in
        vxlan) echo "kernel VXLAN, plaintext" ;;
        overlayd) echo "overlayd, encrypted" ;;
        null) echo "overlayd WITHOUT A CIPHER" ;;
        *+vxlan) echo "${1%+vxlan} + kernel VXLAN" ;;
        wireguard-go | boringtun | gotatun | nebula) echo "$1 (layer 3)" ;;
        *) echo "$1 (layer 2)" ;;
    esac
}

# missing TUNNEL: how to install what this machine lacks for it; nothing if all is there.
missing() {
    local command commands=() install
    case ${1%+vxlan} in
        vxlan | overlayd) return ;;
        null) commands=("$NULL_OVERLAYD") install="RUSTFLAGS='--cfg overlayd_null_aead' cargo build --release --target-dir target/null" ;;
        wireguard-go) commands=(wireguard-go wg) install='apt install wireguard-go wireguard-tools' ;;
        boringtun) commands=(boringtun-cli wg) install='apt install wireguard-tools; cargo install --root /usr/local boringtun-cli' ;;
        gotatun) commands=(gotatun wg) install='apt install wireguard-tools; cargo install --root /usr/local gotatun-cli' ;;
        nebula) commands=(nebula nebula-cert) install='apt install nebula' ;;
        fastd) commands=(fastd) install='apt install fastd' ;;
        openvpn) commands=(openvpn openssl) install='apt install openvpn openssl' ;;
        tinc) commands=(tincd) install='apt install tinc' ;;
        vpncloud) commands=(vpncloud) install='cargo install --root /usr/local vpncloud' ;;
    esac
    for command in "${commands[@]}"; do
        if ! command -v "$command" >/dev/null; then
            echo "$install"
            return
        fi
    done
}
