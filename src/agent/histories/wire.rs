//! The wire of a history, which loses, repeats and reorders, and the wiretap on it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::SocketAddr;
use std::time::Duration;

use rand::RngExt;
use rand::rngs::StdRng;
use sha2::{Digest, Sha256};

use super::cluster::{NETWORKS, index_at, is_encrypted, mac_prefix};
use crate::boot_time::BootTime;
use crate::id::{EndpointId, Spi};
use crate::wire::vxlan;

/// A datagram on its way.
#[derive(Debug, Clone)]
pub(super) struct Datagram {
    pub(super) from: SocketAddr,
    pub(super) to: SocketAddr,
    pub(super) bytes: Vec<u8>,
}

pub(super) struct Wire {
    pub(super) tap: Wiretap,
    /// Of a thousand datagrams.
    pub(super) lossy: u32,
    under_way: BTreeMap<(BootTime, u64), Datagram>,
    sent: u64,
    pub(super) lost: u64,
    /// What an attacker has recorded.
    recorded: Vec<Datagram>,
    digest: Sha256,
}

impl Wire {
    pub(super) fn new() -> Self {
        Self {
            tap: Wiretap::default(),
            lossy: 0,
            under_way: BTreeMap::new(),
            sent: 0,
            lost: 0,
            recorded: Vec::new(),
            digest: Sha256::new(),
        }
    }

    pub(super) fn send(&mut self, now: BootTime, rng: &mut StdRng, datagram: Datagram) {
        self.tap.look(&datagram);
        self.digest.update(&datagram.bytes);
        if rng.random_range(0..40) == 0 {
            self.recorded.push(datagram.clone());
        }
        if rng.random_range(0..1000) < self.lossy {
            self.lost += 1;
            return;
        }
        if rng.random_range(0..1000) < self.lossy {
            self.carry(now, rng, datagram.clone());
        }
        self.carry(now, rng, datagram);
    }

    /// Sends something that was recorded once more, if there is any.
    pub(super) fn replay(&mut self, now: BootTime, rng: &mut StdRng) -> bool {
        if self.recorded.is_empty() {
            return false;
        }
        let datagram = self.recorded[rng.random_range(0..self.recorded.len())].clone();
        self.carry(now, rng, datagram);
        true
    }

    pub(super) fn arrived(&mut self, now: BootTime) -> Vec<Datagram> {
        let later = self.under_way.split_off(&(now + Duration::from_nanos(1), 0));
        std::mem::replace(&mut self.under_way, later).into_values().collect()
    }

    pub(super) fn digest(&self) -> [u8; 32] {
        self.digest.clone().finalize().into()
    }

    fn carry(&mut self, now: BootTime, rng: &mut StdRng, datagram: Datagram) {
        self.sent += 1;
        let takes = Duration::from_millis(rng.random_range(1..120));
        self.under_way.insert((now + takes, self.sent), datagram);
    }
}

/// Sees every datagram; fails at the first that it can read, or that was sealed with a nonce that its
/// key had before.
#[derive(Default)]
pub(super) struct Wiretap {
    /// The key that each node seals with for an SPI.
    sealing: HashMap<(usize, Spi), String>,
    keys: HashSet<String>,
    nonces: HashSet<(String, [u8; 8])>,
}

impl Wiretap {
    /// A node seals with a key from now on.
    pub(super) fn installed(&mut self, node: usize, spi: Spi, key: String) {
        assert!(self.keys.insert(key.clone()), "a key is used for a second SA, whose nonces begin anew");
        self.sealing.insert((node, spi), key);
    }

    pub(super) fn keys(&self) -> usize {
        self.keys.len()
    }

    fn look(&mut self, datagram: &Datagram) {
        let Datagram { from, bytes, .. } = datagram;
        let addresses = (0..NETWORKS).filter(|network| is_encrypted(*network)).map(mac_prefix);
        for secret in addresses.map(|prefix| prefix.to_vec()).chain([SECRET.to_vec()]) {
            let is_there = bytes.windows(secret.len()).any(|window| window == secret);
            assert!(!is_there, "plaintext of an encrypted network is on the wire: {datagram:02x?}");
        }
        if datagram.to.port() == vxlan::PORT {
            return;
        }
        let spi = Spi::new(u32::from_be_bytes(*bytes.first_chunk().expect("a header"))).expect("an SPI");
        let key = self.sealing.get(&(index_at(*from), spi)).expect("nobody was given a key for this SPI");
        let nonce = *bytes[8..].first_chunk().expect("an IV");
        assert!(self.nonces.insert((key.clone(), nonce)), "nonce {nonce:02x?} was used twice with a key");
    }
}

/// What a frame says: a mark, and which one it is.
pub(super) fn payload(is_secret: bool, number: u64) -> Vec<u8> {
    let mark = if is_secret { SECRET } else { b"for everybody to read".as_slice() };
    [mark, &number.to_be_bytes()].concat()
}

/// The number in a frame of [`payload`].
pub(super) fn number_in(frame: &[u8]) -> u64 {
    u64::from_be_bytes(*frame.last_chunk().expect("a number"))
}

/// A frame that was sent.
pub(super) struct Sent {
    pub(super) bytes: Vec<u8>,
    pub(super) from: EndpointId,
    pub(super) to: EndpointId,
    pub(super) node: usize,
    /// Of an encrypted network.
    pub(super) is_secret: bool,
    pub(super) is_delivered: bool,
}

const SECRET: &[u8] = b"nobody may read this";
