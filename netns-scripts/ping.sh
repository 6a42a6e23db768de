#!/usr/bin/env bash
# ping.sh: every container pings every address of every other. Fails when one ping does.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"
need_root_and awk grep ping
need_up

mapfile -t all < <(containers)
[ "${#all[@]}" -ge 2 ] || die "pings need two containers; there are ${#all[@]}"
failed=0
for from in "${all[@]}"; do
    for to in "${all[@]}"; do
        if [ "$from" = "$to" ]; then continue; fi
        while read -r address; do
            # The first packet may wait for the keys: three tries, one second each.
            if rtt=$(ip netns exec "$from" ping -n -c 1 -w 3 "$address" </dev/null | awk -F'time=' '/time=/ {print $2}') &&
                [ -n "$rtt" ]; then
                printf '%-8s -> %-8s %-16s %s\n' "$from" "$to" "$address" "$rtt"
            else
                printf '%-8s -> %-8s %-16s NO ANSWER\n' "$from" "$to" "$address"
                failed=$((failed + 1))
            fi
        done < <(addresses "$to")
    done
done
[ "$failed" = 0 ] || die "$failed pings without answer; 'overlayd stats' at the agents says what was dropped"
