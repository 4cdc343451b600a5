//! An IPv4 network of machines: the bridge has its first address, machines the others.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

/// The shortest prefix; a larger network would only be a mistake.
const PREFIX_MINIMUM: u8 = 8;
/// The longest prefix: the bridge and five machines.
const PREFIX_MAXIMUM: u8 = 29;

/// An IPv4 network, such as `10.209.0.0/20`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Subnet {
    network: Ipv4Addr,
    prefix: u8,
}

/// Why a text is no network of machines. For people; it fits "the subnet …".
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SubnetError {
    /// It is written in another way.
    #[error("{0:?} is not written like \"10.209.0.0/20\"")]
    Form(String),
    /// Its size.
    #[error("{text:?} has a prefix of {prefix}: from {PREFIX_MINIMUM} to {PREFIX_MAXIMUM} is possible")]
    Prefix {
        /// As given.
        text: String,
        /// Its prefix.
        prefix: u8,
    },
    /// Bits are set below the prefix.
    #[error("{text:?} is an address and not a network: the network is {network}")]
    HostBits {
        /// As given.
        text: String,
        /// The network it is in.
        network: Subnet,
    },
    /// Machines cannot have such addresses.
    #[error("{0:?} is not made of addresses that a machine may have")]
    Special(String),
}

impl Subnet {
    /// What a daemon uses that is told nothing.
    pub const DEFAULT: Self = Self {
        network: Ipv4Addr::new(10, 209, 0, 0),
        prefix: 20,
    };

    /// Its network address.
    pub fn network(self) -> Ipv4Addr {
        self.network
    }

    /// Bits that are the network's.
    pub fn prefix(self) -> u8 {
        self.prefix
    }

    /// The bridge's.
    pub fn gateway(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.network.to_bits() + 1)
    }

    /// The first that a machine may have.
    pub(crate) fn first(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.network.to_bits() + 2)
    }

    /// The last that a machine may have: the one after it is everybody's (RFC 919).
    pub(crate) fn last(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.network.to_bits() | (self.host_mask() - 1))
    }

    /// How many machines fit.
    pub fn capacity(self) -> u32 {
        self.host_mask() - 2
    }

    /// Whether an address is in it.
    pub fn contains(self, address: Ipv4Addr) -> bool {
        address.to_bits() & !self.host_mask() == self.network.to_bits()
    }

    /// Whether a machine may have that address.
    pub(crate) fn is_machines(self, address: Ipv4Addr) -> bool {
        (self.first()..=self.last()).contains(&address)
    }

    /// Whether it has addresses in common with the network that this address and prefix are of.
    pub(crate) fn overlaps(self, address: Ipv4Addr, prefix: u8) -> bool {
        let shorter = self.prefix.min(prefix);
        let mask = u32::MAX.checked_shl(32 - u32::from(shorter)).unwrap_or(0);
        (self.network.to_bits() ^ address.to_bits()) & mask == 0
    }

    fn host_mask(self) -> u32 {
        u32::MAX >> self.prefix
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.prefix)
    }
}

impl FromStr for Subnet {
    type Err = SubnetError;

    fn from_str(text: &str) -> Result<Self, SubnetError> {
        let form = || SubnetError::Form(text.chars().take(80).collect());
        let (address, prefix) = text.split_once('/').ok_or_else(form)?;
        let address: Ipv4Addr = address.parse().map_err(|_| form())?;
        let digits = !prefix.is_empty() && prefix.bytes().all(|b| b.is_ascii_digit());
        let prefix: u8 = prefix.parse().ok().filter(|_| digits).ok_or_else(form)?;
        if !(PREFIX_MINIMUM..=PREFIX_MAXIMUM).contains(&prefix) {
            return Err(SubnetError::Prefix {
                text: text.to_owned(),
                prefix,
            });
        }
        let mask = u32::MAX >> prefix;
        let network = Self {
            network: Ipv4Addr::from_bits(address.to_bits() & !mask),
            prefix,
        };
        if network.network != address {
            return Err(SubnetError::HostBits {
                text: text.to_owned(),
                network,
            });
        }
        // 0/8 "this network", 127/8 loopback, 224/3 multicast and reserved (RFC 6890).
        let first = address.octets()[0];
        if first == 0 || first == 127 || first >= 224 {
            return Err(SubnetError::Special(text.to_owned()));
        }
        Ok(network)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bridge_is_first_and_machines_are_the_rest() {
        let subnet: Subnet = "10.209.0.0/20".parse().unwrap();
        assert_eq!(subnet, Subnet::DEFAULT);
        assert_eq!(subnet.to_string(), "10.209.0.0/20");
        assert_eq!(subnet.gateway(), Ipv4Addr::new(10, 209, 0, 1));
        assert_eq!(subnet.first(), Ipv4Addr::new(10, 209, 0, 2));
        assert_eq!(subnet.last(), Ipv4Addr::new(10, 209, 15, 254));
        assert_eq!(subnet.capacity(), 4093);
        let small: Subnet = "192.168.7.8/29".parse().unwrap();
        assert_eq!((small.last().octets()[3], small.capacity()), (14, 5));
        assert!(small.is_machines(small.last()) && !small.is_machines(small.gateway()));
        assert!(
            small.contains(Ipv4Addr::new(192, 168, 7, 15))
                && !small.is_machines(Ipv4Addr::new(192, 168, 7, 15))
        );
    }

    #[test]
    fn networks_overlap_where_one_is_in_the_other() {
        let subnet = Subnet::DEFAULT;
        for (address, prefix, expected) in [
            ([10, 209, 3, 7], 32, true),
            ([10, 0, 0, 0], 8, true),
            ([10, 209, 16, 0], 20, false),
            ([0, 0, 0, 0], 0, true),
            ([192, 168, 0, 0], 16, false),
        ] {
            assert_eq!(
                subnet.overlaps(address.into(), prefix),
                expected,
                "{address:?}/{prefix}"
            );
        }
    }

    #[test]
    fn what_is_no_network_of_machines_is_refused() {
        for text in [
            "",
            "10.209.0.0",
            "10.209.0.0/",
            "10.209.0.0/+8",
            "10.209.0.0/x",
            "10.209.0.0/300",
            "10.209.0/20",
            "fd00::/64",
            "10.209.0.0/7",
            "10.209.0.0/30",
            "10.209.0.1/20",
            "127.0.0.0/8",
            "0.0.0.0/8",
            "224.0.0.0/8",
            "255.0.0.0/8",
        ] {
            assert!(text.parse::<Subnet>().is_err(), "{text:?}");
        }
        let error = "10.209.0.9/20".parse::<Subnet>().unwrap_err().to_string();
        assert!(error.ends_with("the network is 10.209.0.0/20"), "{error}");
    }
}
