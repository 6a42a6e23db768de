# The medians of medians.jq as README.md shows them: a row for each figure, the kernel's VXLAN beside overlayd.

def rows: [
    {figure: "tcp1_gbps", title: "TCP, 1 stream", unit: " Gbit/s"},
    {figure: "tcp4_gbps", title: "TCP, 4 streams", unit: " Gbit/s"},
    {figure: "udp1300_gbps", title: "UDP 1300 B, delivered", unit: " Gbit/s"},
    {figure: "udp64_kpps", title: "UDP 64 B, delivered", unit: ",000 /s"},
    {figure: "rr_per_s", title: "TCP request/response", unit: " /s"},
    {figure: "ping_us", title: "ping", unit: " µs"}
];

# Three digits, as far as there are any behind the point.
def rounded:
    if . >= 100 then round elif . >= 10 then (. * 10 | round) / 10 else (. * 100 | round) / 100 end;

def shown($row):
    if . == null then "-"
    elif $row.figure == "udp64_kpps" then "\(round)\($row.unit)"
    elif . >= 1000 then "\(. / 1000 | floor),\(. % 1000 | round | tostring | ("00" + .)[-3:])\($row.unit)"
    else "\(rounded)\($row.unit)"
    end;

def of($peer): [.medians[] | select(.peer == $peer)][0];

. as $report | of("vxlan") as $kernel | of("overlayd") as $overlayd | of("null") as $null
| ([.ratios[] | select(.peer == "vxlan")][0]) as $ratio
| "| | kernel VXLAN, plaintext | overlayd, encrypted | ratio |",
  "|---|---:|---:|---:|",
  (rows[] | . as $row
    | "| \(.title) | \($kernel[.figure] | shown($row)) | \($overlayd[.figure] | shown($row)) | "
      + "\($ratio[.figure] | if . == null then "-" else rounded | tostring end) |"),
  "",
  "\(.overlayd), commit \(.commit), \(.date); \(.machine.cpu) with \(.machine.cores) cores, which all four ends share, \(.machine.kernel), TCP with \(.machine.congestion_control).",
  "Medians of \(.rounds) rounds of \(.seconds) s: `\(.command)`.",
  (if $null != null and $null.tcp1_gbps != null
    then "Built to encrypt nothing, it carries \($null.tcp1_gbps | rounded) Gbit/s of one stream: the cipher leaves "
      + "\($overlayd.tcp1_gbps / $null.tcp1_gbps | rounded) of that."
    else empty end),
  (if $plot != "" then "", "![One TCP stream by cipher and by the length of its segments](\($plot))" else empty end)
