#!/usr/bin/env bash
# throughput.sh [FROM TO [SECONDS]]: TCP both ways between two containers (numbers, default 1 and 2) by iperf3.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"
need_root_and awk grep iperf3
need_up

from=$(container "${1:-1}") to=$(container "${2:-2}") seconds=${3:-4}
has_netns "$from" || die "there is no $from"
has_netns "$to" || die "there is no $to"
address=$(addresses "$to" | head -n 1)
[ -n "$address" ] || die "$to has no address; attach it first"

# rate FLAG...: one run; the server serves it and ends.
rate() {
    ip netns exec "$to" iperf3 --server --one-off >/dev/null &
    local server=$!
    # shellcheck disable=SC2064 # the process id of now is meant
    trap "kill $server 2>/dev/null || true" EXIT
    sleep 0.3
    ip netns exec "$from" iperf3 --client "$address" --time "$seconds" --format g "$@" |
        awk '/receiver/ {for (i = 2; i <= NF; i++) if ($i ~ /bits\/sec/) print $(i - 1), $i}'
    wait "$server"
    trap - EXIT
}
printf '%s -> %s  %s\n' "$from" "$to" "$(rate)"
printf '%s <- %s  %s\n' "$from" "$to" "$(rate --reverse)"
