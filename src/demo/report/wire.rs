//! What an onlooker on the underlay saw while the containers exchanged a canary: on the encrypted
//! network, and on an unencrypted one as the check of the check.

use super::{Finding, Ink, line};
use crate::demo::packet::{EspPacket, Packet, count_containing};

/// Both captures.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::demo) struct WireFinding {
    pub(in crate::demo) encrypted: WireTrial,
    pub(in crate::demo) plain: WireTrial,
    /// The first ESP packet, told in two lines.
    pub(in crate::demo) sample: Option<[String; 2]>,
}

/// One capture.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(in crate::demo) struct WireTrial {
    /// How often the canary was sent, both ways together.
    pub(in crate::demo) sent: u64,
    /// How often it arrived.
    pub(in crate::demo) arrived: u64,
    /// Packets that contain it in the clear.
    pub(in crate::demo) found: usize,
    pub(in crate::demo) esp: usize,
    pub(in crate::demo) vxlan: usize,
    /// Packets of the agents' TLS, and of ARP and neighbour discovery.
    pub(in crate::demo) control: usize,
    pub(in crate::demo) other: usize,
    /// ESP packets with an SPI that no agent has named, or with a number that was used before.
    pub(in crate::demo) foreign: usize,
}

impl WireTrial {
    /// Judges a capture; `spis` are those that the agents name as theirs.
    pub(in crate::demo) fn judge(frames: &[Vec<u8>], canary: &[u8], spis: &[u32]) -> Self {
        let mut trial = Self { found: count_containing(frames, canary), ..Self::default() };
        let mut seen = std::collections::BTreeSet::new();
        for frame in frames {
            match Packet::read(frame) {
                Packet::Esp(esp) => {
                    trial.esp += 1;
                    let is_new = seen.insert((esp.spi, esp.sequence));
                    trial.foreign += usize::from(!is_new || !spis.contains(&esp.spi));
                }
                Packet::Vxlan => trial.vxlan += 1,
                Packet::Control { .. } | Packet::Neighbor => trial.control += 1,
                Packet::Other => trial.other += 1,
            }
        }
        trial
    }

    fn total(&self) -> usize {
        self.esp + self.vxlan + self.control + self.other
    }
}

impl WireFinding {
    /// Puts both together, with the first ESP packet of the capture as the sample.
    pub(in crate::demo) fn new(encrypted: WireTrial, frames: &[Vec<u8>], plain: WireTrial) -> Self {
        let first = frames.iter().find_map(|frame| match Packet::read(frame) {
            Packet::Esp(esp) => Some(told(&esp)),
            Packet::Vxlan | Packet::Control { .. } | Packet::Neighbor | Packet::Other => None,
        });
        Self { encrypted, plain, sample: first }
    }

    fn encrypted_failures(&self) -> Vec<String> {
        let trial = &self.encrypted;
        let mut failures = undelivered("encrypted", trial);
        let mut check = |holds: bool, failure: String| {
            if !holds {
                failures.push(failure);
            }
        };
        check(trial.esp > 0, "no ESP was seen on the underlay".into());
        let vxlan = format!("{} VXLAN packets left an encrypted network", trial.vxlan);
        check(trial.vxlan == 0, vxlan);
        check(trial.other == 0, format!("{} packets on the underlay are nobody's", trial.other));
        check(trial.found == 0, format!("the canary is in {} packets of the underlay", trial.found));
        let foreign = format!("{} ESP packets have an unknown SPI or a repeated number", trial.foreign);
        check(trial.foreign == 0, foreign);
        failures
    }

    fn plain_failures(&self) -> Vec<String> {
        let mut failures = undelivered("unencrypted", &self.plain);
        if u64::try_from(self.plain.found).is_ok_and(|found| found < self.plain.arrived.max(1)) {
            let Self { plain: WireTrial { found, arrived, .. }, .. } = self;
            failures.push(format!("the capture shows {found} of {arrived} canaries that were not encrypted"));
        }
        failures
    }
}

impl Finding for WireFinding {
    fn render(&self, ink: Ink) -> String {
        let mut text = String::new();
        let title = format!("{:<35}sent  arrived  seen by a capture between the hosts", "A canary");
        line!(text, "\n{}", ink.heading(&title));
        let (encrypted, plain) = (&self.encrypted, &self.plain);
        let rows = [
            ("encrypted", encrypted, format!("{} ESP", encrypted.esp), self.encrypted_failures()),
            ("unencrypted, to compare", plain, format!("{} VXLAN", plain.vxlan), self.plain_failures()),
        ];
        for (name, trial, packets, failures) in rows {
            line!(
                text,
                "  {} {name:<26}{:<6}{:<9}in {} of {} packets ({packets})",
                ink.verdict(failures.is_empty()),
                trial.sent,
                trial.arrived,
                trial.found,
                trial.total(),
            );
        }
        for told in self.sample.iter().flatten() {
            line!(text, "         {}", ink.aside(told));
        }
        text
    }

