//! System V objects of other processes (sysvipc(7)): what the kernel tells of them to whoever is in
//! their IPC namespace.

use crate::SysError;
use std::fs::File;
use std::os::fd::AsFd;

/// Of an object, by whose list in `/proc/sysvipc` it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Entry {
    /// Key.
    pub key: i32,
    /// Id.
    pub id: i32,
    /// Permissions and flags.
    pub mode: u32,
    /// Bytes of a segment, semaphores of a set, 0 of a message queue.
    pub size: u64,
    /// Processes that made or used it last, by our numbers. None for semaphores.
    pub pids: [i32; 2],
    /// Owner, group, and those of who made it.
    pub ids: [u32; 4],
}

/// The three kinds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Shared memory.
    Memory,
    /// Semaphores.
    Semaphores,
    /// Messages.
    Messages,
}

/// Does something in the IPC namespace of a process: in a thread of its own, unless that is ours too.
///
/// # Errors
/// The namespace cannot be entered.
pub fn within<T: Send>(pid: i32, act: impl FnOnce() -> T + Send) -> Result<T, SysError> {
    if is_ours(pid)? {
        return Ok(act());
    }
    let path = format!("/proc/{pid}/ns/ipc");
    let namespace = File::open(&path).map_err(|e| SysError::io("open", path, e))?;
    let enter = || {
        use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
        move_into_link_name_space(
            namespace.as_fd(),
            Some(LinkNameSpaceType::InterProcessCommunication),
        )
        .map_err(|e| SysError::io("setns", "IPC namespace", e))?;
        Ok(act())
    };
    std::thread::scope(|scope| {
        let done = scope.spawn(enter).join();
        done.unwrap_or_else(|_| Err(SysError::Unexpected("a look at System V objects".into())))
    })
}

/// Whether a process is in our IPC namespace.
///
/// # Errors
/// There is no such process.
pub fn is_ours(pid: i32) -> Result<bool, SysError> {
    let of = |pid: &str| {
        let path = format!("/proc/{pid}/ns/ipc");
        std::fs::read_link(&path).map_err(|e| SysError::io("readlink", path, e))
    };
    Ok(of(&pid.to_string())? == of("self")?)
}

/// All objects of a kind in the calling thread's IPC namespace.
///
/// # Errors
/// `/proc/sysvipc` cannot be read, or is not what proc(5) says.
pub fn list(kind: Kind) -> Result<Vec<Entry>, SysError> {
    let name = match kind {
        Kind::Memory => "shm",
        Kind::Semaphores => "sem",
        Kind::Messages => "msg",
    };
    let path = format!("/proc/sysvipc/{name}");
    let text = match std::fs::read_to_string(&path) {
        // A kernel without System V objects.
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        text => text.map_err(|e| SysError::io("read", &path, e))?,
    };
    let malformed = || SysError::Unexpected(format!("{path}: {text}"));
    text.lines().skip(1).map(|line| parse(kind, line).ok_or_else(malformed)).collect()
}

fn parse(kind: Kind, line: &str) -> Option<Entry> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let number = |at: usize| fields.get(at)?.parse::<i64>().ok();
    let mode = u32::from_str_radix(fields.get(2)?, 8).ok()?;
    // Where the size, the two pids and the first of four ids are.
    let (size, pids, ids) = match kind {
        Kind::Memory => (Some(3), Some(4), 7),
        Kind::Semaphores => (Some(3), None, 4),
        Kind::Messages => (None, Some(5), 7),
    };
    let pid = |n: usize| pids.map_or(Some(0), |at| number(at + n)).map(|pid| pid as i32);
    let id = |n: usize| number(ids + n).map(|id| id as u32);
    Some(Entry {
        key: number(0)? as i32,
        id: number(1)? as i32,
        mode,
        size: size.map_or(Some(0), number)? as u64,
        pids: [pid(0)?, pid(1)?],
        ids: [id(0)?, id(1)?, id(2)?, id(3)?],
    })
}

/// The values of a set of semaphores.
///
/// # Errors
/// EINVAL when it is gone.
pub fn semaphores(id: i32, count: u64) -> Result<Vec<u16>, SysError> {
    // One more than the kernel will write, should the set be another by now: at most 65535 are read.
    let mut values = vec![0u16; 65_536];
    if count > 32_000 {
        return Err(SysError::Unexpected(format!("a set of {count} semaphores")));
    }
    // SAFETY: GETALL writes as many 16-bit values as the set has. It has `count`, below the room of
    // 65536, for the number of semaphores of a set never changes, and an id is not given to another
    // set before 32768 others had its slot (ipc/util.c, the sequence number in an id).
    let done = unsafe { libc::semctl(id, 0, libc::GETALL, values.as_mut_ptr()) };
    if done < 0 {
        return Err(SysError::last("semctl(GETALL)", id));
    }
    values.truncate(count as usize);
    Ok(values)
}

