//! Sealing and opening one ESP packet, by suite and size of the inner datagram.

use chacha20poly1305::{AeadInOut, ChaCha20Poly1305, KeyInit};
use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use overlayd::boot_time::BootTime;
use overlayd::id::Spi;
use overlayd::sa::{HEADER_LEN, InboundSa, KeyMaterial, Limits, MAX_TRAILER_LEN, OutboundSa, Suite};

fn seal(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("seal");
    for suite in Suite::ALL {
        for size in SIZES {
            let (mut sender, mut packet) = (outbound(suite), packet(size));
            group.throughput(Throughput::ElementsAndBytes { elements: 1, bytes: size as u64 });
            group.bench_function(BenchmarkId::new(suite.name(), size), |bencher| {
                bencher.iter(|| match sender.seal(NOW, &mut packet, size) {
                    Ok(sealed) => sealed.len(),
                    // The byte limit of an SA is less than a long run of the benchmark.
                    Err(_) => {
                        sender = outbound(suite);
                        0
                    }
                });
            });
        }
    }
}

/// What RustCrypto's cipher costs on the same bytes: the reason for the one that the SAs use.
fn seal_by_rustcrypto(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("seal");
    let cipher = ChaCha20Poly1305::new_from_slice(&[7; 32]).expect("32 bytes");
    for size in SIZES {
        let mut body = vec![0x5a; size];
        group.throughput(Throughput::ElementsAndBytes { elements: 1, bytes: size as u64 });
        group.bench_function(BenchmarkId::new("chacha20-poly1305 by RustCrypto", size), |bencher| {
            bencher.iter(|| {
                let sealed =
                    cipher.encrypt_inout_detached(&[1; 12].into(), &[2; 8], body.as_mut_slice().into());
                sealed.expect("within the cipher's limit")
            });
        });
    }
}

/// Each sample opens packets that the SA has not seen, in order; the copy into place is not timed.
fn open(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("open");
    for suite in Suite::ALL {
        for size in SIZES {
            let (mut sender, mut receiver) = (outbound(suite), inbound(suite));
            group.throughput(Throughput::ElementsAndBytes { elements: 1, bytes: size as u64 });
            group.bench_function(BenchmarkId::new(suite.name(), size), |bencher| {
                bencher.iter_batched_ref(
                    || {
                        let mut packet = packet(size);
                        let sealed = sender.seal(NOW, &mut packet, size).expect("below the limits");
                        packet.truncate(sealed.len());
                        packet
                    },
                    |packet| receiver.open(NOW, packet).expect("authentic").payload().len(),
                    BatchSize::SmallInput,
                );
            });
        }
    }
}

fn packet(size: usize) -> Vec<u8> {
    let mut packet = vec![0x5a; HEADER_LEN + size + MAX_TRAILER_LEN];
    let udp_len = u16::try_from(size).expect("a UDP datagram").to_be_bytes();
    packet[HEADER_LEN + 4..HEADER_LEN + 6].copy_from_slice(&udp_len);
    packet
}

fn outbound(suite: Suite) -> Box<OutboundSa> {
    OutboundSa::new(spi(), KeyMaterial::new(suite, &[7; 36]), Limits::standard(suite), NOW)
}

fn inbound(suite: Suite) -> Box<InboundSa> {
    InboundSa::new(spi(), KeyMaterial::new(suite, &[7; 36]), Limits::standard(suite), NOW)
}

fn spi() -> Spi {
    Spi::new(0x1000).expect("not reserved")
}

const NOW: BootTime = BootTime::from_nanos(1);
const SIZES: [usize; 4] = [64, 512, 1400, 8900];

criterion_group!(benches, seal, seal_by_rustcrypto, open);
criterion_main!(benches);