    fn failures(&self) -> Vec<String> {
        [self.encrypted_failures(), self.plain_failures()].concat()
    }
}

fn undelivered(network: &str, trial: &WireTrial) -> Vec<String> {
    if trial.sent > 0 && trial.arrived == trial.sent {
        return Vec::new();
    }
    vec![format!("{} of {} canaries arrived on the {network} network", trial.arrived, trial.sent)]
}

fn told(esp: &EspPacket<'_>) -> [String; 2] {
    let EspPacket { from, to, spi, sequence, bytes, ip_length } = esp;
    let words: Vec<String> = bytes
        .chunks(4)
        .take(HEX_WORDS)
        .map(|word| word.iter().map(|byte| format!("{byte:02x}")).collect())
        .collect();
    [
        format!("{from} > {to} UDP, ESP SPI {spi:#010x} sequence {sequence}, {ip_length} bytes of IP"),
        format!("{} ...", words.join(" ")),
    ]
}

/// Header, IV, and the beginning of the ciphertext, in words of four bytes.
const HEX_WORDS: usize = 9;

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;

    use super::*;

    #[test]
    fn a_capture_is_told_and_judged() {
        let frames = [esp(0x0100_0001, 1, b"sealed"), esp(0x0100_0001, 2, b"sealed")];
        let found = WireFinding::new(
            WireTrial { sent: 2, arrived: 2, ..WireTrial::judge(&frames, b"canary", &[0x0100_0001]) },
            &frames,
            WireTrial { sent: 1, arrived: 1, ..WireTrial::judge(&[udp(4789, b"a canary")], b"canary", &[]) },
        );
        assert_eq!(
            found.render(Ink::PLAIN),
            "\nA canary                           sent  arrived  seen by a capture between the hosts\n\
             \x20 ok     encrypted                 2     2        in 0 of 2 packets (2 ESP)\n\
             \x20 ok     unencrypted, to compare   1     1        in 1 of 1 packets (1 VXLAN)\n\
             \x20        192.0.2.1:4500 > 192.0.2.2:4500 UDP, ESP SPI 0x01000001 sequence 1, 78 bytes of IP\n\
             \x20        01000001 00000001 7365616c 65640000 00000000 00000000 00000000 00000000 00000000 ...\n"
        );
        assert_eq!(found.failures(), [""; 0]);
    }

    #[test]
    fn each_thing_that_may_not_be_on_the_wire_fails() {
        let sent = |trial| WireTrial { sent: 1, arrived: 1, ..trial };
        let plain = || sent(WireTrial { found: 1, vxlan: 1, ..WireTrial::default() });
        let good = esp(7, 1, b"sealed");
        for (frames, failure) in [
            (vec![], "no ESP"),
            (vec![good.clone(), esp(7, 2, b"canary")], "the canary is in 1 packets"),
            (vec![good.clone(), udp(4789, b"inner")], "1 VXLAN packets left"),
            (vec![good.clone(), udp(53, b"query")], "1 packets on the underlay are nobody's"),
            (vec![good.clone(), esp(8, 1, b"sealed")], "1 ESP packets have an unknown SPI"),
            (vec![good.clone(), good.clone()], "a repeated number"),
        ] {
            let trial = sent(WireTrial::judge(&frames, b"canary", &[7]));
            let failures = WireFinding::new(trial, &frames, plain()).failures();
            assert!(failures.len() == 1 && failures[0].contains(failure), "{failures:?}");
        }
    }

    #[test]
    fn a_check_that_finds_no_plain_canary_or_lost_canaries_fails() {
        let frames = [esp(7, 1, b"sealed")];
        let judged = || WireTrial::judge(&frames, b"canary", &[7]);
        let blind = WireTrial { sent: 2, arrived: 2, vxlan: 2, found: 1, ..WireTrial::default() };
        let lost = WireTrial { sent: 2, arrived: 1, ..judged() };
        let found = WireFinding::new(lost, &frames, blind);
        assert_eq!(
            found.failures(),
            [
                "1 of 2 canaries arrived on the encrypted network",
                "the capture shows 1 of 2 canaries that were not encrypted"
            ]
        );
    }

    fn esp(spi: u32, sequence: u32, ciphertext: &[u8]) -> Vec<u8> {
        let mut payload = [spi.to_be_bytes(), sequence.to_be_bytes()].concat();
        payload.extend(ciphertext);
        payload.resize(50, 0);
        udp(4500, &payload)
    }

    fn udp(port: u16, payload: &[u8]) -> Vec<u8> {
        let mut frame = Vec::new();
        let builder = PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4([192, 0, 2, 1], [192, 0, 2, 2], 64);
        builder.udp(4500, port).write(&mut frame, payload).unwrap();
        frame
    }
}
