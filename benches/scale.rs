//! Whether a packet's cost grows with the number of endpoints and of peers: measures and judges, and
//! fails where it grows by more than a tenth.
//!
//! Judged are flows under way: for each round some are chosen at random among all endpoints or peers,
//! one packet of each is carried, and then more, of each flow in turn, are timed, there and delivered.
//! So the tables grow, and what is in use does not: 10 flows, as many as the smallest table has, and
//! 100, whose rows, SAs, keys and windows fit into a second-level cache. Sizes take turns in each round,
//! and the median over the rounds of a size's time over the smallest one's is what counts, so that
//! neither a clock that changes nor other programs favour one of them.
//!
//! Told, and not judged, is what no second-level cache holds: 1,000 flows of which every packet is another
//! one's, and *each in turn*, one packet for each endpoint or peer there is. What such a packet costs more
//! is fetching the next one's row, SA, key and window from further away, and the more so, the further they
//! lie apart: 5,000 peers have some 19 MB. Traffic is kinder, as packets of a flow come together.

use std::io::{self, Write};
use std::process::ExitCode;

use overlayd::bench::pair::{self, Pair};
use overlayd::id::PortSlot;
use overlayd::io::clock::boot_time;
use overlayd::sa::Suite;
use overlayd::wire::vnet_hdr::VnetHeader;

fn main() -> io::Result<ExitCode> {
    // `cargo test --benches` only wants to see it run.
    let is_bench = std::env::args().any(|argument| argument == "--bench");
    let rounds = if is_bench { ROUNDS } else { 1 };
    let endpoints = |count| Site::new(count, Pair::spread(SUITE, count, 1), |flow| (0, flow));
    let peers = |count| Site::new(count, Pair::spread(SUITE, count, count), |flow| (flow, flow));
    let mut out = io::stdout().lock();
    let mut growths = Vec::new();
    for (what, mut sites) in
        [("endpoints", [10, 1_000, 100_000].map(endpoints)), ("peers", [10, 1_000, 5_000].map(peers))]
    {
        writeln!(out, "{what:<40} {:>10} {:>10}", "ns/packet", "growth")?;
        for flows in [Some(10), Some(100), Some(1_000), None] {
            for (name, cost, growth) in compare(&mut sites, flows, rounds) {
                writeln!(out, "{name:<40} {cost:>10.1} {:>8.1} %", growth * 100.0)?;
                if flows.is_some_and(|flows| flows <= MOST_FLOWS) && growth > MOST_GROWTH {
                    growths.push(format!("{what}: {name}: {:.1} %", growth * 100.0));
                }
            }
        }
    }
    if !is_bench || growths.is_empty() {
        writeln!(out, "up to {MOST_FLOWS} flows at once: no growth above {:.0} %", MOST_GROWTH * 100.0)?;
        return Ok(ExitCode::SUCCESS);
    }
    writeln!(out, "grows by more than {:.0} %:", MOST_GROWTH * 100.0)?;
    growths.iter().try_for_each(|growth| writeln!(out, "  {growth}"))?;
    Ok(ExitCode::FAILURE)
}

/// Times as many flows at once, or each there is, at each size that has so many: what it is, the
/// median time of a packet, and by how much of the smallest size's it is longer.
fn compare(sites: &mut [Site], flows: Option<usize>, rounds: usize) -> Vec<(String, f64, f64)> {
    let mut sites: Vec<_> =
        sites.iter_mut().filter(|site| flows.is_none_or(|flows| flows <= site.order.len())).collect();
    let mut costs = vec![Vec::new(); sites.len()];
    let rounds = if flows.is_none() { rounds.div_ceil(SHORTER) } else { rounds };
    for round in 0..rounds {
        for turn in 0..sites.len() {
            let index = (round + turn) % sites.len();
            let site = &mut sites[index];
            let flows = site.choose(flows.unwrap_or(site.order.len()));
            site.carry(&flows, flows.len());
            let packets = flows.len().max(PACKETS);
            costs[index].push(site.carry(&flows, packets) / packets as f64);
        }
    }
    let growths = |of: &[f64]| of.iter().zip(&costs[0]).map(|(cost, least)| cost / least - 1.0).collect();
    let named = |(site, costs): (&&mut Site, &Vec<f64>)| {
        let pattern = flows.map_or("each in turn".to_owned(), |flows| format!("{flows} flows at once"));
        (
            format!("  {:>7} of them, {pattern}", site.order.len()),
            median(costs.clone()),
            median(growths(costs)),
        )
    };
    sites.iter().zip(&costs).map(named).collect()
}

/// Two nodes with as many endpoints or peers.
struct Site {
    pair: Pair,
    /// All flows, shuffled as far as somebody has chosen.
    order: Vec<u32>,
    /// Between which endpoints a flow is.
    ends: fn(u32) -> (u32, u32),
    random: u64,
}

impl Site {
    fn new(count: u32, pair: Pair, ends: fn(u32) -> (u32, u32)) -> Self {
        Self { pair, order: (0..count).collect(), ends, random: 0x9e37_79b9_7f4a_7c15 }
    }

    /// A frame of each of so many flows, in no order.
    fn choose(&mut self, flows: usize) -> Vec<(PortSlot, Vec<u8>)> {
        for place in 0..flows {
            let ahead = self.random() % (self.order.len() - place) as u64;
            self.order.swap(place, place + usize::try_from(ahead).expect("within the flows"));
        }
        let frame = |(from, to)| (PortSlot::new(from), pair::frame_between(FRAME_LEN, from, to));
        self.order[..flows].iter().map(|flow| frame((self.ends)(*flow))).collect()
    }

    /// The nanoseconds that so many packets take, of each flow in turn.
    fn carry(&mut self, flows: &[(PortSlot, Vec<u8>)], packets: usize) -> f64 {
        let mut frames = flows.iter().cycle().take(packets).peekable();
        let begin = boot_time();
        while frames.peek().is_some() {
            let mut sent = 0;
            for (port, frame) in frames.by_ref().take(BATCH) {
                self.pair.submit(*port, &VnetHeader::COMPLETE, frame);
                sent += 1;
            }
            self.pair.flush();
            assert_eq!(self.pair.receive(), sent);
        }
        boot_time().since(begin).as_nanos() as f64
    }

    /// The next of a row of numbers that no cache foresees (xorshift64).
    fn random(&mut self) -> u64 {
        for shift in [13, -7, 17] {
            self.random ^= if shift > 0 { self.random << shift } else { self.random >> -shift };
        }
        self.random
    }
}

fn median(mut of: Vec<f64>) -> f64 {
    of.sort_unstable_by(f64::total_cmp);
    of[of.len() / 2]
}

const SUITE: Suite = Suite::Aes256Gcm;
/// The shortest, where lookups weigh most.
const FRAME_LEN: usize = 64;
/// Frames of a batch, as many as a run of `UDP_SEGMENT` often has.
const BATCH: usize = 32;
/// Of a round, where there are no more flows.
const PACKETS: usize = 2_048;
const ROUNDS: usize = 501;
/// A round over each endpoint or peer is longer, and there are fewer by this.
const SHORTER: usize = 20;
/// With more, what is in use is too much for a second-level cache.
const MOST_FLOWS: usize = 100;
/// Of the time at the smallest size.
const MOST_GROWTH: f64 = 0.1;
