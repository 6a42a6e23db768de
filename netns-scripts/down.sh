#!/usr/bin/env bash
# down.sh: stops what up.sh started and removes what it made. Does nothing where nothing is up.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"
need_root_and awk grep

for dir in "$WORK"/h*/; do
    if [ -d "$dir" ]; then stop_agent "${dir%/}"; fi
done
# A namespace that goes takes its interfaces along, the containers' TAP devices among them.
ip netns list | awk '/^ovl-/ {print $1}' | while read -r namespace; do
    ip netns delete "$namespace"
done
rm -rf -- "$WORK"
