//! Which networks an operator trusts with RDMA, which neither encrypts nor authenticates.

use std::net::{IpAddr, ToSocketAddrs};
use std::str::FromStr;

/// Networks, as `ADDRESS/BITS,...`; none: all are trusted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Networks(Vec<(IpAddr, u32)>);

/// An address as bits, the first one of them in the highest place, and how many there are.
fn bits(address: IpAddr) -> (u128, u32) {
    match address {
        IpAddr::V4(v4) => (u128::from(u32::from(v4)) << 96, 32),
        IpAddr::V6(v6) => (u128::from(v6), 128),
    }
}

impl Networks {
    /// Whether a peer's address is in one of them.
    ///
    /// # Errors
    /// That it is not, for people.
    pub fn trust(&self, peer: IpAddr) -> Result<(), String> {
        let peer = peer.to_canonical();
        let (address, length) = bits(peer);
        let inside = |&(network, prefix): &(IpAddr, u32)| {
            let (network, its) = bits(network);
            its == length && (network ^ address).leading_zeros() >= prefix
        };
        if self.0.is_empty() || self.0.iter().any(inside) {
            return Ok(());
        }
        Err(format!("{peer} is in none of the networks that --rdma-networks names"))
    }

    /// As [`Networks::trust`], for `HOST:PORT`; all addresses that a name has are to be trusted.
    ///
    /// # Errors
    /// As there, or why the name leads nowhere.
    pub fn trust_node(&self, node: &str) -> Result<(), String> {
        if self.0.is_empty() {
            return Ok(());
        }
        let found = node.to_socket_addrs().map_err(|e| format!("{node}: {e}"))?;
        found.into_iter().try_for_each(|one| self.trust(one.ip()))
    }
}

impl FromStr for Networks {
    type Err = String;
    fn from_str(text: &str) -> Result<Networks, String> {
        let one = |word: &str| {
            let wrong = || format!("{word:?} is not ADDRESS/BITS");
            let (address, prefix) = word.trim().split_once('/').ok_or_else(wrong)?;
            let address: IpAddr = address.parse().map_err(|_| wrong())?;
            let prefix: u32 = prefix.parse().map_err(|_| wrong())?;
            if prefix > bits(address).1 {
                return Err(wrong());
            }
            Ok((address, prefix))
        };
        text.split(',').map(one).collect::<Result<_, _>>().map(Networks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trusts(networks: &str, peer: &str) -> bool {
        networks.parse::<Networks>().unwrap().trust(peer.parse().unwrap()).is_ok()
    }

    #[test]
    fn addresses_are_in_networks_by_their_first_bits() {
        assert!(trusts("10.77.0.0/16", "10.77.3.4"));
        assert!(!trusts("10.77.0.0/16", "10.78.3.4"));
        assert!(trusts("10.78.0.0/16, 10.77.0.3/32", "10.77.0.3"));
        assert!(!trusts("10.77.0.3/32", "10.77.0.2"));
        // As a socket of both versions tells it.
        assert!(trusts("10.77.0.0/16", "::ffff:10.77.3.4"));
        assert!(!trusts("10.77.0.0/16", "fd00::1"));
        assert!(trusts("fd00::/8,10.0.0.0/8", "fd12::1"));
        assert!(!trusts("::/0", "10.0.0.1"));
        assert!(trusts("0.0.0.0/0", "10.0.0.1"));
        assert!(!trusts("127.0.0.1/32", "128.0.0.1"));
    }

    #[test]
    fn without_any_all_are_trusted() {
        assert_eq!(Networks::default().trust("1.2.3.4".parse().unwrap()), Ok(()));
        assert_eq!(Networks::default().trust_node("nobody knows"), Ok(()));
        let networks: Networks = "127.0.0.0/8".parse().unwrap();
        assert_eq!(networks.trust_node("127.0.0.9:7001"), Ok(()));
        assert!(networks.trust_node("10.0.0.9:7001").unwrap_err().contains("--rdma-networks"));
        assert!(networks.trust_node("127.0.0.9").is_err());
    }

    #[test]
    fn what_is_no_network_is_refused() {
        for text in
            ["", "10.0.0.0", "10.0.0.0/33", "fd00::/129", "10.0.0.0/8,", "host/8", "1.2.3.4/-1"]
        {
            assert!(text.parse::<Networks>().is_err(), "{text}");
        }
    }
}
