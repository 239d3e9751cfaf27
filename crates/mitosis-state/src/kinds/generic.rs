//! Groups of generic netlink (Documentation/userspace-api/netlink/intro.rst): they get their numbers as
//! families are loaded, so they are carried by name.

use rustix::net::netlink::{GENERIC, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

/// A group of this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedGroup {
    /// Name of its family.
    pub family: String,
    /// Its own.
    pub name: String,
    /// Its number here.
    pub number: u32,
}

/// `GENL_ID_CTRL`, the type of the family of families' messages.
const CONTROL: u16 = 16;
const GET_FAMILY: u8 = 3;
const CONTROL_VERSION: u8 = 2;
/// NLM_F_REQUEST and NLM_F_DUMP.
const REQUEST_DUMP: u16 = 0x301;
/// `CTRL_ATTR_FAMILY_NAME`, `CTRL_ATTR_MCAST_GROUPS`; in a group its name and its number.
const FAMILY_NAME: u16 = 2;
const GROUPS: u16 = 7;
const GROUP_NAME: u16 = 1;
const GROUP_NUMBER: u16 = 2;
/// Messages of one dump are larger only with families of thousands of groups.
const REPLY_BYTES: usize = 64 << 10;
/// More replies than any machine has families.
const REPLIES_MAX: usize = 4096;

/// All that this machine has. A family that is loaded afterwards is not among them.
///
/// # Errors
/// socket(2), recvmsg(2).
pub fn groups() -> Result<Vec<NamedGroup>, rustix::io::Errno> {
    let (family, kind) = (AddressFamily::NETLINK, SocketType::RAW);
    let socket = rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC, Some(GENERIC))?;
    let mut request = Vec::with_capacity(20);
    request.extend(20u32.to_ne_bytes());
    request.extend(CONTROL.to_ne_bytes());
    request.extend(REQUEST_DUMP.to_ne_bytes());
    request.extend([0; 8]);
    request.extend([GET_FAMILY, CONTROL_VERSION, 0, 0]);
    let kernel = SocketAddrNetlink::new(0, 0);
    rustix::net::sendto(&socket, &request, SendFlags::empty(), &kernel)?;
    let (mut all, mut reply) = (Vec::new(), vec![0u8; REPLY_BYTES]);
    for _ in 0..REPLIES_MAX {
        let (got, _) = rustix::net::recv(&socket, &mut reply[..], RecvFlags::empty())?;
        if !read(&reply[..got], &mut all) {
            break;
        }
    }
    Ok(all)
}

fn half(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..at + 2).map_or(0, |b| u16::from_ne_bytes([b[0], b[1]]))
}

/// The messages of a reply; whether more will come.
fn read(reply: &[u8], all: &mut Vec<NamedGroup>) -> bool {
    let mut rest = reply;
    while rest.len() >= 16 {
        let len = u32::from_ne_bytes([rest[0], rest[1], rest[2], rest[3]]) as usize;
        if half(rest, 4) != CONTROL || len < 20 || len > rest.len() {
            return false; // The end (NLMSG_DONE), or an error.
        }
        family(&rest[20..len], all);
        rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    true
}

/// Attributes one after the other: length, type, value.
fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    const TYPE: u16 = 0x3fff;
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let len = usize::from(half(rest, 0));
        if len < 4 || len > rest.len() {
            return None;
        }
        let found = (half(rest, 2) & TYPE, &rest[4..len]);
        rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some(found)
    })
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim_end_matches('\0').to_owned()
}

fn family(bytes: &[u8], all: &mut Vec<NamedGroup>) {
    let find = |wanted: u16| attributes(bytes).find(|(kind, _)| *kind == wanted);
    let (Some((_, family)), Some((_, groups))) = (find(FAMILY_NAME), find(GROUPS)) else { return };
    for (_, group) in attributes(groups) {
        let find = |wanted: u16| attributes(group).find(|(kind, _)| *kind == wanted);
        if let (Some((_, name)), Some((_, [a, b, c, d]))) = (find(GROUP_NAME), find(GROUP_NUMBER)) {
            let number = u32::from_ne_bytes([*a, *b, *c, *d]);
            all.push(NamedGroup { family: text(family), name: text(name), number });
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_family_of_families_has_its_group() {
        let all = super::groups().expect("generic netlink");
        let group = all.iter().find(|group| group.family == "nlctrl").expect("nlctrl");
        assert_eq!((group.name.as_str(), group.number), ("notify", 16));
    }

    #[test]
    fn what_is_cut_short_is_no_group() {
        let mut all = Vec::new();
        assert!(!super::read(&[20, 0, 0, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1], &mut all));
        assert!(super::read(&[], &mut all) && all.is_empty());
    }
}
