#!/usr/bin/env bash
# pair.sh HOST1 HOST2 CONTAINER1 CONTAINER2 DIR
# Brings overlayd up between two existing host namespaces, which reach each other as 192.0.2.1 and
# 192.0.2.2, with two existing container namespaces at 10.77.0.1 and 10.77.0.2 of an encrypted network.
# Makes DIR/ready when that is done, and stops the agents when it is killed. For benchmarks.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"

[ $# -eq 5 ] || die "usage: pair.sh HOST1 HOST2 CONTAINER1 CONTAINER2 DIR"
hosts=("$1" "$2") containers=("$3" "$4") dir=$5
need_root_and awk grep
need_overlayd
for namespace in "${hosts[@]}" "${containers[@]}"; do
    has_netns "$namespace" || die "there is no namespace $namespace"
done
[ -d "$dir" ] || die "there is no directory $dir"
WORK=$(mktemp -d "$dir/overlayd.XXXXXX")

stop() {
    trap - EXIT INT TERM
    rm -f "$dir/ready"
    for n in 1 2; do stop_agent "$WORK/h$n"; done
    # The interfaces outlive the agents on purpose; they go here.
    for c in "${containers[@]}"; do
        ip -n "$c" link delete eth0 2>/dev/null || true
    done
    rm -rf -- "$WORK"
}
trap stop EXIT
trap 'exit 0' INT TERM

rm -f "$dir/ready"
for n in 1 2; do start_agent "${hosts[n - 1]}" "$WORK/h$n"; done
on 1 init --advertise-addr 192.0.2.1 >/dev/null
on 2 join --token "$(on 1 token worker -q)" 192.0.2.1:2377
on 1 create --encrypted --subnet 10.77.0.0/24 --gateway 10.77.0.254 "$NET"
for n in 1 2; do
    on "$n" attach "$NET" --netns "${containers[n - 1]}" --ip "10.77.0.$n"
done
: >"$dir/ready"
echo "Ready; the agents' logs are in $WORK."
wait