/// The process that used a semaphore last, by our number.
///
/// # Errors
/// EINVAL when it is gone.
pub fn semaphore_user(id: i32, semaphore: u64) -> Result<i32, SysError> {
    // SAFETY: plain integers.
    let pid = unsafe { libc::semctl(id, semaphore as i32, libc::GETPID) };
    if pid < 0 {
        return Err(SysError::last("semctl(GETPID)", id));
    }
    Ok(pid)
}

/// Bytes that a message queue may hold.
///
/// # Errors
/// EINVAL when it is gone.
pub fn queue_room(id: i32) -> Result<u64, SysError> {
    // SAFETY: all-zero is a valid msqid_ds.
    let mut state: libc::msqid_ds = unsafe { std::mem::zeroed() };
    // SAFETY: IPC_STAT writes one msqid_ds.
    if unsafe { libc::msgctl(id, libc::IPC_STAT, &raw mut state) } < 0 {
        return Err(SysError::last("msgctl(IPC_STAT)", id));
    }
    Ok(state.msg_qbytes)
}

/// What waits in a message queue, the oldest first; nothing is taken.
///
/// # Errors
/// EINVAL when it is gone; ENOSYS on a kernel without checkpoint/restore.
pub fn messages(id: i32) -> Result<Vec<(i64, Vec<u8>)>, SysError> {
    const MSG_COPY: i32 = 0o40_000;
    let mut out = Vec::new();
    let mut room = vec![0u64; 1024];
    loop {
        let bytes = (room.len() - 1) * 8;
        let number = out.len() as i64;
        let flags = MSG_COPY | libc::IPC_NOWAIT;
        // SAFETY: writes a long and at most `bytes` bytes behind it: no more than `room` has.
        let got = unsafe { libc::msgrcv(id, room.as_mut_ptr().cast(), bytes, number, flags) };
        if got < 0 {
            match std::io::Error::last_os_error().raw_os_error() {
                Some(libc::ENOMSG) => return Ok(out),
                Some(libc::E2BIG) if room.len() < 1 << 21 => room.resize(room.len() * 8, 0),
                _ => return Err(SysError::last("msgrcv(MSG_COPY)", id)),
            }
            continue;
        }
        let text: Vec<u8> = room[1..].iter().flat_map(|word| word.to_ne_bytes()).collect();
        out.push((room[0] as i64, text[..got as usize].to_vec()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_lists_are_understood() {
        let line = " 1  2 1600 4096 11 12 3 1 2 3 4 0 0 0 0 0";
        let segment = parse(Kind::Memory, line).expect("a segment");
        let told = (segment.key, segment.id, segment.mode, segment.size);
        assert_eq!(told, (1, 2, 0o1600, 4096));
        assert_eq!((segment.pids, segment.ids), ([11, 12], [1, 2, 3, 4]));
        let set = parse(Kind::Semaphores, "-1 7 666 3 1 2 3 4 0 0").expect("a set");
        assert_eq!((set.key, set.id, set.size, set.ids), (-1, 7, 3, [1, 2, 3, 4]));
        let queue = parse(Kind::Messages, "5 6 644 100 2 11 12 1 2 3 4 0 0 0").expect("a queue");
        assert_eq!((queue.pids, queue.ids), ([11, 12], [1, 2, 3, 4]));
        assert_eq!(parse(Kind::Messages, "5 6"), None);
    }

    #[test]
    fn what_waits_in_a_queue_is_seen_and_stays() {
        // SAFETY: plain integers; the message is a long and its text.
        unsafe {
            let id = libc::msgget(libc::IPC_PRIVATE, 0o600);
            assert!(id >= 0);
            let big: Vec<u64> = (0..1025).map(|n| n + 3).collect();
            for (text, len) in [(&big[..2], 5), (&big[..], 8192)] {
                assert_eq!(libc::msgsnd(id, text.as_ptr().cast(), len, 0), 0);
            }
            for _ in 0..2 {
                let seen = messages(id).expect("messages");
                assert_eq!(seen.len(), 2);
                assert_eq!((seen[0].0, seen[0].1.as_slice()), (3, &[4u8, 0, 0, 0, 0][..]));
                assert_eq!((seen[1].1.len(), seen[1].1[8184]), (8192, 1027u64 as u8));
            }
            assert!(queue_room(id).expect("room") >= 8197);
            assert_eq!(libc::msgctl(id, libc::IPC_RMID, std::ptr::null_mut()), 0);
        }
    }
}
