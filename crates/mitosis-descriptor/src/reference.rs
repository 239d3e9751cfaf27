//! `mitosis://HOST:PORT/SEED#SECRET`: all that a child's node needs.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Bytes of a DNS name (RFC 1035).
const HOST_MAX: usize = 253;

/// Public name of a seed: 64 random bits, shown as 16 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SeedId(pub [u8; 8]);

/// The capability of a seed: 256 random bits. `Debug` does not show it; equality takes the same
/// time whatever differs.
#[derive(Clone, Copy, Eq, Serialize, Deserialize)]
pub struct Secret(pub [u8; 32]);

impl PartialEq for Secret {
    fn eq(&self, other: &Secret) -> bool {
        let differing = self.0.iter().zip(&other.0).fold(0u8, |acc, (a, b)| acc | (a ^ b));
        std::hint::black_box(differing) == 0
    }
}

/// Where a seed is and the right to use it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Reference {
    /// `HOST:PORT` of the node.
    pub address: String,
    /// The seed.
    pub seed: SeedId,
    /// The capability.
    pub secret: Secret,
}

/// Why a text is not a reference. Says nothing of the secret.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("not a reference (want mitosis://HOST:PORT/SEED#SECRET): {0}")]
pub struct ReferenceError(pub &'static str);

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn unhex<const N: usize>(text: &str, what: &'static str) -> Result<[u8; N], ReferenceError> {
    let digits = text.as_bytes();
    if digits.len() != 2 * N || !digits.iter().all(u8::is_ascii_hexdigit) {
        return Err(ReferenceError(what));
    }
    let mut out = [0u8; N];
    for (byte, pair) in out.iter_mut().zip(text.as_bytes().chunks(2)) {
        let pair = std::str::from_utf8(pair).map_err(|_| ReferenceError(what))?;
        *byte = u8::from_str_radix(pair, 16).map_err(|_| ReferenceError(what))?;
    }
    Ok(out)
}

impl fmt::Display for SeedId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}
impl fmt::Debug for SeedId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SeedId({self})")
    }
}
impl FromStr for SeedId {
    type Err = ReferenceError;
    fn from_str(text: &str) -> Result<SeedId, ReferenceError> {
        unhex(text, "the seed is not 16 hexadecimal digits").map(SeedId)
    }
}
impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}
impl Secret {
    /// The digits of the secret: the only way to see it.
    pub fn reveal(&self) -> String {
        hex(&self.0)
    }
}

impl Reference {
    /// The text with the secret in it.
    pub fn reveal(&self) -> String {
        format!("mitosis://{}/{}#{}", self.address, self.seed, self.secret.reveal())
    }
}

/// Whether `text` is `HOST:PORT` with a name, an IPv4 or a bracketed IPv6 address as the host. It
/// comes from other people and is shown and logged, so nothing else may be in it.
fn is_address(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else { return false };
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._".contains(&b);
    let host_ok = match host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
        Some(inner) => inner.parse::<std::net::Ipv6Addr>().is_ok(),
        None => !host.is_empty() && host.len() <= HOST_MAX && host.bytes().all(plain),
    };
    let digits = port.bytes().all(|b| b.is_ascii_digit());
    host_ok && digits && port.parse::<u16>().is_ok_and(|port| port != 0)
}

impl FromStr for Reference {
    type Err = ReferenceError;
    fn from_str(text: &str) -> Result<Reference, ReferenceError> {
        let rest = text.strip_prefix("mitosis://").ok_or(ReferenceError("wrong scheme"))?;
        let (address, rest) = rest.split_once('/').ok_or(ReferenceError("no seed"))?;
        let (seed, secret) = rest.split_once('#').ok_or(ReferenceError("no secret"))?;
        if !is_address(address) {
            return Err(ReferenceError("the address is not HOST:PORT"));
        }
        Ok(Reference {
            address: address.to_owned(),
            seed: seed.parse()?,
            secret: Secret(unhex(secret, "the secret is not 64 hexadecimal digits")?),
        })
    }
}
