#!/usr/bin/env bash
# throughput.sh [--seconds N] [--rounds N] [--peers A,B,...|all] [--json FILE] [--svg FILE [--mtus A,B,...]] [--readme FILE]
# Measures overlayd beside the kernel's plaintext VXLAN, and beside other tunnels, in turn and in rounds,
# and prints a table of the medians in Markdown. It makes two hosts joined by one cable, with a container
# each, for every measurement, and nothing of that is left, however it ends.
#   --seconds N   of each stream (default 4)
#   --rounds N    (default 5)
#   --peers LIST  what is measured (default vxlan,overlayd); `all` is everything that is installed
#   --json FILE   write every figure there
#   --svg FILE    measure one TCP stream by suite and by MTU too, and plot it there
#   --mtus LIST   between the hosts, for the plot (default 1280,1500,3000,9000)
#   --readme FILE put table and plot into the place that FILE keeps for them, as README.md does
#
# throughput.sh --quick [FROM TO [SECONDS]]
# TCP both ways between two containers of up.sh (numbers, default 1 and 2).
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"
# shellcheck source-path=SCRIPTDIR source=throughput/tunnels.sh
. "$(dirname "$0")/throughput/tunnels.sh"
# shellcheck source-path=SCRIPTDIR source=throughput/figures.sh
. "$(dirname "$0")/throughput/figures.sh"

usage() { die "usage: throughput.sh [--seconds N] [--rounds N] [--peers A,B,...|all] [--json FILE] [--svg FILE [--mtus A,B,...]] [--readme FILE]
       throughput.sh --quick [FROM TO [SECONDS]]"; }

main() {
    local command="${SUDO_USER:+sudo }$0 $*" seconds=4 rounds=5 peers=vxlan,overlayd json='' svg='' readme='' mtus=1280,1500,3000,9000
    while [ $# -gt 0 ]; do
        [ $# -ge 2 ] || usage
        case $1 in
            --seconds) seconds=$(number "$1" "$2") ;;
            --rounds) rounds=$(number "$1" "$2") ;;
            --peers) peers=$2 ;;
            --json) json=$2 ;;
            --svg) svg=$2 ;;
            --mtus) mtus=$2 ;;
            --readme) readme=$2 ;;
            *) usage ;;
        esac
        shift 2
    done
    need_root_and awk grep iperf3 jq ping setpriv sockperf ss unshare
    if [ -n "$svg" ]; then need_root_and gnuplot; fi
    need_overlayd
    choose_tunnels "$peers"
    IFS=, read -ra mtus <<<"$mtus"
    for mtu in "${mtus[@]}"; do number --mtus "$mtu" >/dev/null; done
    for file in "$json" "$svg"; do
        # What fails here does not fail after an hour of measuring.
        if [ -n "$file" ]; then mkdir -p "$(dirname "$file")"; fi
    done
    if [ -n "$readme" ]; then need_place_in "$readme"; fi

    dir=$(mktemp -d)
    trap stop EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
    failed=0
    measure_all "$seconds" "$rounds"
    if [ -n "$svg" ]; then measure_suites "$seconds" "$rounds" "${mtus[@]}"; fi
    report "$command" "$seconds" "$rounds"
    if [ -n "$json" ]; then cp "$dir/report.json" "$json"; fi
    if [ -n "$svg" ]; then plot "$svg"; fi
    if [ -n "$readme" ] && [ "$failed" = 0 ]; then show_in "$readme" "$svg"; fi
    [ "$failed" = 0 ] || die "$failed measurements failed; the reasons are above"
}

number() {
    [[ $2 =~ ^[1-9][0-9]*$ ]] || die "$1 takes a number from 1, not $2"
    echo "$2"
}

# choose_tunnels LIST: sets tunnels, without those that are not installed.
choose_tunnels() {
    local wanted tunnel install
    tunnels=()
    if [ "$1" = all ]; then wanted=("${TUNNELS[@]}"); else IFS=, read -ra wanted <<<"$1"; fi
    for tunnel in "${wanted[@]}"; do
        [[ " null ${TUNNELS[*]} " == *" $tunnel "* ]] || die "no such peer: $tunnel; there are ${TUNNELS[*]}"
        install=$(missing "$tunnel")
        if [ -n "$install" ]; then
            echo "$tunnel is left out; to have it: $install" >&2
        else
            tunnels+=("$tunnel")
        fi
    done
    [ "${#tunnels[@]}" -gt 0 ] || die "nothing is left to measure"
}

# measure_all SECONDS ROUNDS: the peers in turn, so that all see the machine in the same moods.
measure_all() {
    local round tunnel
    for ((round = 1; round <= $2; round++)); do
        for tunnel in "${tunnels[@]}"; do
            echo "round $round of $2: $tunnel" >&2
            if measure "$tunnel" "$1"; then
                jq --compact-output --arg peer "$tunnel" '{peer: $peer} + .' "$dir/measured" | tee -a "$dir/runs" >&2
            fi
        done
    done
}

# measure_suites SECONDS ROUNDS MTU...: one TCP stream, by suite and by MTU, and without encryption.
measure_suites() {
    local round suite tunnel
    for ((round = 1; round <= $2; round++)); do
        for suite in "$(title vxlan)" "${SUITES[@]}"; do
            echo "round $round of $2: $suite by MTU" >&2
            tunnel=overlayd
            if [ "$suite" = "$(title vxlan)" ]; then tunnel=vxlan; fi
            echo "suites = [\"$suite\"]" >"$dir/overlayd.toml"
            if AGENT_CONFIG=$dir/overlayd.toml measure "$tunnel" "$1" "${@:3}"; then
                jq --compact-output --arg suite "$suite" '{suite: $suite} + .' "$dir/measured" | tee -a "$dir/sizes" >&2
            fi
        done
    done
}

