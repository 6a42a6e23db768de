#!/usr/bin/env bash
# down.sh: stops what up.sh started and removes what it made. Does nothing where nothing is up.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"
need_root_and awk grep

# WORK may name a directory that somebody else keeps things in: nothing is touched unless up.sh made it.
is_up || exit 0
shopt -s nullglob
dirs=("$WORK"/h[0-9]*/)
# Without the slash, which would lead through a link.
dirs=("${dirs[@]%/}")
for dir in "${dirs[@]}"; do stop_agent "$dir"; done
# A namespace that goes takes its interfaces along, the containers' TAP devices among them.
ip netns list | awk '$1 ~ /^ovl-(net|[hc][0-9]+)$/ {print $1}' | while read -r namespace; do
    ip netns delete "$namespace"
done
rm -rf -- "${dirs[@]}" "$MARK"
rmdir -- "$WORK" || die "the rest of $WORK was not made by up.sh and is left"
