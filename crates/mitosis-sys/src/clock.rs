//! Clocks that count from the start of a machine, and time namespaces, which shift them for the
//! processes inside (time_namespaces(7)).

use crate::SysError;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// What `CLOCK_MONOTONIC` and `CLOCK_BOOTTIME` show, or by how much they are shifted; in
/// nanoseconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Clocks {
    /// `CLOCK_MONOTONIC`.
    pub monotonic: i64,
    /// `CLOCK_BOOTTIME`.
    pub boottime: i64,
}

impl Clocks {
    /// What the calling process reads now.
    pub fn now() -> Clocks {
        let read = |clock| {
            let now = rustix::time::clock_gettime(clock);
            now.tv_sec * NANOS + now.tv_nsec
        };
        let monotonic = read(rustix::time::ClockId::Monotonic);
        Clocks { monotonic, boottime: read(rustix::time::ClockId::Boottime) }
    }

    /// Both, by a function of two; saturating sums and differences are what it is used for.
    pub fn with(self, other: Clocks, join: impl Fn(i64, i64) -> i64) -> Clocks {
        Clocks {
            monotonic: join(self.monotonic, other.monotonic),
            boottime: join(self.boottime, other.boottime),
        }
    }
}

const NANOS: i64 = 1_000_000_000;

/// By how much the clocks of process `pid` are shifted against those of the machine; zero on a
/// kernel without time namespaces.
///
/// # Errors
/// The process is gone; or its children are to live in another time namespace than it does itself
/// (`unshare(CLONE_NEWTIME)`), and then the kernel tells only theirs.
pub fn shift_of(pid: i32) -> Result<Clocks, SysError> {
    let path = format!("/proc/{pid}/timens_offsets");
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            return Ok(Clocks::default());
        }
        Err(e) => return Err(SysError::io("read", path, e)),
    };
    let link = |name: &str| std::fs::read_link(format!("/proc/{pid}/ns/{name}")).ok();
    if link("time") != link("time_for_children") {
        let what = "its children would live in another time namespace than it does itself";
        return Err(SysError::Unexpected(what.into()));
    }
    parse(&text).ok_or_else(|| SysError::Unexpected(format!("{path}: {}", text.trim())))
}

/// Lines `monotonic SECONDS NANOSECONDS` and `boottime ...`; before Linux 5.8 numbers for names.
fn parse(text: &str) -> Option<Clocks> {
    let mut clocks = Clocks::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let name = words.next()?;
        let mut number = || words.next()?.parse::<i64>().ok();
        let nanos = number()?.checked_mul(NANOS)?.checked_add(number()?)?;
        match name {
            "monotonic" | "1" => clocks.monotonic = nanos,
            "boottime" | "7" => clocks.boottime = nanos,
            _ => return None,
        }
    }
    Some(clocks)
}

/// A time namespace that processes can be moved to by `setns(fd, CLONE_NEWTIME)`.
#[derive(Debug)]
pub struct TimeNamespace(OwnedFd);

impl TimeNamespace {
    /// Makes one whose clocks are shifted so against those of the machine (not of the caller).
    ///
    /// # Errors
    /// EINVAL: the kernel has none (`CONFIG_TIME_NS`); EPERM: no `CAP_SYS_ADMIN`, or no
    /// `CAP_SYS_TIME`; ERANGE: a clock would be below zero or above 146 years.
    pub fn new(shift: Clocks) -> Result<TimeNamespace, SysError> {
        // The new namespace is that of future children of one thread only, which then ends.
        let made = std::thread::scope(|scope| {
            let maker = std::thread::Builder::new().name("time-ns".into());
            maker.spawn_scoped(scope, || make(shift)).map(std::thread::ScopedJoinHandle::join)
        });
        match made {
            Ok(Ok(fd)) => fd.map(TimeNamespace),
            Ok(Err(_)) => Err(SysError::io("thread", "time namespace", std::io::ErrorKind::Other)),
            Err(e) => Err(SysError::io("thread", "time namespace", e)),
        }
    }
}

impl AsFd for TimeNamespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn make(shift: Clocks) -> Result<OwnedFd, SysError> {
    // SAFETY: CLONE_NEWTIME concerns the future children of the calling thread and nothing else.
    if unsafe { libc::unshare(CLONE_NEWTIME) } < 0 {
        return Err(SysError::last("unshare(CLONE_NEWTIME)", "time namespace"));
    }
    let tid = rustix::thread::gettid().as_raw_nonzero();
    let line = |clock: u32, nanos: i64| {
        format!("{clock} {} {}\n", nanos.div_euclid(NANOS), nanos.rem_euclid(NANOS))
    };
    // CLOCK_MONOTONIC and CLOCK_BOOTTIME, by number: the names came later.
    let text = line(1, shift.monotonic) + &line(7, shift.boottime);
    let path = format!("/proc/{tid}/timens_offsets");
    std::fs::write(&path, text).map_err(|e| SysError::io("write", path, e))?;
    let path = format!("/proc/{tid}/ns/time_for_children");
    let file = std::fs::File::open(&path).map_err(|e| SysError::io("open", path, e))?;
    Ok(file.into())
}

const CLONE_NEWTIME: libc::c_int = 0x80;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_text_is_understood() {
        let clocks = parse("monotonic       -1 500000000\nboottime  2         0\n");
        assert_eq!(clocks, Some(Clocks { monotonic: -NANOS / 2, boottime: 2 * NANOS }));
        assert_eq!(parse("realtime 0 0\n"), None);
        assert_eq!(parse("monotonic 9223372036854775807 0\n"), None);
    }

    /// Needs root. A process that joins it reads the shifted clock; the caller does not.
    #[test]
    fn clocks_are_shifted_for_whoever_joins() {
        let before = Clocks::now();
        let shift = Clocks { monotonic: 5000 * NANOS + 7, boottime: 9000 * NANOS };
        let own = shift_of(std::process::id() as i32).expect("own shift");
        let namespace = TimeNamespace::new(shift.with(own, |a, b| a + b)).expect("a namespace");
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&namespace.0));
        let mut nsenter = std::process::Command::new("nsenter");
        nsenter.arg(format!("--time={path}")).args(["cat", "/proc/self/timens_offsets"]);
        // nsenter opens the path itself: the descriptor must live in it.
        rustix::io::fcntl_setfd(&namespace.0, rustix::io::FdFlags::empty()).expect("inherit");
        let said = nsenter.output().expect("nsenter");
        let said = parse(&String::from_utf8_lossy(&said.stdout));
        assert_eq!(said, Some(shift.with(own, |a, b| a + b)));
        assert!(Clocks::now().monotonic - before.monotonic < 1000 * NANOS);
    }
}
