//! The processes of a tree, each made by its parent, or by one that ends so that the parent adopts it: so
//! getppid(2) and wait(2) are right. A process made here still runs this program. It makes its children
//! first, joins its group, and when all have done so, waits for the order by which it becomes a child of
//! the seed.

use crate::abi::*;
use crate::guard::{self, Control, FDS_MAX, Packet, exit};
use crate::restore::CloneArgs;
use crate::sys::{self, syscall};
use core::mem::MaybeUninit;
use core::sync::atomic::{AtomicU32, Ordering};

/// What a process of a tree ends with that cannot be made as it should be.
const FAILED: u64 = 120;
const ENTRY_BYTES: u64 = TREE_ENTRY as u64;
/// Children that tell nobody of their end, too.
const WALL: u64 = 0x4000_0000;

/// What all processes of a tree see while they are made.
#[repr(C)]
struct Board {
    /// Those that stay, or end as zombies, and have joined their groups.
    joined: AtomicU32,
    /// Temporary ones that are gone.
    gone: AtomicU32,
    /// How many there are of each.
    staying: AtomicU32,
    temporary: AtomicU32,
    /// Those that stay and do not leave the group that they lead.
    remaining: AtomicU32,
}

/// Makes the root.
pub fn make(table: i32) -> i64 {
    clone(&read(table, 0))
}

/// In the root, just made: makes its descendants, of which this becomes one in each. Never returns.
pub fn grow(
    count: u32,
    fds: &[i32; FDS_MAX],
    queue: i32,
    vdso: u64,
    generation: u64,
) -> ! {
    let table = fds[0];
    let board = put_up(table, count);
    let mut me = 0;
    let mut own = read(table, me);
    loop {
        if own.flags & TREE_ADOPTS != 0 {
            adopt(true);
        }
        let leads = own.flags & (TREE_LEADS_GROUP | TREE_LEAVES) != 0;
        if leads && own.flags & TREE_LEADS_SESSION == 0 {
            check(syscall!(sys::SETPGID, 0, 0));
        }
        let born = children(table, count, me, TREE_BEFORE);
        if born != 0 {
            (me, own) = (born, read(table, born));
            continue;
        }
        if own.flags & TREE_LEADS_SESSION != 0 {
            check(syscall!(bare sys::SETSID));
            take_terminal(own.terminal);
        }
        let born = children(table, count, me, 0);
        if born == 0 {
            break;
        }
        (me, own) = (born, read(table, born));
    }
    if own.flags & TREE_LEAVES != 0 {
        await_number(&board.joined, &board.remaining, table, count, me);
    }
    join(&own);
    let temporary = own.flags & TREE_TEMPORARY != 0;
    if !temporary {
        add(&board.joined, 1);
    }
    await_number(&board.joined, &board.staying, table, count, me);
    // Those of a zombie end before it does, too.
    let gone = reap_temporary(table, count, me);
    add(&board.gone, gone);
    if own.flags & TREE_ZOMBIE != 0 {
        end(&own);
    }
    if temporary {
        exit(0);
    }
    await_number(&board.gone, &board.temporary, table, count, me);
    await_zombies(table, count, me);
    if own.flags & TREE_ADOPTS != 0 {
        adopt(false);
    }
    let order = own.order as usize;
    if order >= TREE_MAX {
        exit(FAILED);
    }
    become_child(fds[1 + order], queue, vdso, generation)
}

/// Memory that all of them share.
fn put_up(table: i32, count: u32) -> &'static Board {
    const SHARED_ANON: u64 = 0x21;
    let at = syscall!(sys::MMAP, 0, size_of::<Board>(), 3, SHARED_ANON, -1i64, 0);
    check(at);
    // SAFETY: mapped just now, zero, and never unmapped by this program; all is atomic.
    let board = unsafe { &*(at as *const Board) };
    let mut index = 0;
    while index < count {
        let flags = read(table, index).flags;
        let number = if flags & TREE_TEMPORARY != 0 { &board.temporary } else { &board.staying };
        number.fetch_add(1, Ordering::Relaxed);
        if flags & (TREE_TEMPORARY | TREE_LEAVES) == 0 {
            board.remaining.fetch_add(1, Ordering::Relaxed);
        }
        index += 1;
    }
    board
}

