//! SAs: ESP packets against published vectors, golden bytes and a second implementation.

#![expect(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

use std::time::Duration;

use aws_lc_rs::aead as aws;
use overlayd::boot_time::BootTime;
use overlayd::drop_reason::DropReason;
use overlayd::id::Spi;
use overlayd::sa::{InboundSa, KeyMaterial, Limits, MAX_TRAILER_LEN, OutboundSa, Suite};
use proptest::prelude::*;

/// RFC 4106 §3 to §5 by hand: this is what any other implementation sends for these inputs.
#[test]
fn sealed_packet_has_the_golden_bytes_of_rfc_4106() {
    let datagram = inner_datagram(9);
    let packet = seal(&mut outbound(Suite::Aes256Gcm), &datagram);

    assert_eq!(hex(&packet[..16]), concat!("deadbe01", "00000001", "0000000000000001"));
    assert_eq!(packet.len(), 16 + 17 + 1 + 2 + 16);
    let (key, salt) = (&KEY[..32], &KEY[32..]);
    let mut body = packet[16..].to_vec();
    let body = open_with_aws(&aws::AES_256_GCM, key, salt, &packet[..16], &mut body);
    assert_eq!(body[..17], datagram);
    assert_eq!(body[17..], [1, 1, 17], "padding 1, padding length, next header");
}

#[test]
fn every_inner_length_is_padded_to_four_bytes_with_one_two_three() {
    for len in 8..40 {
        let packet = seal(&mut outbound(Suite::Aes128Gcm), &inner_datagram(len - 8));
        let mut body = packet[16..].to_vec();
        let body = open_with_aws(&aws::AES_128_GCM, &KEY[..16], &KEY[16..20], &packet[..16], &mut body);
        let pad_len = (6 - len % 4) % 4;
        assert_eq!(body.len() % 4, 0);
        assert_eq!(body[len..len + pad_len], [1, 2, 3][..pad_len]);
        assert_eq!(body[len + pad_len..], [u8::try_from(pad_len).unwrap(), 17]);
    }
}

/// RFC 7634 appendix A. Its next header is IPv4, so the packet is authentic for us and goes no
/// further; one flipped bit and it is not authentic either.
#[test]
fn packet_of_rfc_7634_authenticates_and_is_dropped_for_its_next_header() {
    let key: [u8; 36] = std::array::from_fn(|i| 0x80 + u8::try_from(i).unwrap());
    let packet = data_encoding::HEXLOWER
        .decode(
            concat!(
                "01020304000000051011121314151617",
                "24039428b97f417e3c13753a4f05087b67c352e6a7fab1b982d466ef407ae5c6",
                "14ee8099d52844eb61aa95dfab4c02f72aa71e7c4c4f64c9befe2facc638e8f3",
                "cbec163fac469b502773f6fb94e664da9165b82829f641e0",
                "76aaa8266b7fb0f7b11b369907e1ad43"
            )
            .as_bytes(),
        )
        .unwrap();
    for (flipped, expected) in [(None, DropReason::BadTrailer), (Some(30), DropReason::AuthenticationFailed)]
    {
        let key = KeyMaterial::new(Suite::ChaCha20Poly1305, &key);
        let limits = Limits::standard(Suite::ChaCha20Poly1305);
        let mut sa = InboundSa::new(Spi::new(0x0102_0304).unwrap(), key, limits, START);
        let mut packet = packet.clone();
        if let Some(at) = flipped {
            packet[at] ^= 1;
        }
        assert_eq!(sa.open(START, &mut packet).unwrap_err(), expected);
    }
}

