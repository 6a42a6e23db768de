//! The rate of one TCP stream, beside that of the kernel's VXLAN.

use super::{DIRECTIONS, Finding, Ink, line};
use crate::lab::TcpReport;

/// TCP both ways, measured one after the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::demo) struct Rates {
    /// The encrypted network.
    pub(in crate::demo) overlayd: RateRow,
    /// The kernel's plain VXLAN, or why there is none.
    pub(in crate::demo) kernel: Result<RateRow, String>,
}

/// One stream each way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::demo) struct RateRow {
    /// MTU of the containers' interfaces, in bytes.
    pub(in crate::demo) mtu: u32,
    /// For each direction.
    pub(in crate::demo) streams: [TcpReport; 2],
}

impl Finding for Rates {
    fn render(&self, ink: Ink) -> String {
        let mut text = String::new();
        let [there, back] = DIRECTIONS;
        let title = format!("{:<35}{there:<16}{back:<16}MTU", "One TCP stream");
        line!(text, "\n{}", ink.heading(&title));
        let holds = self.failures().is_empty();
        line!(text, "  {} {:<26}{}", ink.verdict(holds), "overlayd, encrypted", told(&self.overlayd));
        match &self.kernel {
            Ok(row) => line!(text, "         {:<26}{}", "kernel VXLAN, plain", told(row)),
            Err(why) => line!(text, "         no kernel VXLAN to compare with: {why}"),
        }
        text
    }

    fn failures(&self) -> Vec<String> {
        let each = DIRECTIONS.iter().zip(&self.overlayd.streams);
        each.filter(|(_, stream)| stream.bytes == 0)
            .map(|(direction, _)| format!("TCP {direction} carried nothing"))
            .collect()
    }
}

fn told(row: &RateRow) -> String {
    let [there, back] = row.streams.map(|stream| rate(stream.bits_per_second()));
    format!("{there:<16}{back:<16}{}", row.mtu)
}

/// Three digits at least, in Gbit/s or Mbit/s.
fn rate(bits_per_second: u64) -> String {
    let whole = |unit: u64| (bits_per_second / unit, bits_per_second % unit / (unit / 100));
    if bits_per_second >= 1_000_000_000 {
        let (whole, hundredths) = whole(1_000_000_000);
        format!("{whole}.{hundredths:02} Gbit/s")
    } else {
        let (whole, hundredths) = whole(1_000_000);
        format!("{whole}.{hundredths:02} Mbit/s")
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn rates_stand_beside_the_kernels_or_say_that_there_is_none() {
        let stream = |bytes| TcpReport { bytes, elapsed: Duration::from_secs(1) };
        let row = RateRow { mtu: 1408, streams: [stream(250_000_000), stream(62_500_000)] };
        let rates = Rates { overlayd: row, kernel: Ok(RateRow { mtu: 1450, ..row }) };
        assert_eq!(
            rates.render(Ink::PLAIN),
            "\nOne TCP stream                     c1 to c2        c2 to c1        MTU\n\
             \x20 ok     overlayd, encrypted       2.00 Gbit/s     500.00 Mbit/s   1408\n\
             \x20        kernel VXLAN, plain       2.00 Gbit/s     500.00 Mbit/s   1450\n"
        );
        let alone = Rates { kernel: Err("add vxlan vxlan9: not supported".into()), ..rates };
        let last = "         no kernel VXLAN to compare with: add vxlan vxlan9: not supported\n";
        assert!(alone.render(Ink::PLAIN).ends_with(last));
        assert_eq!(alone.failures(), [""; 0]);
    }

    #[test]
    fn a_stream_that_carried_nothing_fails() {
        let stream = |bytes| TcpReport { bytes, elapsed: Duration::from_secs(1) };
        let row = RateRow { mtu: 1408, streams: [stream(1), stream(0)] };
        let rates = Rates { overlayd: row, kernel: Err(String::new()) };
        assert_eq!(rates.failures(), ["TCP c2 to c1 carried nothing"]);
    }
}