const FUTEX_WAIT: u64 = 0;
const FUTEX_WAKE: u64 = 1;

fn add(number: &AtomicU32, more: u32) {
    number.fetch_add(more, Ordering::AcqRel);
    syscall!(sys::FUTEX, number.as_ptr(), FUTEX_WAKE, i32::MAX, 0);
}

/// Waits until a number is as high as another one, which does not change. Whoever makes the tree
/// bounds it in time; that a child has been killed meanwhile is seen sooner.
fn await_number(number: &AtomicU32, wanted: &AtomicU32, table: i32, count: u32, me: u32) {
    const A_MOMENT: [u64; 2] = [0, 50_000_000];
    const ETIMEDOUT: i64 = -110;
    loop {
        let now = number.load(Ordering::Acquire);
        if now >= wanted.load(Ordering::Relaxed) {
            return;
        }
        let moment = A_MOMENT;
        let result = syscall!(sys::FUTEX, number.as_ptr(), FUTEX_WAIT, now, moment.as_ptr());
        if result == ETIMEDOUT {
            look_after(table, count, me);
        }
    }
}

/// Ends with any child that was to live: so does the parent, and at last the root, of which the guard
/// tells.
fn look_after(table: i32, count: u32, me: u32) {
    const P_PID: u64 = 1;
    const EXITED_NOHANG_NOWAIT: u64 = 4 | 1 | 0x0100_0000;
    // Where `siginfo_t` has `si_pid`, in words.
    const SI_PID: usize = 2;
    let mut index = me + 1;
    while index < count {
        let entry = read(table, index);
        if entry.heir == me && entry.flags & (TREE_ZOMBIE | TREE_TEMPORARY) == 0 {
            let mut info = MaybeUninit::<[u64; 16]>::uninit();
            // SAFETY: within the array; an integer.
            let pid = unsafe { (info.as_mut_ptr() as *mut u64).add(SI_PID) };
            // SAFETY: as above.
            unsafe { *pid = 0 };
            let args = (entry.pid, info.as_mut_ptr(), EXITED_NOHANG_NOWAIT);
            let result = syscall!(sys::WAITID, P_PID, args.0, args.1, args.2, 0);
            // SAFETY: as above; the kernel has written there or not.
            if result == 0 && unsafe { pid.read_volatile() } as u32 != 0 {
                exit(FAILED);
            }
        }
        index += 1;
    }
}

/// Whether orphans of those below it become its own (PR_SET_CHILD_SUBREAPER).
fn adopt(on: bool) {
    const PR_SET_CHILD_SUBREAPER: u64 = 36;
    check(syscall!(sys::PRCTL, PR_SET_CHILD_SUBREAPER, on, 0, 0, 0));
}

/// The children of process `me` that are temporary: they are reaped here, and told nobody.
fn reap_temporary(table: i32, count: u32, me: u32) -> u32 {
    let mut gone = 0;
    let mut index = me + 1;
    while index < count {
        let entry = read(table, index);
        if entry.parent == me && entry.flags & TREE_TEMPORARY != 0 {
            check(syscall!(sys::WAIT4, entry.pid, 0, WALL, 0));
            gone += 1;
        }
        index += 1;
    }
    gone
}

/// The end of a zombie must not be news to whom its parent becomes. One that has been born elsewhere
/// comes when that process has ended.
fn await_zombies(table: i32, count: u32, me: u32) {
    const P_PID: u64 = 1;
    const EXITED_NOWAIT: u64 = 4 | 0x0100_0000;
    const ECHILD: i64 = -10;
    let mut index = me + 1;
    while index < count {
        let entry = read(table, index);
        if entry.heir == me && entry.flags & TREE_ZOMBIE != 0 {
            let mut turns = 0;
            loop {
                let result = syscall!(sys::WAITID, P_PID, entry.pid, 0, EXITED_NOWAIT, 0);
                if result != ECHILD || turns > TURNS_MAX {
                    check(result);
                    break;
                }
                syscall!(bare sys::SCHED_YIELD);
                turns += 1;
            }
        }
        index += 1;
    }
}