#[test]
fn each_suite_opens_what_it_seals_once_and_no_other_suite_does() {
    for suite in Suite::ALL {
        let datagram = inner_datagram(100);
        let packet = seal(&mut outbound(suite), &datagram);
        for other in Suite::ALL {
            let mut sa = inbound(other);
            let mut copy = packet.clone();
            let opened = sa.open(START, &mut copy).map(|a| a.payload().to_vec());
            if other == suite {
                assert_eq!(opened.unwrap(), datagram);
                assert_eq!(sa.open(START, &mut packet.clone()).unwrap_err(), DropReason::Replayed);
                assert_eq!((sa.packets(), sa.bytes()), (1, packet.len() as u64));
            } else {
                assert_eq!(opened.unwrap_err(), DropReason::AuthenticationFailed);
            }
        }
    }
}

#[test]
fn any_flipped_byte_is_refused_and_does_not_move_the_window() {
    let packet = seal(&mut outbound(Suite::Aes256Gcm), &inner_datagram(20));
    let mut sa = inbound(Suite::Aes256Gcm);
    for at in 0..packet.len() {
        let mut bad = packet.clone();
        bad[at] ^= 0x80;
        assert_eq!(sa.open(START, &mut bad).unwrap_err(), DropReason::AuthenticationFailed, "byte {at}");
    }
    assert_eq!(sa.failed_opens(), packet.len() as u64);
    assert!(sa.open(START, &mut packet.clone()).is_ok(), "a forged sequence number moved the window");
}

#[test]
fn truncated_packets_are_malformed_or_not_authentic_and_never_panic() {
    let packet = seal(&mut outbound(Suite::ChaCha20Poly1305), &inner_datagram(20));
    let mut sa = inbound(Suite::ChaCha20Poly1305);
    for len in 0..packet.len() {
        let expected = if len < 34 { DropReason::MalformedEsp } else { DropReason::AuthenticationFailed };
        assert_eq!(sa.open(START, &mut packet[..len].to_vec()).unwrap_err(), expected, "{len} bytes");
    }
}

#[test]
fn trailers_that_rfc_4303_forbids_are_dropped_by_name_and_dummies_quietly() {
    let datagram = inner_datagram(8);
    let with = |tail: &[u8]| [&datagram[..], tail].concat();
    for (body, expected) in [
        (with(&[1, 2, 2, 17]), Ok(16)),
        (with(&[1, 3, 2, 17]), Err(DropReason::BadTrailer)),
        (with(&[1, 2, 200, 17]), Err(DropReason::BadTrailer)),
        (with(&[1, 2, 2, 4]), Err(DropReason::BadTrailer)),
        (with(&[1, 2, 2, 59]), Err(DropReason::NonEsp)),
        (with(&[0xff; 32].map(|_| 0)), Err(DropReason::BadTrailer)),
        (with(&[0xaa, 0xaa, 0xaa, 0xaa, 1, 2, 2, 17]), Ok(16)),
        (vec![0, 17], Ok(0)),
    ] {
        let mut packet = seal_with_aws(&body);
        let opened = inbound(Suite::Aes256Gcm).open(START, &mut packet).map(|a| a.payload().len());
        assert_eq!(opened, expected, "{body:02x?}");
    }
}

#[test]
fn sequence_goes_from_one_by_one_and_iv_with_it() {
    let mut sa = outbound(Suite::Aes256Gcm);
    for expected in 1..=1000u32 {
        let packet = seal(&mut sa, &inner_datagram(0));
        assert_eq!(packet[4..8], expected.to_be_bytes());
        assert_eq!(packet[8..16], u64::from(expected).to_be_bytes());
    }
    assert_eq!(sa.packets(), 1000);
}

#[test]
fn seal_refuses_at_the_hard_packet_limit_for_ever() {
    let limits = Limits { soft_packets: 3, hard_packets: 5, ..Limits::standard(Suite::Aes256Gcm) };
    let mut sa = OutboundSa::new(spi(), key(Suite::Aes256Gcm), limits, START);
    let mut asked = Vec::new();
    for _ in 0..5 {
        seal(&mut sa, &inner_datagram(10));
        asked.push(sa.wants_rekey());
    }
    assert_eq!(asked, [false, false, true, false, false], "the soft limit is told once");
    for _ in 0..3 {
        assert_eq!(try_seal(&mut sa, START).unwrap_err(), DropReason::SaExhausted);
    }
    assert_eq!(sa.packets(), 5);
}

