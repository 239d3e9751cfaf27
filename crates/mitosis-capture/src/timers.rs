//! Timers of the process, read while it stands still.
//!
//! Which `timer_create(2)` timers there are the kernel says (`/proc/PID/timers`); how long they and
//! the `setitimer(2)` ones still run only the process can ask. A process that had no timer at the
//! first look is not asked.

use crate::CaptureError;
use crate::inject::Planted;
use crate::stop::StoppedProcess;
use crate::taken::Taken;
use mitosis_descriptor::{IntervalTimer, PosixTimer};
use mitosis_sys::procfs;

/// Timers for which there is room, beyond those of the first look.
pub(crate) const SPARE: usize = 32;
/// Bytes of a place in the table: `mitosis_stub::abi::TimerPlace`.
pub(crate) const PLACE_BYTES: usize = 40;
/// Timers of one process; the descriptor's limit.
const TIMERS_MAX: usize = 4096;

/// All timers.
#[derive(Default)]
pub(crate) struct Timers {
    pub intervals: Vec<IntervalTimer>,
    pub posix: Vec<PosixTimer>,
}

/// The `timer_create(2)` timers, without their times; threads are named by our ids.
pub(crate) fn list(pid: i32) -> Result<Vec<PosixTimer>, CaptureError> {
    let fail = CaptureError::sys("inspect", pid);
    let text = procfs::text(pid, "timers").map_err(&fail)?;
    let timers = parse(&text).ok_or_else(|| {
        fail(mitosis_sys::SysError::Unexpected(format!("/proc/{pid}/timers: {text}")))
    })?;
    if timers.len() > TIMERS_MAX {
        let why = format!("has {} timers, more than {TIMERS_MAX}", timers.len());
        return Err(CaptureError::Refused { pid, why });
    }
    Ok(timers)
}

/// The clock by which a child knows it. Negative ones say in their bits which process's or thread's CPU
/// time they tell (linux/posix-timers.h); 0 stands for whoever made the timer, which for a child is its
/// main thread. Which of several threads it was the kernel does not tell: if one is told, most likely
/// that (timer_create(2) has no other use for it).
fn clock_of(clock: i32, pid: i32, told: i32) -> i32 {
    let (whose, of_thread) = (!(clock >> 3), clock & 4 != 0);
    match (clock < 0, of_thread, whose) {
        (true, true, 0) if told != 0 => !told << 3 | clock & 7,
        (true, false, whose) if whose == pid => !0 << 3 | clock & 7,
        _ => clock,
    }
}

/// Lines `ID: 0`, `signal: 14/000000000000002a`, `notify: signal/pid.123`, `ClockID: 1`.
fn parse(text: &str) -> Option<Vec<PosixTimer>> {
    let mut timers: Vec<PosixTimer> = Vec::new();
    for line in text.lines() {
        let (key, value) = line.split_once(':')?;
        let value = value.trim();
        if key == "ID" {
            let id = value.parse().ok()?;
            let (clock, notify, signal, tid) = (0, 0, 0, 0);
            let timer = PosixTimer {
                id,
                clock,
                notify,
                signal,
                value: 0,
                tid,
                interval_ns: 0,
                value_ns: 0,
            };
            timers.push(timer);
            continue;
        }
        let timer = timers.last_mut()?;
        match key {
            "signal" => {
                let (signal, argument) = value.split_once('/')?;
                timer.signal = signal.parse().ok()?;
                timer.value = u64::from_str_radix(argument.trim_start_matches("0x"), 16).ok()?;
            }
            "notify" => {
                let (how, whom) = value.split_once('/')?;
                let (whom, id) = whom.split_once('.')?;
                // SIGEV_SIGNAL, SIGEV_NONE, SIGEV_THREAD_ID (asm-generic/siginfo.h)
                timer.notify = match (how, whom) {
                    ("none", _) => 1,
                    ("signal", "pid") => 0,
                    ("signal", "tid") => 4,
                    _ => return None,
                };
                timer.tid = if timer.notify == 4 { id.parse().ok()? } else { 0 };
            }
            "ClockID" => timer.clock = value.parse::<i32>().ok()? as u32,
            _ => {}
        }
    }
    Some(timers)
}

/// All timers of the stopped process.
pub(crate) fn take(
    planted: &Planted,
    process: &mut StoppedProcess,
) -> Result<Timers, CaptureError> {
    let mut posix = list(planted.pid)?;
    let ids: Vec<u32> = posix.iter().map(|timer| timer.id).collect();
    let (intervals, states) = planted.ask_timers(process, &ids)?;
    let leader = planted.ended_leader.and_then(|leader| procfs::Status::read(leader).ok());
    let leader = leader.and_then(|status| status.inner_id());
    let pid = leader.unwrap_or(process.taken.threads[0].tid);
    for (timer, state) in posix.iter_mut().zip(states) {
        let nanos = |s: u64, ns: u64| s.saturating_mul(1_000_000_000).saturating_add(ns);
        timer.interval_ns = nanos(state[0], state[1]);
        timer.value_ns = nanos(state[2], state[3]);
        if timer.tid != 0 {
            timer.tid = inner_tid(&process.taken, timer.tid).unwrap_or(0);
        }
        timer.clock = clock_of(timer.clock as i32, pid, timer.tid) as u32;
    }
    let micros = |s: u64, us: u64| s.saturating_mul(1_000_000).saturating_add(us);
    let intervals = intervals.iter().enumerate().map(|(which, t)| IntervalTimer {
        which: which as u8,
        interval_us: micros(t[0], t[1]),
        value_us: match micros(t[2], t[3]) {
            // It has expired, and begins anew when its signal is delivered: not before the stop is over.
            // One that was disarmed has no period either.
            0 => micros(t[0], t[1]),
            left => left,
        },
    });
    Ok(Timers { intervals: intervals.filter(|t| t.value_us != 0).collect(), posix })
}

fn inner_tid(taken: &Taken, host_tid: i32) -> Option<i32> {
    taken.threads.iter().find(|thread| thread.host_tid == host_tid).map(|thread| thread.tid)
}

#[cfg(test)]
mod tests {
    #[test]
    fn clocks_are_named_as_a_child_knows_them() {
        let thread = |tid: i32| !tid << 3 | 6;
        let process = |pid: i32| !pid << 3 | 2;
        for same in [1, process(0), process(5), thread(78), thread(0)] {
            assert_eq!(super::clock_of(same, 77, 0), same, "{same}");
        }
        assert_eq!(super::clock_of(process(77), 77, 0), process(0));
        assert_eq!(super::clock_of(thread(0), 77, 79), thread(79));
        assert_eq!(super::clock_of(1, 77, 79), 1);
    }

    #[test]
    fn the_kernels_list_is_understood() {
        let text = "ID: 3\nsignal: 34/00000000deadbeef\nnotify: signal/tid.77\nClockID: 1\n\
                    ID: 4\nsignal: 14/000000000000002a\nnotify: none/pid.5\nClockID: -6\n";
        let timers = super::parse(text).expect("two timers");
        let first = (timers[0].id, timers[0].signal, timers[0].value, timers[0].tid);
        assert_eq!(first, (3, 34, 0xdead_beef, 77));
        assert_eq!((timers[0].notify, timers[1].notify, timers[1].clock), (4, 1, -6i32 as u32));
        assert!(super::parse("nonsense").is_none());
    }
}
