//! What an endpoint and a peer cost in memory, by the allocator's own count: bounds that a change of
//! layout has to keep, or to move on purpose.

#![expect(unsafe_code, reason = "mallinfo2 has no safe wrapper")]

use std::io::{self, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use overlayd::boot_time::BootTime;
use overlayd::datapath::{Egress, FloodLimit, Ingress};
use overlayd::forward::{EndpointSpec, NetworkTable, Place, Tables, TablesBuilder};
use overlayd::id::{LinkSlot, MacAddr, NetSlot, Spi, Vni};
use overlayd::sa::{InboundSa, KeyMaterial, Limits, OutboundSa, Suite};

/// One test: the count is the process's.
#[test]
fn endpoints_and_peers_cost_what_is_said_of_them() {
    let endpoint = bytes_each("endpoint of a network, with one address", ENDPOINTS, || network(ENDPOINTS));
    assert!(endpoint <= 256, "{endpoint} bytes");
    for suite in [Suite::Aes256Gcm, Suite::ChaCha20Poly1305] {
        let peer = bytes_each(&format!("peer of a network, keyed, {suite}"), PEERS, || keyed(suite));
        assert!(peer <= 6 << 10, "{peer} bytes");
    }
}

const ENDPOINTS: u32 = 100_000;
const PEERS: u32 = 5_000;

fn network(endpoints: u32) -> Tables {
    let endpoint = |number: u32| {
        let [a, b, c, d] = number.to_be_bytes();
        EndpointSpec {
            mac: MacAddr::new([2, 0, a, b, c, d]),
            addresses: vec![IpAddr::from([10, b, c, d])],
            place: Place::Remote(LinkSlot::new(number % PEERS)),
            is_gateway: false,
        }
    };
    let endpoints = (0..endpoints).map(endpoint).collect();
    let vni = Vni::new(7).expect("in range");
    let network = Arc::new(NetworkTable::encrypted(vni, 1408, endpoints));
    TablesBuilder::default().network(NetSlot::new(0), network).build()
}

/// What a lane and its tables keep of peers: a row, and an SA in each direction.
fn keyed(suite: Suite) -> (Tables, Egress, Ingress) {
    let mut builder = TablesBuilder::default();
    let mut egress = Egress::new(FloodLimit::default());
    let mut ingress = Ingress::new();
    let (limits, now) = (Limits::standard(suite), BootTime::from_nanos(1));
    let key = || KeyMaterial::new(suite, &[7; KeyMaterial::LEN]);
    for peer in 0..PEERS {
        let (link, spi) = (LinkSlot::new(peer), Spi::new(0x1000 + peer).expect("no reserved SPI"));
        builder = builder.link(link, NetSlot::new(0), SocketAddr::from(([192, 0, 2, 1], 4500)));
        egress.install(link, OutboundSa::new(spi, key(), limits, now));
        ingress.install(link, InboundSa::new(spi, key(), limits, now));
    }
    (builder.build(), egress, ingress)
}

/// Bytes that are in use for each of `count` things that `make` makes.
fn bytes_each<T>(what: &str, count: u32, make: impl FnOnce() -> T) -> usize {
    let before = bytes_in_use();
    let made = make();
    let each = (bytes_in_use() - before) / usize::try_from(count).expect("a small number");
    drop(made);
    let _ = writeln!(io::stderr(), "{what}: {each} bytes");
    each
}

/// Of all that was allocated, by the ciphers' C code too, which no allocator of ours would see.
fn bytes_in_use() -> usize {
    // SAFETY: it only reads the allocator's own numbers, and gives them by value.
    let info = unsafe { libc::mallinfo2() };
    info.uordblks + info.hblkhd
}
