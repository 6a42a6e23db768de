# The medians and ratios of medians.jq as a table in Markdown.

# What the columns are called, and whether less is better.
def columns: [
    {figure: "tcp1_gbps", title: "TCP, 1 stream, Gbit/s"},
    {figure: "tcp4_gbps", title: "TCP, 4 streams, Gbit/s"},
    {figure: "tcp_reverse_gbps", title: "TCP, reverse, Gbit/s"},
    {figure: "udp1300_gbps", title: "UDP 1300 B delivered, Gbit/s"},
    {figure: "udp64_kpps", title: "UDP 64 B delivered, 1,000/s"},
    {figure: "ping_us", title: "ping, µs", less: true},
    {figure: "rr_per_s", title: "TCP request/response, /s"},
    {figure: "rr_p99_us", title: "its p99, µs", less: true}
];

# Three digits, as far as there are any behind the point.
def rounded:
    if . == null then "-"
    elif . >= 100 then round
    elif . >= 10 then (. * 10 | round) / 10
    else (. * 100 | round) / 100
    end | tostring;

def row($title; cells): "| " + ([$title, cells] | join(" | ")) + " |";

# The ratio to whichever of the others is best at this figure, and which that is.
def to_best($others): . as $column
    | [$others[] | {title, ratio: .[$column.figure]} | select(.ratio != null)]
    # Where more is better, the best of the others leaves the least ratio.
    | (if $column.less then max_by(.ratio) else min_by(.ratio) end)
    | if . == null then "-" else "\(.ratio | rounded) (\(.title | split(" (")[0]))" end;

.ratios as $ratios
| row(""; columns[].title),
  row("---"; columns[] | "---:"),
  (.medians[] | . as $peer | row(.title; columns[] | $peer[.figure] | rounded)),
  ($ratios[] | select(.peer == "vxlan") | . as $ratio
    | row("overlayd / kernel VXLAN"; columns[] | $ratio[.figure] | rounded)),
  ($ratios[] | select(.peer == "null") | . as $ratio
    | row("overlayd / without a cipher"; columns[] | $ratio[.figure] | rounded)),
  ([$ratios[] | select(.peer != "null" and (.peer | endswith("vxlan") | not))] as $others | select($others != [])
    | row("overlayd / best of the other tunnels"; columns[] | to_best($others))),
  # What one would build by hand.
  ($ratios[] | select(.peer == "wireguard-go+vxlan") | . as $ratio
    | row("overlayd / \(.title)"; columns[] | $ratio[.figure] | rounded)),
  "",
  "\(.overlayd), commit \(.commit), \(.date). \(.machine.cpu), \(.machine.cores) cores, \(.machine.kernel), TCP with \(.machine.congestion_control).",
  "Medians of \(.rounds) round\(if .rounds == 1 then "" else "s" end) of \(.seconds) s: `\(.command)`"