/// Turns of a wait for what another process does next.
const TURNS_MAX: u32 = 1_000_000;

/// Puts the file systems of the tree, the last that are attached, where its processes look for them.
pub fn mount(which: u64, fds: &[i32; FDS_MAX], count: u32) {
    const AT_FDCWD: i64 = -100;
    const MOVE_MOUNT_F_EMPTY_PATH: u64 = 4;
    let mut last = count;
    let (memory, terminals) = (*b"/dev/shm\0", *b"/dev/pts\0");
    for (flag, at) in [(MOUNT_MEMORY, memory.as_ptr()), (MOUNT_TERMINALS, terminals.as_ptr())] {
        if which & flag != 0 {
            last -= 1;
            let (from, empty) = (fds[last as usize % FDS_MAX], *b"\0");
            let empty = empty.as_ptr();
            check(syscall!(sys::MOVE_MOUNT, from, empty, AT_FDCWD, at, MOVE_MOUNT_F_EMPTY_PATH));
        }
    }
}

/// In a process that leads its session: pseudo-terminal `number - 1` controls that, and those that are
/// born from now on.
fn take_terminal(number: u32) {
    const AT_FDCWD: i64 = -100;
    const RDWR_NOCTTY_CLOEXEC: u64 = 2 | 0o400 | 0o2_000_000;
    const TIOCSCTTY: u64 = 0x540e;
    if number == 0 {
        return;
    }
    let index = number - 1;
    let digit = |of: u32| b'0' + (of % 10) as u8;
    let mut path = *b"/dev/pts/000\0";
    // Without leading zeros.
    if index >= 100 {
        (path[9], path[10], path[11]) = (digit(index / 100), digit(index / 10), digit(index));
    } else if index >= 10 {
        (path[9], path[10], path[11]) = (digit(index / 10), digit(index), 0);
    } else {
        (path[9], path[10]) = (digit(index), 0);
    }
    let slave = syscall!(sys::OPENAT, AT_FDCWD, path.as_ptr(), RDWR_NOCTTY_CLOEXEC, 0);
    check(slave);
    check(syscall!(sys::IOCTL, slave, TIOCSCTTY, 0));
    syscall!(sys::CLOSE, slave);
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
        }
        index += 1;
    }
    0
}

fn clone(entry: &TreeEntry) -> i64 {
    let pid = entry.pid;
    const SIGCHLD: u64 = 17;
    let exit_signal = if entry.flags & TREE_TEMPORARY == 0 { SIGCHLD } else { 0 };
    let args = CloneArgs {
        flags: 0, pidfd: 0, child_tid: 0, parent_tid: 0, exit_signal, stack: 0, stack_size: 0, tls: 0,
        set_tid: &raw const pid as u64, set_tid_size: 1, cgroup: 0,
    };
    syscall!(sys::CLONE3, &raw const args, core::mem::size_of::<CloneArgs>())
}

/// Joins a process group whose leader may not be there yet.
fn join(entry: &TreeEntry) {
    let mut turns = 0;
    while entry.group != 0 {
        let result = syscall!(sys::SETPGID, 0, entry.group);
        const EPERM: i64 = -1;
        if result != EPERM || turns > TURNS_MAX {
            check(result);
            return;
        }
        syscall!(bare sys::SCHED_YIELD);
        turns += 1;
    }
}

/// Ends as the process of the parent's tree has ended.
fn end(entry: &TreeEntry) -> ! {
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
    let mut entry = TreeEntry {
        pid: 0, group: 0, parent: 0, heir: 0, flags: 0, status: 0, order: 0, terminal: 0,
    };
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
