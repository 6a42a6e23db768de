# Names and functions that the other scripts share; sourced, not run.
# shellcheck shell=bash

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# The binary; build it with `cargo build --release`.
OVERLAYD=${OVERLAYD:-$HERE/../target/release/overlayd}
# State, sockets, logs and process ids of the agents.
WORK=${WORK:-/tmp/overlayd-scripts}
# Is there where up.sh made WORK.
MARK=$WORK/made-by-up.sh
# The network that the containers are attached to.
NET=${NET:-scripts}
# The agents' configuration file; none is the default.
AGENT_CONFIG=${AGENT_CONFIG:-}

# Namespaces: ovl-net holds the underlay's switch, ovl-hN is host N, ovl-cN a container.
host() { echo "ovl-h$1"; }
container() { echo "ovl-c$1"; }

die() {
    echo "$(basename "$0"): $*" >&2
    exit 1
}

# need_root_and COMMAND...: fails early when something is missing.
need_root_and() {
    [ "$(id -u)" = 0 ] || die "run it as root: namespaces, veth pairs and TAP devices are made"
    local command
    for command in ip "$@"; do
        command -v "$command" >/dev/null || die "$command is missing; see README.md for the Debian packages"
    done
}

need_overlayd() {
    [ -x "$OVERLAYD" ] || die "no binary at $OVERLAYD; run 'cargo build --release' or set OVERLAYD"
}

# Whoever may write to /tmp can put anything there but what is root's.
is_up() { [ ! -L "$WORK" ] && [ -O "$WORK" ] && [ ! -L "$MARK" ] && [ -O "$MARK" ]; }

need_up() {
    is_up || die "nothing is up; run $HERE/up.sh first"
}

# Without `grep -q`, which ends early: what writes to it may then fail, and the pipe with it.
has_netns() { ip netns list | awk '{print $1}' | grep -xF -- "$1" >/dev/null; }

socket() { echo "$WORK/h$1/agent.sock"; }

# on N COMMAND...: an overlayd command at the agent of host N.
on() {
    local n=$1
    shift
    "$OVERLAYD" --socket "$(socket "$n")" "$@"
}

# start_agent NAMESPACE DIR [FLAG...]: starts an agent and waits until it answers.
start_agent() {
    local namespace=$1 dir=$2 i
    shift 2
    if [ -n "$AGENT_CONFIG" ]; then set -- --config "$AGENT_CONFIG" "$@"; fi
    mkdir -p "$dir"
    # A session of its own, as a daemon has: it outlives the terminal, and where the scheduler shares
    # processors among sessions (autogroup), two agents get two shares, as two daemons do.
    setsid ip netns exec "$namespace" "$OVERLAYD" agent --state-dir "$dir/state" --socket "$dir/agent.sock" "$@" \
        >>"$dir/log" 2>&1 </dev/null &
    echo $! >"$dir/pid"
    for ((i = 0; i < 100; i++)); do
        if "$OVERLAYD" --socket "$dir/agent.sock" status >/dev/null 2>&1; then return; fi
        kill -0 "$(cat "$dir/pid")" 2>/dev/null || break
        sleep 0.1
    done
    tail -n 5 "$dir/log" >&2
    die "the agent in $namespace does not answer; its log is $dir/log"
}

# stop_agent DIR: stops the agent whose state is there, and nothing else that got its process id.
stop_agent() {
    local dir=$1 pid i
    pid=$(cat "$dir/pid" 2>/dev/null) || return 0
    is_agent() { tr '\0' ' ' 2>/dev/null <"/proc/$pid/cmdline" | grep -F -- "--state-dir $dir/state" >/dev/null; }
    if is_agent; then
        kill "$pid" 2>/dev/null || true
        for ((i = 0; i < 50; i++)); do
            is_agent || break
            sleep 0.1
        done
        if is_agent; then kill -KILL "$pid" 2>/dev/null || true; fi
    fi
    rm -f "$dir/pid"
}

# containers: the container namespaces that exist, one a line.
containers() { ip netns list | awk '$1 ~ /^ovl-c[0-9]+$/ {print $1}' | sort -V; }

# addresses NAMESPACE: its addresses on the overlay, one a line.
addresses() {
    ip -o -n "$1" address show dev eth0 scope global | awk '{sub("/.*", "", $4); print $4}'
}
