//! The processes of a tree, each made by its parent: so getppid(2) and wait(2) are right. A process
//! made here still runs this program. It makes its children first, and then waits for the order by
//! which it becomes a child of the seed.

use crate::abi::*;
use crate::guard::{self, Control, FDS_MAX, Packet, exit};
use crate::restore::CloneArgs;
use crate::sys::{self, syscall};
use core::mem::MaybeUninit;

/// What a process of a tree ends with that cannot be made as it should be.
const FAILED: u64 = 120;
const ENTRY_BYTES: u64 = TREE_ENTRY as u64;

/// Makes the root.
pub fn make(table: i32) -> i64 {
    clone(&read(table, 0))
}

/// In the root, just made: makes its descendants, of which this becomes one in each. Never returns.
pub fn grow(count: u32, fds: &[i32; FDS_MAX], queue: i32, vdso: u64, generation: u64) -> ! {
    let table = fds[0];
    let mut me = 0;
    let mut own = read(table, me);
    loop {
        if own.flags & TREE_LEADS_GROUP != 0 && own.flags & TREE_LEADS_SESSION == 0 {
            check(syscall!(sys::SETPGID, 0, 0));
        }
        if own.flags & TREE_ZOMBIE != 0 {
            end(&own);
        }
        let born = children(table, count, me, TREE_BEFORE);
        if born != 0 {
            (me, own) = (born, read(table, born));
            continue;
        }
        if own.flags & TREE_LEADS_SESSION != 0 {
            check(syscall!(bare sys::SETSID));
        }
        let born = children(table, count, me, 0);
        if born == 0 {
            break;
        }
        (me, own) = (born, read(table, born));
    }
    join(&own);
    let order = own.order as usize;
    if order >= TREE_MAX {
        exit(FAILED);
    }
    become_child(fds[1 + order], queue, vdso, generation)
}

/// Makes the children of process `me` that are born at that time; in one that was made, its index.
fn children(table: i32, count: u32, me: u32, before: u32) -> u32 {
    let mut index = me + 1;
    while index < count {
        let entry = read(table, index);
        if entry.parent == me && entry.flags & TREE_BEFORE == before {
            let pid = clone(&entry);
            check(pid);
            if pid == 0 {
                return index;
            }
            if entry.flags & TREE_ZOMBIE != 0 {
                // Its end must not be news to whom this becomes.
                const P_PID: u64 = 1;
                const EXITED_NOWAIT: u64 = 4 | 0x0100_0000;
                check(syscall!(sys::WAITID, P_PID, pid, 0, EXITED_NOWAIT, 0));
            }
        }
        index += 1;
    }
    0
}

fn clone(entry: &TreeEntry) -> i64 {
    let pid = entry.pid;
    let args = CloneArgs {
        flags: 0, pidfd: 0, child_tid: 0, parent_tid: 0, exit_signal: 17, stack: 0, stack_size: 0,
        tls: 0, set_tid: &raw const pid as u64, set_tid_size: 1, cgroup: 0,
    };
    syscall!(sys::CLONE3, &raw const args, core::mem::size_of::<CloneArgs>())
}

/// Joins a process group whose leader may not be there yet.
fn join(entry: &TreeEntry) {
    let mut turns = 0;
    while entry.group != 0 {
        let result = syscall!(sys::SETPGID, 0, entry.group);
        const EPERM: i64 = -1;
        if result != EPERM || turns > 1_000_000 {
            check(result);
            return;
        }
        syscall!(bare sys::SCHED_YIELD);
        turns += 1;
    }
}

/// Ends as the process of the parent's tree has ended.
fn end(entry: &TreeEntry) -> ! {
    if entry.flags & TREE_LEADS_SESSION != 0 {
        check(syscall!(bare sys::SETSID));
    }
    join(entry);
    let signal = entry.status & 0x7f;
    if signal == 0 {
        exit(u64::from(entry.status >> 8));
    }
    // With no core file, whatever is said about those.
    const PR_SET_DUMPABLE: u64 = 4;
    syscall!(sys::PRCTL, PR_SET_DUMPABLE, 0, 0, 0, 0);
    syscall!(sys::KILL, syscall!(bare sys::GETPID), signal);
    exit(FAILED)
}

fn become_child(socket: i32, queue: i32, vdso: u64, generation: u64) -> ! {
    let mut packet = Packet::new();
    let mut control = MaybeUninit::<Control>::uninit();
    let len = core::mem::size_of::<Packet>() as u64;
    let received = guard::receive(socket, &raw mut packet as u64, len, &mut control);
    let Some((_, count)) = received else { exit(FAILED) };
    let order = &packet.order;
    if count as u32 != order.fd_count {
        exit(FAILED);
    }
    // SAFETY: plain integers; only `count` of them are used.
    let fds = unsafe { &(*control.as_ptr()).fds };
    guard::place_fds(order, fds, queue);
    guard::map_region(order);
    guard::enter(order, 0, ENTRY_RESTORE, vdso, generation)
}

fn read(table: i32, index: u32) -> TreeEntry {
    let mut entry =
        TreeEntry { pid: 0, group: 0, parent: 0, flags: 0, status: 0, order: 0 };
    let at = u64::from(index) * ENTRY_BYTES;
    let read = syscall!(sys::PREAD, table, &raw mut entry, ENTRY_BYTES, at);
    check(if read == ENTRY_BYTES as i64 { 0 } else { -1 });
    entry
}

fn check(result: i64) {
    if result < 0 {
        exit(FAILED);
    }
}
