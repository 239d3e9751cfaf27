//! timerfd_create(2): clock, time left, interval, and expirations that nobody has read.
//!
//! What was left at the moment of `prepare` is left at the moment of the fork: the seed's time
//! stands still. A timer that was set to a date keeps the date, on any clock; where the child's
//! monotonic clocks are not its parent's, a date on these is what was left, too.

use super::{Capture, Files, Kind, NONBLOCK, decode, encode};
use crate::program::Detail;
use crate::{Group, StateError};
use mitosis_descriptor::{Clocks, OpenFile};
use rustix::time::ClockId;
use serde::{Deserialize, Serialize};

/// The kind.
pub const KIND: Kind = Kind { number: 8, name: "timerfd", capture, plan, describe };

#[derive(Serialize, Deserialize)]
struct Body {
    clock: u32,
    ticks: u64,
    /// TFD_TIMER_ABSTIME and TFD_TIMER_CANCEL_ON_SET, where `value` is a date.
    set_flags: u64,
    /// Seconds and nanoseconds until the next expiry, or its date; zero for none.
    value: (u64, u64),
    interval: (u64, u64),
    /// The date, in nanoseconds on the clock of the parent's node, of a timer that was set to one
    /// on a clock that counts from the start of a machine.
    date: Option<i64>,
}

/// CLOCK_MONOTONIC, CLOCK_BOOTTIME, CLOCK_BOOTTIME_ALARM: a date on these is the process's own.
const COUNTS: [u32; 3] = [1, 7, 9];
/// CLOCK_REALTIME and CLOCK_REALTIME_ALARM: the clocks on which a date means the same everywhere.
const DATES: [u32; 2] = [0, 8];
const NANOS: u64 = 1_000_000_000;

fn capture(_: &Capture<'_>, group: &Group) -> Result<Option<Vec<u8>>, StateError> {
    if group.link != "anon_inode:[timerfd]" {
        return Ok(None);
    }
    let malformed = || group.refused(format!("a timerfd that reads {:?}", group.info));
    let number = |key: &str, radix| {
        group.info_field(key).and_then(|text| u64::from_str_radix(text, radix).ok())
    };
    let clock = number("clockid", 10).ok_or_else(malformed)? as u32;
    let flags = number("settime flags", 8).unwrap_or(0);
    let mut body = Body {
        clock,
        ticks: number("ticks", 10).ok_or_else(malformed)?,
        set_flags: 0,
        value: pair(group, "it_value").ok_or_else(malformed)?,
        interval: pair(group, "it_interval").ok_or_else(malformed)?,
        date: None,
    };
    if flags & 1 != 0 && COUNTS.contains(&clock) && body.value != (0, 0) {
        let clock = if clock == 1 { ClockId::Monotonic } else { ClockId::Boottime };
        let now = rustix::time::clock_gettime(clock);
        let (seconds, nanos) =
            (now.tv_sec as u64 + body.value.0, now.tv_nsec as u64 + body.value.1);
        body.date = i64::try_from(seconds.saturating_mul(NANOS).saturating_add(nanos)).ok();
    }
    if flags & 1 != 0 && DATES.contains(&clock) && body.value != (0, 0) {
        let now = rustix::time::clock_gettime(ClockId::Realtime);
        let nanos = body.value.1 + now.tv_nsec as u64;
        body.value = (body.value.0 + now.tv_sec as u64 + nanos / NANOS, nanos % NANOS);
        body.set_flags = flags & 3;
    }
    encode(KIND.number, &body).map(Some)
}

/// `it_value: (10, 500)`
fn pair(group: &Group, key: &str) -> Option<(u64, u64)> {
    let text = group.info_field(key)?.strip_prefix('(')?.strip_suffix(')')?;
    let (seconds, nanos) = text.split_once(", ")?;
    Some((seconds.parse().ok()?, nanos.parse().ok()?))
}

const TIMERFD_CREATE: u16 = 283;
const TIMERFD_SETTIME: u16 = 286;
const IOCTL: u16 = 16;
/// _IOW('T', 0, u64): of kernels with CONFIG_CHECKPOINT_RESTORE.
const TFD_IOC_SET_TICKS: u64 = 0x4008_5400;

fn plan(file: &OpenFile, files: &mut Files<'_>) -> Result<(), StateError> {
    let body: Body = decode(file)?;
    let fd = file.fds[0].0;
    let args = [u64::from(body.clock), u64::from(file.flags & NONBLOCK)];
    files.make(file, TIMERFD_CREATE, &args, "files: timerfd_create", Detail::Fd(fd));
    if body.value != (0, 0) {
        let (value, set_flags) = due(&body, files.clocks.as_ref());
        let interval = body.interval;
        let new = files.program.words(&[interval.0, interval.1, value.0, value.1]);
        let args = [u64::from(fd), set_flags, new, 0];
        files.call(TIMERFD_SETTIME, &args, "files: timerfd_settime", fd);
    }
    if body.ticks != 0 {
        let ticks = files.program.words(&[body.ticks]);
        let args = [u64::from(fd), TFD_IOC_SET_TICKS, ticks];
        files.call(IOCTL, &args, "files: TFD_IOC_SET_TICKS", fd);
    }
    Ok(())
}

/// When it is to expire, and the flags that say how that is meant. A date that has passed expires at
/// once.
fn due(body: &Body, clocks: Option<&Clocks>) -> ((u64, u64), u64) {
    const TFD_TIMER_ABSTIME: u64 = 1;
    let (Some(date), Some(clocks)) = (body.date, clocks) else {
        return (body.value, body.set_flags);
    };
    let shift = if body.clock == 1 { clocks.monotonic_shift } else { clocks.boottime_shift };
    let date = date.saturating_add(shift).max(1) as u64;
    ((date / NANOS, date % NANOS), TFD_TIMER_ABSTIME)
}

fn describe(file: &OpenFile) -> Result<String, StateError> {
    let body: Body = decode(file)?;
    let (seconds, nanos) = body.value;
    Ok(format!("clock {}, next {seconds}.{nanos:09}, {} ticks", body.clock, body.ticks))
}
