#!/usr/bin/env bash
# attach.sh HOST CONTAINER [FLAG...]: attaches container number CONTAINER to the network by the agent of
# host number HOST; makes its namespace if there is none. FLAGs go to `overlayd attach` (--ip, --mac, ...).
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"

[ $# -ge 2 ] || die "usage: attach.sh HOST CONTAINER [FLAG...]"
need_root_and awk grep
need_overlayd
need_up
n=$1 c=$(container "$2")
shift 2
has_netns "$(host "$n")" || die "there is no host $n"

if ! has_netns "$c"; then
    ip netns add "$c"
    ip -n "$c" link set lo up
fi
if ip -n "$c" link show dev eth0 >/dev/null 2>&1; then
    echo "$c is attached already"
else
    on "$n" attach "$NET" --netns "$c" --name "$c" "$@"
fi
