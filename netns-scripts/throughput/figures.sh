# What is measured between two namespaces, one JSON object each. Sourced, not run; from and to are the
# namespaces, address is that of `to`, and seconds how long a stream lasts.
# shellcheck shell=bash
# shellcheck disable=SC2154 # the variables above come from where this is sourced

# tcp NAME FLAG...: what the receiver got, in Gbit/s.
tcp() {
    iperf "$seconds" "${@:2}" | jq --arg name "$1" '{($name): (.end.sum_received.bits_per_second / 1e9)}'
}

# udp NAME BYTES FORMULA: sent as fast as it goes; packets a second that arrived, put into the formula.
udp() {
    iperf "$seconds" --udp --bitrate 0 --length "$2" |
        jq --arg name "$1" "{(\$name): ((.end.sum | (.packets - .lost_packets) / .seconds) $3)}"
}

# iperf SECONDS FLAG...: the client's JSON of one run. Its server serves it alone and ends.
iperf() {
    serve iperf3 --server --one-off --port 5201
    await_listener 5201
    timeout $(($1 + 20)) ip netns exec "$from" \
        iperf3 --client "$address" --port 5201 --time "$1" --json "${@:2}" || die "iperf3 ${*:2} failed"
    wait "$server" || true
}

# The mean round trip of pings that follow each other closely.
ping_mean() {
    ip netns exec "$from" ping -n -q -i 0.002 -c 500 "$address" |
        awk -F/ '/^rtt/ {printf "{\"ping_us\": %d}\n", $5 * 1000}'
}

# One request of 14 bytes at a time over TCP, each answered: how many a second, and the 99th percentile.
request_response() {
    serve sockperf server --tcp -i "$address" -p 5301
    await_listener 5301
    timeout $((seconds + 20)) ip netns exec "$from" \
        sockperf ping-pong --tcp -i "$address" -p 5301 -t "$seconds" --full-rtt | awk '
            /Valid Duration/ {
                fields = split($0, field, /[=;]/)
                for (i = 1; i < fields; i++) {
                    if (field[i] ~ /RunTime$/) time = field[i + 1] + 0
                    if (field[i] ~ /ReceivedMessages$/) messages = field[i + 1]
                }
            }
            /percentile 99.000/ {p99 = $NF}
            END {if (time > 0) printf "{\"rr_per_s\": %d, \"rr_p99_us\": %d}\n", messages / time, p99}'
    kill "$server"
}

# serve COMMAND...: a server at the other end, in a session of its own, which ends with this shell at the latest.
serve() {
    setsid setpriv --pdeathsig TERM ip netns exec "$to" "$@" >/dev/null 2>&1 </dev/null &
    server=$!
}

await_listener() {
    local i
    for ((i = 0; i < 200; i++)); do
        if [ -n "$(ip netns exec "$to" ss --no-header --listening --tcp --numeric "sport = :$1")" ]; then return; fi
        sleep 0.05
    done
    die "nothing listens on TCP $1 in $to"
}