# measure TUNNEL SECONDS [MTU...]: one run of peer.sh in a sandbox, which dies with this script.
measure() {
    setpriv --pdeathsig KILL unshare --net --mount --pid --fork --kill-child --mount-proc \
        "$HERE/throughput/peer.sh" "$@" >"$dir/measured" &
    sandbox=$!
    # Waited for in the background: only then bash hears signals meanwhile.
    if wait "$sandbox"; then
        sandbox=''
    else
        sandbox=''
        failed=$((failed + 1))
        return 1
    fi
}

stop() {
    trap - EXIT INT TERM HUP
    # Its first process takes all others along.
    if [ -n "$sandbox" ]; then
        kill -KILL "$sandbox" 2>/dev/null || true
        wait "$sandbox" 2>/dev/null || true
    fi
    rm -rf -- "$dir"
}

# report COMMAND SECONDS ROUNDS: medians and ratios as JSON, and as Markdown on standard output.
report() {
    touch "$dir/runs" "$dir/sizes"
    for tunnel in "${tunnels[@]}"; do printf '%s\t%s\n' "$tunnel" "$(title "$tunnel")"; done >"$dir/peers"
    jq --null-input --from-file "$HERE/throughput/medians.jq" \
        --rawfile peers "$dir/peers" --slurpfile runs "$dir/runs" --slurpfile sizes "$dir/sizes" \
        --arg command "$1" --argjson seconds "$2" --argjson rounds "$3" --arg date "$(date -u +%F)" \
        --arg cpu "$(awk -F': *' '/^model name/ {print $2; exit}' /proc/cpuinfo)" --argjson cores "$(nproc)" \
        --arg kernel "$(uname -sr)" --arg congestion_control "$(</proc/sys/net/ipv4/tcp_congestion_control)" \
        --arg version "$("$OVERLAYD" --version)" --arg commit "$(commit)" \
        >"$dir/report.json"
    jq --raw-output --from-file "$HERE/throughput/table.jq" "$dir/report.json"
}

commit() {
    # The tree belongs to whoever called sudo.
    git -c safe.directory='*' -C "$HERE" describe --always --dirty --abbrev=12 --exclude='*' 2>/dev/null || echo unknown
}

# plot FILE: one TCP stream by suite and MTU.
plot() {
    jq --raw-output '
        .sizes as $sizes | $ARGS.positional as $suites
        | ["MTU", $suites[]],
          (([$sizes[].mtu] | unique)[] as $mtu
            | [$mtu, ($suites[] as $suite | [$sizes[] | select(.suite == $suite and .mtu == $mtu)][0].gbps // "NaN")])
        | @tsv' "$dir/report.json" --args "$(title vxlan)" "${SUITES[@]}" >"$dir/plot.tsv"
    gnuplot -c "$HERE/throughput/plot.gp" "$dir/plot.tsv" "$dir/plot.svg" \
        "$(jq --raw-output '"\(.machine.cpu), \(.machine.cores) cores, \(.machine.kernel); commit \(.commit), \(.date)"' "$dir/report.json")" \
        "$(jq --raw-output .command "$dir/report.json")"
    cp "$dir/plot.svg" "$1"
}

# need_place_in FILE: that there are two lines with nothing but PLACE_BEGIN and PLACE_END.
need_place_in() {
    local line
    for line in "$PLACE_BEGIN" "$PLACE_END"; do
        grep --quiet --line-regexp --fixed-strings -e "$line" "$1" || die "$1 has no line $line to put the table behind or before"
    done
    for line in vxlan overlayd; do
        [[ " ${tunnels[*]} " == *" $line "* ]] || die "--readme shows vxlan and overlayd: add $line to --peers"
    done
}

# show_in FILE [SVG]: the figures of the kernel's VXLAN and of overlayd between the two lines, and the plot.
show_in() {
    local plot=''
    if [ -n "$2" ]; then plot=$(realpath --relative-to="$(dirname "$1")" "$2"); fi
    jq --raw-output --from-file "$HERE/throughput/readme.jq" --arg plot "$plot" "$dir/report.json" >"$dir/shown.md"
    awk -v begin="$PLACE_BEGIN" -v end="$PLACE_END" -v shown="$dir/shown.md" '
        $0 == end {skips = 0}
        !skips
        $0 == begin {while ((getline line <shown) > 0) print line; skips = 1}' "$1" >"$dir/readme.md"
    # Written over and not replaced: under sudo it stays the property of whoever it was.
    cat "$dir/readme.md" >"$1"
}

# quick [FROM TO [SECONDS]]
quick() {
    need_root_and awk grep iperf3 jq setpriv ss
    need_up
    from=$(container "${1:-1}") to=$(container "${2:-2}") seconds=${3:-4}
    has_netns "$from" || die "there is no $from"
    has_netns "$to" || die "there is no $to"
    address=$(addresses "$to" | head -n 1)
    [ -n "$address" ] || die "$to has no address; attach it first"
    for direction in '->' '<-'; do
        flags=()
        if [ "$direction" = '<-' ]; then flags=(--reverse); fi
        printf '%s %s %s  %s Gbit/s\n' "$from" "$direction" "$to" \
            "$(tcp gbps "${flags[@]}" | jq '.gbps * 100 | round / 100')"
    done
}

PLACE_BEGIN='<!-- throughput.sh --readme: begin -->'
PLACE_END='<!-- throughput.sh --readme: end -->'
SUITES=(aes-256-gcm aes-128-gcm chacha20-poly1305)
sandbox=''
if [ "${1:-}" = --quick ]; then
    shift
    quick "$@"
else
    main "$@"
fi
