//! Which features of an interface are on, by ethtool(8)'s ioctl (linux/ethtool.h).

#![expect(unsafe_code, reason = "SIOCETHTOOL has no safe wrapper")]

use std::collections::BTreeSet;
use std::io;
use std::os::fd::AsRawFd;

use rustix::net::{AddressFamily, SocketType};

use crate::id::IfName;

/// The names of the features of an interface that are on, as `ethtool -k` has them in its kernel's
/// words (`tx-tcp-segmentation`), in the namespace of the calling thread.
///
/// # Errors
/// What the kernel says; `ENODEV` when there is no such interface.
pub fn active_features(name: &IfName) -> io::Result<BTreeSet<String>> {
    // cmd, reserved, a mask of 64 bits, then the number.
    let mut count = [ETHTOOL_GSSET_INFO, 0, 0, 0, 0];
    count[2..4].copy_from_slice(&words(1 << ETH_SS_FEATURES));
    ask(name, &mut count)?;
    let count = usize::try_from(count[4]).unwrap_or_default();

    let mut names = vec![0; 3 + count * NAME_WORDS];
    names[..2].copy_from_slice(&[ETHTOOL_GSTRINGS, ETH_SS_FEATURES]);
    names[2] = u32::try_from(count).unwrap_or_default();
    ask(name, &mut names)?;

    let blocks = count.div_ceil(32);
    let mut features = vec![0; 2 + blocks * BLOCK_WORDS];
    features[..2].copy_from_slice(&[ETHTOOL_GFEATURES, u32::try_from(blocks).unwrap_or_default()]);
    ask(name, &mut features)?;

    let is_active = |index: usize| features[2 + index / 32 * BLOCK_WORDS + ACTIVE] >> (index % 32) & 1 == 1;
    let names = names[3..].chunks_exact(NAME_WORDS).take(count).map(text);
    Ok(names.enumerate().filter(|(index, _)| is_active(*index)).map(|(_, name)| name).collect())
}

fn ask(name: &IfName, request: &mut [u32]) -> io::Result<()> {
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None)?;
    // SAFETY: an all-zero ifreq is valid: it is plain integers, bytes and a union of the like.
    let mut interface: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in interface.ifr_name.iter_mut().zip(name.as_str().bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    interface.ifr_ifru.ifru_data = request.as_mut_ptr().cast();
    // SAFETY: SIOCETHTOOL reads the ifreq and then reads and writes through `ifru_data` what the
    // command in its first word describes. One word is room for the one set that the mask names; the
    // names are as many as the kernel has just said, which it never changes; of the features it writes
    // no more blocks than the second word says (net/ethtool/ioctl.c).
    let status = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, &raw mut interface) };
    if status < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn words(number: u64) -> [u32; 2] {
    let bytes = number.to_ne_bytes();
    let word = |at: usize| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    [word(0), word(4)]
}

fn text(words: &[u32]) -> String {
    let bytes: Vec<u8> =
        words.iter().flat_map(|word| word.to_ne_bytes()).take_while(|byte| *byte != 0).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Of linux/sockios.h.
const SIOCETHTOOL: libc::Ioctl = 0x8946;
const ETHTOOL_GSTRINGS: u32 = 0x1b;
const ETHTOOL_GSSET_INFO: u32 = 0x37;
const ETHTOOL_GFEATURES: u32 = 0x3a;
const ETH_SS_FEATURES: u32 = 4;
/// `ETH_GSTRING_LEN` is 32 bytes.
const NAME_WORDS: usize = 8;
/// Of a `struct ethtool_get_features_block`, whose third word is `active`.
const BLOCK_WORDS: usize = 4;
const ACTIVE: usize = 2;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_has_features_and_what_is_not_there_has_none() {
        let features = active_features(&"lo".parse().expect("a name")).expect("it is there");
        assert!(features.contains("loopback") || features.contains("tx-scatter-gather"), "{features:?}");
        let missing = active_features(&"no-such-if".parse().expect("a name")).expect_err("it is not there");
        assert_eq!(missing.raw_os_error(), Some(libc::ENODEV));
    }
}
