//! Where the demo runs, and the keys that its agents agreed on.

use std::time::Duration;

use super::{Finding, Ink, line};

/// Where it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::demo) struct Setting {
    pub(in crate::demo) kernel: String,
    pub(in crate::demo) is_fake_root: bool,
    pub(in crate::demo) underlay_mtu: u32,
}

impl Finding for Setting {
    fn render(&self, ink: Ink) -> String {
        let mut text = String::new();
        let who = if self.is_fake_root { "fake root in a user namespace" } else { "root" };
        let build = if cfg!(debug_assertions) { " (debug build: slow)" } else { "" };
        line!(text, "{}", ink.heading("Two hosts with a container each, on one encrypted network"));
        line!(text, "  overlayd {}{build}, Linux {}, as {who}", env!("CARGO_PKG_VERSION"), self.kernel);
        line!(
            text,
            "  c1 in host1 192.0.2.1 ---- veth, MTU {} ---- 192.0.2.2 host2 with c2",
            self.underlay_mtu
        );
        text
    }

    fn failures(&self) -> Vec<String> {
        Vec::new()
    }
}

/// The keys of the encrypted network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::demo) struct Keys {
    /// The suite, as each host names it.
    pub(in crate::demo) suites: [String; 2],
    /// SPIs on which each host sends, by lane.
    pub(in crate::demo) outbound: [Vec<u32>; 2],
    /// SPIs on which each host receives.
    pub(in crate::demo) inbound: [Vec<u32>; 2],
    /// From the beginning of the last attach until both had keys.
    pub(in crate::demo) elapsed: Duration,
    /// TLS handshakes that were seen on the underlay and settled on 1.3.
    pub(in crate::demo) tls13_handshakes: usize,
}

impl Finding for Keys {
    fn render(&self, ink: Ink) -> String {
        let mut text = String::new();
        let spis = self.outbound.each_ref().map(|spis| {
            let first = spis.first().map(|spi| format!("{spi:#010x}"));
            first.unwrap_or_else(|| "none".to_owned())
        });
        line!(
            text,
            "  {} keys of {} at both ends {} ms after the last attach began",
            ink.verdict(self.failures().is_empty()),
            self.suites[0],
            self.elapsed.as_millis(),
        );
        line!(
            text,
            "         SPI {} to host2, {} to host1 by lane 0; {} TLS 1.3 handshakes on TCP 2377",
            spis[0],
            spis[1],
            self.tls13_handshakes,
        );
        text
    }

    fn failures(&self) -> Vec<String> {
        let mut failures = Vec::new();
        if self.suites[0] != self.suites[1] {
            failures.push(format!("host1 has keys of {}, host2 of {}", self.suites[0], self.suites[1]));
        }
        for (from, to) in [(0, 1), (1, 0)] {
            if self.outbound[from].is_empty() || self.outbound[from] != self.inbound[to] {
                failures.push(format!(
                    "host{} sends on the SPIs {:x?}, host{} receives on {:x?}",
                    from + 1,
                    self.outbound[from],
                    to + 1,
                    self.inbound[to]
                ));
            }
        }
        if self.tls13_handshakes == 0 {
            failures.push("no TLS 1.3 handshake was seen on the underlay before there were keys".into());
        }
        failures
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_told_with_their_spis_and_must_be_the_same_at_both_ends() {
        let keys = Keys {
            suites: ["aes-256-gcm".into(), "aes-256-gcm".into()],
            outbound: [vec![0x0abc_def0, 0x0abc_def1], vec![0x1234_5678]],
            inbound: [vec![0x1234_5678], vec![0x0abc_def0, 0x0abc_def1]],
            elapsed: Duration::from_millis(42),
            tls13_handshakes: 3,
        };
        assert_eq!(
            keys.render(Ink::PLAIN),
            "  ok     keys of aes-256-gcm at both ends 42 ms after the last attach began\n         \
             SPI 0x0abcdef0 to host2, 0x12345678 to host1 by lane 0; 3 TLS 1.3 handshakes on TCP 2377\n"
        );
        assert_eq!(keys.failures(), [""; 0]);
        let torn = Keys { inbound: [vec![1], vec![2]], tls13_handshakes: 0, ..keys };
        assert_eq!(torn.failures().len(), 3);
        assert!(torn.render(Ink::PLAIN).starts_with("  FAILED keys"));
    }
}
