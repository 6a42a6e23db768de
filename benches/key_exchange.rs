//! Keys: X25519, and HKDF from one exchange to the keys of its SAs.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use overlayd::id::{LaneId, NetworkId, NodeId, Spi, Vni};
use overlayd::sa::Suite;
use overlayd::sa::key_schedule::{Direction, KeySchedule, KeyShare, Parties, SaName, Transcript};
use rand::SeedableRng;
use rand::rngs::StdRng;

/// What one end of a link computes once a quarter of an hour.
fn exchange(c: &mut Criterion) {
    let mut group = c.benchmark_group("key_exchange");
    group.throughput(Throughput::Elements(1));
    let mut rng = StdRng::seed_from_u64(1);
    let peer = *KeyShare::generate(&mut rng).public();
    group.bench_function("x25519", |b| b.iter(|| schedule(&mut rng, &peer)));
    let schedule = schedule(&mut rng, &peer);
    let parties = Parties {
        initiator: NodeId::from_entropy([1; 16]),
        responder: NodeId::from_entropy([2; 16]),
        network: NetworkId::from_entropy([3; 16]),
        vni: Vni::new(7).expect("in range"),
    };
    let sa = SaName {
        direction: Direction::FromInitiator,
        lane: LaneId::try_from(0).expect("in range"),
        spi: Spi::new(0x1000).expect("not reserved"),
    };
    group.bench_function("key_of_an_sa", |b| b.iter(|| schedule.key(Suite::Aes256Gcm, &parties, &sa)));
    group.finish();
}

fn schedule(rng: &mut StdRng, peer: &[u8; 32]) -> KeySchedule {
    let shared = KeyShare::generate(rng).agree(peer).expect("a contributory point");
    shared.bind(Transcript::of(b"offer", b"answer"), |transcript| *transcript)
}

criterion_group!(benches, exchange);
criterion_main!(benches);