#[test]
fn seal_refuses_at_the_hard_byte_limit_and_asks_for_a_key_at_half_of_it() {
    let limits = Limits { hard_bytes: 5 * 128, ..Limits::standard(Suite::Aes256Gcm) };
    let mut sa = OutboundSa::new(spi(), key(Suite::Aes256Gcm), limits, START);
    let mut asked = Vec::new();
    for _ in 0..5 {
        assert_eq!(seal(&mut sa, &inner_datagram(86)).len(), 128);
        asked.push(sa.wants_rekey());
    }
    assert_eq!(asked, [false, false, true, false, false]);
    assert_eq!(try_seal(&mut sa, START).unwrap_err(), DropReason::SaExhausted);
}

#[test]
fn seal_refuses_at_the_hard_age_and_open_when_lingering_is_over() {
    let limits = Limits::standard(Suite::Aes256Gcm);
    let mut sa = outbound(Suite::Aes256Gcm);
    assert!(try_seal(&mut sa, START + (limits.hard_age - Duration::from_nanos(1))).is_ok());
    assert_eq!(try_seal(&mut sa, START + limits.hard_age).unwrap_err(), DropReason::SaExpired);

    let packets: Vec<_> = (0..3).map(|_| seal(&mut sa, &inner_datagram(1))).collect();
    let mut sa = inbound(Suite::Aes256Gcm);
    sa.set_expiry(START + limits.linger);
    let last = START + (limits.linger - Duration::from_nanos(1));
    assert!(sa.open(last, &mut packets[0].clone()).is_ok());
    let late = START + limits.linger;
    assert_eq!(sa.open(late, &mut packets[1].clone()).unwrap_err(), DropReason::UnknownSpi);
    sa.set_expiry(BootTime::NEVER);
    assert_eq!(sa.expires_at(), START + limits.hard_age + limits.linger, "expiry was raised");
}

#[test]
fn limits_above_the_standard_are_cut_to_it() {
    let limits = Limits { hard_age: Duration::MAX, ..Limits::standard(Suite::Aes256Gcm) };
    let sa = OutboundSa::new(spi(), key(Suite::Aes256Gcm), limits, START);
    assert_eq!(sa.expires_at(), START + Duration::from_secs(3600));
}

#[test]
fn too_many_failed_opens_ask_for_a_new_key_once() {
    let limits = Limits { failed_opens: 3, ..Limits::standard(Suite::Aes256Gcm) };
    let mut sa = InboundSa::new(spi(), key(Suite::Aes256Gcm), limits, START);
    let mut garbage = seal(&mut outbound(Suite::Aes256Gcm), &inner_datagram(10));
    garbage[20] ^= 1;
    let mut asked = Vec::new();
    for _ in 0..5 {
        assert!(sa.open(START, &mut garbage.clone()).is_err());
        asked.push(sa.wants_rekey());
    }
    assert_eq!(asked, [false, false, true, false, false]);
}

#[test]
fn packet_without_room_is_refused_and_uses_up_no_sequence_number() {
    let mut sa = outbound(Suite::Aes256Gcm);
    let mut short = [0; 16 + 64 + 10];
    assert_eq!(sa.seal(START, &mut short, 64).unwrap_err(), DropReason::FrameTooBig);
    assert_eq!(seal(&mut sa, &inner_datagram(3))[4..8], [0, 0, 0, 1]);
}

#[test]
fn nothing_secret_shows_in_debug_output() {
    for text in
        [format!("{:?}", outbound(Suite::Aes256Gcm)), format!("{:?}", inbound(Suite::ChaCha20Poly1305))]
    {
        assert!(text.contains("[redacted]") && !text.contains("000102"), "{text}");
    }
}

