//! Which descriptors name which open file descriptions (done while the parent is stopped).

use crate::StateError;
use mitosis_sys::{SysError, kcmp, procfs};
use std::cmp::Ordering;
use std::collections::HashMap;

/// One descriptor of the parent.
#[derive(Clone, Debug)]
pub struct OpenFd {
    /// Number.
    pub number: u32,
    /// Close-on-exec.
    pub cloexec: bool,
}

/// An open file description with all descriptors that name it.
#[derive(Clone, Debug)]
pub struct Group {
    /// Never empty, ascending.
    pub fds: Vec<OpenFd>,
    /// Target of `/proc/PID/fd/N`.
    pub link: String,
    /// `O_*` flags without O_CLOEXEC.
    pub flags: u32,
    /// File offset.
    pub pos: u64,
    /// The rest of `/proc/PID/fdinfo/N`.
    pub info: String,
    /// Another process (as this node sees it) and its number, where the description is named: what
    /// `fds` says is only where the child will have it for a while.
    pub holder: Option<(i32, u32)>,
    /// What is at its other end is in the process's tree.
    pub inside: bool,
}

impl Group {
    /// The lowest descriptor number.
    pub fn first(&self) -> u32 {
        self.fds[0].number
    }
    /// The text after `key:` in fdinfo.
    pub fn info_field(&self, key: &str) -> Option<&str> {
        self.info.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(':')).map(str::trim)
    }
    /// A refusal that names this descriptor.
    pub fn refused(&self, what: impl Into<String>) -> StateError {
        StateError::Refused { fd: self.first(), what: what.into(), hint: "" }
    }
}

const O_CLOEXEC: u32 = 0o2_000_000;

/// Lists the open file descriptions of a process. It must be stopped, else the answer is stale.
///
/// # Errors
/// [`StateError::Sys`].
pub fn scan(pid: i32) -> Result<Vec<Group>, StateError> {
    let table = |source| StateError::Sys { fd: u32::MAX, source };
    let mut groups: Vec<Group> = Vec::new();
    // Those of one name, in the order of the kernel: of thousands that look alike few are compared.
    let mut alike: HashMap<String, Vec<usize>> = HashMap::new();
    for number in procfs::descriptors(pid).map_err(table)? {
        let fd = number as u32;
        let fail = |source| StateError::Sys { fd, source };
        let link = procfs::link(pid, &format!("fd/{number}")).map_err(fail)?;
        let info = procfs::text(pid, &format!("fdinfo/{number}")).map_err(fail)?;
        let bits = number_after(&info, "flags:", 8) as u32;
        let open = OpenFd { number: fd, cloexec: bits & O_CLOEXEC != 0 };
        let alike = alike.entry(link.clone()).or_default();
        let order = |at: usize| kcmp::order((pid, groups[at].first()), (pid, fd));
        match place(alike, order).map_err(fail)? {
            Ok(at) => groups[alike[at]].fds.push(open),
            Err(at) => {
                alike.insert(at, groups.len());
                groups.push(group_of(open, link, info));
            }
        }
    }
    Ok(groups)
}

/// Where the one that is looked for stands among some in order, or is to be put.
///
/// # Errors
/// Of a comparison.
pub(crate) fn place(
    sorted: &[usize],
    order: impl Fn(usize) -> Result<Ordering, SysError>,
) -> Result<Result<usize, usize>, SysError> {
    let (mut low, mut high) = (0, sorted.len());
    while low < high {
        let middle = low.midpoint(high);
        match order(sorted[middle])? {
            Ordering::Equal => return Ok(Ok(middle)),
            Ordering::Less => low = middle + 1,
            Ordering::Greater => high = middle,
        }
    }
    Ok(Err(low))
}

/// The description that a descriptor names, by what `/proc` says of it.
pub(crate) fn group_of(open: OpenFd, link: String, info: String) -> Group {
    let bits = number_after(&info, "flags:", 8) as u32;
    let (flags, pos) = (bits & !O_CLOEXEC, number_after(&info, "pos:", 10));
    Group { fds: vec![open], link, flags, pos, info, holder: None, inside: false }
}

fn number_after(text: &str, key: &str, radix: u32) -> u64 {
    text.lines()
        .find_map(|line| u64::from_str_radix(line.strip_prefix(key)?.trim(), radix).ok())
        .unwrap_or(0)
}

/// A duplicate of the parent's descriptor (pidfd_getfd(2)).
pub(crate) fn duplicate(
    pidfd: std::os::fd::BorrowedFd<'_>,
    fd: u32,
) -> Result<std::os::fd::OwnedFd, StateError> {
    let flags = rustix::process::PidfdGetfdFlags::empty();
    rustix::process::pidfd_getfd(pidfd, fd as i32, flags)
        .map_err(|e| StateError::Sys { fd, source: SysError::io("pidfd_getfd", fd, e) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::process::Command;

    /// Thousands of the same name, each in two places: none is taken for another, and none is missed.
    #[test]
    fn many_descriptions_of_one_name_are_told_apart() {
        let open: Vec<File> = (0..2000).map(|_| File::open("/dev/zero").unwrap()).collect();
        let again: Vec<File> = open.iter().rev().map(|file| file.try_clone().unwrap()).collect();
        for file in open.iter().chain(&again) {
            rustix::io::fcntl_setfd(file, rustix::io::FdFlags::empty()).unwrap();
        }
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        let scanned = scan(child.id() as i32);
        child.kill().unwrap();
        child.wait().unwrap();
        let mut groups = scanned.unwrap();
        groups.retain(|group| group.link == "/dev/zero");
        let number = |file: &File| std::os::fd::AsRawFd::as_raw_fd(file) as u32;
        let mut want: Vec<Vec<u32>> = Vec::new();
        for (file, copy) in open.iter().zip(again.iter().rev()) {
            let mut both = vec![number(file), number(copy)];
            both.sort_unstable();
            want.push(both);
        }
        let mut have: Vec<Vec<u32>> =
            groups.iter().map(|group| group.fds.iter().map(|fd| fd.number).collect()).collect();
        want.sort();
        have.sort();
        assert_eq!(have, want);
    }
}
