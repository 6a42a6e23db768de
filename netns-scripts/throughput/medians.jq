# Everything that was measured, with medians, overlayd's ratios to the others, and where it is from.

def median: sort | if length == 0 then null else (.[(length - 1) / 2 | floor] + .[length / 2 | floor]) / 2 end;

def figures: ["tcp1_gbps", "tcp4_gbps", "tcp_reverse_gbps", "udp1300_gbps", "udp64_kpps", "ping_us", "rr_per_s", "rr_p99_us"];

# A figure that no run has is null.
def medians($runs): reduce figures[] as $figure ({}; .[$figure] = ([$runs[][$figure] | numbers] | median));

def ratios($ours; $theirs): reduce figures[] as $figure ({};
    .[$figure] = if $ours[$figure] != null and ($theirs[$figure] // 0) > 0
        then $ours[$figure] / $theirs[$figure] else null end);

[$peers | split("\n")[] | select(. != "") | split("\t") | {peer: .[0], title: .[1]}]
| map(.peer as $peer | . + medians([$runs[] | select(.peer == $peer)])) as $medians
| ([$medians[] | select(.peer == "overlayd")][0] // {}) as $overlayd
| {
    machine: {cpu: $cpu, cores: $cores, kernel: $kernel, congestion_control: $congestion_control},
    overlayd: $version,
    commit: $commit,
    date: $date,
    command: $command,
    seconds: $seconds,
    rounds: $rounds,
    medians: $medians,
    ratios: [$medians[] | select(.peer != "overlayd") | {peer, title} + ratios($overlayd; .)],
    runs: $runs,
    sizes: [$sizes | group_by([.suite, .mtu])[] | {suite: .[0].suite, mtu: .[0].mtu, gbps: ([.[].gbps | numbers] | median)}]
  }