proptest! {
    #[test]
    fn any_datagram_arrives_as_it_was_in_any_order(
        payloads in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..1500), 1..12),
        suite in proptest::sample::select(&Suite::ALL[..]),
    ) {
        let mut sender = outbound(suite);
        let mut receiver = inbound(suite);
        let datagrams: Vec<_> = payloads.iter().map(|payload| udp(payload)).collect();
        let packets: Vec<_> = datagrams.iter().map(|datagram| seal(&mut sender, datagram)).collect();
        for (mut packet, datagram) in packets.into_iter().zip(datagrams).rev() {
            let opened = receiver.open(START, &mut packet).unwrap();
            prop_assert_eq!(opened.into_payload(), &datagram[..]);
        }
    }

    #[test]
    fn hostile_bytes_never_open(mut bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(inbound(Suite::Aes256Gcm).open(START, &mut bytes).is_err());
    }
}

const START: BootTime = BootTime::from_nanos(1_000_000_000);

const KEY: [u8; 36] = {
    let mut key = [0; 36];
    let mut i = 0u8;
    while i < 36 {
        key[i as usize] = i;
        i += 1;
    }
    key
};

fn key(suite: Suite) -> KeyMaterial {
    KeyMaterial::new(suite, &KEY)
}

fn spi() -> Spi {
    Spi::new(0xdead_be01).unwrap()
}

fn outbound(suite: Suite) -> Box<OutboundSa> {
    OutboundSa::new(spi(), key(suite), Limits::standard(suite), START)
}

fn inbound(suite: Suite) -> Box<InboundSa> {
    InboundSa::new(spi(), key(suite), Limits::standard(suite), START)
}

fn seal(sa: &mut OutboundSa, datagram: &[u8]) -> Vec<u8> {
    let mut packet = vec![0; 16 + datagram.len() + MAX_TRAILER_LEN];
    packet[16..][..datagram.len()].copy_from_slice(datagram);
    let sealed = sa.seal(START, &mut packet, datagram.len()).unwrap();
    packet.truncate(sealed.len());
    packet
}

fn try_seal(sa: &mut OutboundSa, now: BootTime) -> Result<usize, DropReason> {
    sa.seal(now, &mut [0; 200], 86).map(|sealed| sealed.len())
}

fn inner_datagram(payload_len: usize) -> Vec<u8> {
    udp(&vec![0x5a; payload_len])
}

fn udp(payload: &[u8]) -> Vec<u8> {
    let len = u16::try_from(payload.len() + 8).unwrap().to_be_bytes();
    [&[0xc0, 0x01, 0x12, 0xb5, len[0], len[1], 0, 0], payload].concat()
}

fn open_with_aws<'b>(
    algorithm: &'static aws::Algorithm,
    key: &[u8],
    salt: &[u8],
    header: &[u8],
    body: &'b mut [u8],
) -> &'b [u8] {
    let key = aws::LessSafeKey::new(aws::UnboundKey::new(algorithm, key).unwrap());
    let nonce = aws::Nonce::try_assume_unique_for_key(&[salt, &header[8..]].concat()).unwrap();
    key.open_in_place(nonce, aws::Aad::from(&header[..8]), body).unwrap()
}

fn seal_with_aws(body: &[u8]) -> Vec<u8> {
    let header = data_encoding::HEXLOWER.decode(b"deadbe01000000010000000000000001").unwrap();
    let key = aws::LessSafeKey::new(aws::UnboundKey::new(&aws::AES_256_GCM, &KEY[..32]).unwrap());
    let nonce = aws::Nonce::try_assume_unique_for_key(&[&KEY[32..], &header[8..]].concat()).unwrap();
    let mut body = body.to_vec();
    key.seal_in_place_append_tag(nonce, aws::Aad::from(&header[..8]), &mut body).unwrap();
    [header, body].concat()
}

fn hex(bytes: &[u8]) -> String {
    data_encoding::HEXLOWER.encode(bytes)
}
