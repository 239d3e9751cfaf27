//! System V objects, in the child's own IPC namespace, under the ids that they had.
//!
//! A segment is filled by way of its file, as other shared memory is: userfaultfd knows the file's
//! mappings but not those of shmat(2), which take their place afterwards.

use crate::{memory, rare};
use mitosis_descriptor::{Backing, Descriptor, IpcObject, Segment, Vma, vma_flags};
use mitosis_state::{Detail, List, Program, op};
use mitosis_stub::abi::OP_EXPECT;

const WRITE: u16 = 1;
const OPEN: u16 = 2;
const CLOSE: u16 = 3;
const MPROTECT: u16 = 10;
const MUNMAP: u16 = 11;
const MREMAP: u16 = 25;
const SHMGET: u16 = 29;
const SHMAT: u16 = 30;
const SHMCTL: u16 = 31;
const SEMGET: u16 = 64;
const SEMCTL: u16 = 66;
const FLOCK: u16 = 73;
const LOCK_EX: u64 = 2;
const SHMDT: u16 = 67;
const MSGGET: u16 = 68;
const MSGSND: u16 = 69;
const MSGCTL: u16 = 71;
const SETRESUID: u16 = 117;
const SETRESGID: u16 = 119;
const O_WRONLY_CLOEXEC: u64 = 0o2_000_001;
const O_RDWR_CLOEXEC: u64 = 0o2_000_002;
const IPC_CREAT_EXCL: u64 = 0o3000;
const IPC_RMID: u64 = 0;
const IPC_SET: u64 = 1;
const IPC_NOWAIT: u64 = 0o4000;
const SETALL: u64 = 17;
const SHM_LOCK: u64 = 11;
const SHM_RDONLY: u64 = 0o10_000;
const SHM_EXEC: u64 = 0o100_000;
const MREMAP_MAYMOVE_FIXED: u64 = 3;
const PROT_EXEC: u8 = 4;
const KEEP: u64 = u64::MAX;
/// Lowest address at which a segment is attached for a moment: where no program has anything of
/// its own accord, as `plan::hole`.
const SCRATCH_FROM: u64 = 0x10_0000_0000;
const SCRATCH_TO: u64 = 0x7000_0000_0000;
/// Words of the largest `struct *id64_ds` of asm-generic.
const STATE_WORDS: usize = 16;
/// Where `struct msqid64_ds` has its `msg_qbytes`, in words.
const MSG_QBYTES: usize = 11;

/// The segment behind a shared object.
pub(crate) fn segment(descriptor: &Descriptor, object: u32) -> Option<&Segment> {
    descriptor.rare.ipc.segments.iter().find(|segment| segment.object == object)
}

/// Makes the segment and opens the file behind it, whose number comes to `slot`.
pub(crate) fn open(program: &mut Program, descriptor: &Descriptor, segment: &Segment, slot: u8) {
    let IpcObject { id, key, .. } = segment.ipc;
    let get = [key as u32 as u64, segment.size, IPC_CREAT_EXCL | u64::from(segment.ipc.mode)];
    make(program, "shm", &segment.ipc, (SHMGET, &get), slot);
    let at = scratch(program, descriptor, segment.size);
    let detail = || Detail::Number(id as u64);
    attach(program, segment, at, 0);
    let end = at + segment.size.next_multiple_of(4096);
    let path = program.string(&format!("/proc/self/map_files/{at:x}-{end:x}"));
    let mut open = op(OPEN, 0, &[path, O_RDWR_CLOEXEC]);
    open.save = slot;
    program.push(List::Build, open, "map-vmas: open the System V segment", detail());
    // Its file keeps it: it is not removed yet.
    program.call(List::Build, SHMDT, &[at], "map-vmas: shmdt", detail());
}

/// When all is filled: the mappings become attachments, and the segment what it was.
pub(crate) fn settle(program: &mut Program, descriptor: &Descriptor) {
    for segment in &descriptor.rare.ipc.segments {
        for vma in &descriptor.vmas {
            match vma.backing {
                Backing::Shared { object, offset } if object == segment.object => {
                    put(program, descriptor, segment, (vma, offset));
                }
                _ => {}
            }
        }
        let from = &descriptor.rare.tree.place.memory_from;
        if from.iter().any(|(object, _)| *object == segment.object) {
            // What else it is, is up to the process of the tree that makes it.
            continue;
        }
        let id = segment.ipc.id as u64;
        let state = program.words(&state(&segment.ipc));
        let mut control = |command: u64, at: u64, what| {
            let detail = Detail::Number(id);
            program.call(List::Build, SHMCTL, &[id, command, at], what, detail);
        };
        control(IPC_SET, state, "map-vmas: shmctl(IPC_SET)");
        if segment.locked {
            control(SHM_LOCK, 0, "map-vmas: shmctl(SHM_LOCK)");
        }
        if segment.removed {
            control(IPC_RMID, 0, "map-vmas: shmctl(IPC_RMID)");
        }
    }
}

/// One mapping: all of the segment is attached elsewhere, and the part moved to its place.
fn put(
    program: &mut Program,
    descriptor: &Descriptor,
    segment: &Segment,
    (vma, offset): (&Vma, u64),
) {
    let at = scratch(program, descriptor, segment.size);
    let read_only = vma.flags & vma_flags::READ_ONLY != 0;
    let executable = vma.prot & PROT_EXEC != 0;
    let flags = if read_only { SHM_RDONLY } else { 0 } | if executable { SHM_EXEC } else { 0 };
    attach(program, segment, at, flags);
    let (len, detail) = (vma.end - vma.start, || Detail::Range(vma.start, vma.end));
    let args = [at + offset, len, len, MREMAP_MAYMOVE_FIXED, vma.start];
    program.call(List::Build, MREMAP, &args, "map-vmas: attach at", detail());
    let args = [at, segment.size.next_multiple_of(4096)];
    program.call(List::Build, MUNMAP, &args, "map-vmas: munmap", detail());
    let args = [vma.start, len, u64::from(vma.prot)];
    program.call(List::Build, MPROTECT, &args, "map-vmas: protect", detail());
    rare::assign_keys_of(program, descriptor, vma);
    memory::advise_all(program, vma);
}

fn attach(program: &mut Program, segment: &Segment, at: u64, flags: u64) {
    let id = segment.ipc.id as u64;
    let detail = Detail::Number(id);
    program.call_expect(List::Build, SHMAT, &[id, at, flags], at, "map-vmas: shmat", detail);
}

/// A free range of `len` bytes: neither the parent had anything there nor have we.
fn scratch(program: &Program, descriptor: &Descriptor, len: u64) -> u64 {
    let ours = (program.region.base, program.region.base + crate::plan::HOLE);
    let mut taken: Vec<(u64, u64)> = descriptor.vmas.iter().map(|v| (v.start, v.end)).collect();
    taken.extend(descriptor.rare.rings.iter().map(|ring| (ring.start, ring.end)));
    taken.push(ours);
    taken.sort_unstable();
    let mut at = SCRATCH_FROM;
    for (start, end) in taken {
        if start >= at.saturating_add(len) {
            break;
        }
        at = at.max(end);
    }
    // Where there is no room shmat(2) will say so.
    at.min(SCRATCH_TO)
}

/// What is no memory.
pub(crate) fn rest(program: &mut Program, descriptor: &Descriptor, slot: u8) {
    for set in &descriptor.rare.ipc.semaphores {
        let (id, key, count) = (set.ipc.id as u64, set.ipc.key, set.values.len() as u64);
        let get = [key as u32 as u64, count, IPC_CREAT_EXCL | u64::from(set.ipc.mode)];
        make(program, "sem", &set.ipc, (SEMGET, &get), slot);
        let bytes: Vec<u8> = set.values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let (values, state) = (program.data(&bytes), program.words(&state(&set.ipc)));
        let detail = || Detail::Number(id);
        let what = "files: semctl(SETALL)";
        program.call(List::Build, SEMCTL, &[id, 0, SETALL, values], what, detail());
        let what = "files: semctl(IPC_SET)";
        program.call(List::Build, SEMCTL, &[id, 0, IPC_SET, state], what, detail());
    }
    for queue in &descriptor.rare.ipc.queues {
        let (id, key) = (queue.ipc.id as u64, queue.ipc.key);
        let get = [key as u32 as u64, IPC_CREAT_EXCL | u64::from(queue.ipc.mode)];
        make(program, "msg", &queue.ipc, (MSGGET, &get), slot);
        let mut words = state(&queue.ipc);
        words[MSG_QBYTES] = queue.bytes_max;
        let state = program.words(&words);
        let detail = || Detail::Number(id);
        let what = "files: msgctl(IPC_SET)";
        program.call(List::Build, MSGCTL, &[id, IPC_SET, state], what, detail());
        for (kind, text) in &queue.messages {
            let message: Vec<u8> = kind.to_le_bytes().iter().chain(text).copied().collect();
            let at = program.data(&message);
            let args = [id, at, text.len() as u64, IPC_NOWAIT];
            program.call(List::Build, MSGSND, &args, "files: msgsnd", detail());
        }
    }
}

/// Makes an object with its id, in a namespace that has none of its kind under it, as whoever made it.
/// Another process of the tree may do the same for another one: while one has chosen an id, the
/// others wait.
fn make(program: &mut Program, kind: &str, ipc: &IpcObject, (get, args): (u16, &[u64]), slot: u8) {
    let detail = || Detail::Text(format!("{kind} {}", ipc.id));
    let path = program.string(&format!("/proc/sys/kernel/{kind}_next_id"));
    let mut open = op(OPEN, 0, &[path, O_WRONLY_CLOEXEC]);
    open.save = slot;
    program.push(List::Build, open, "sandbox: choose the id of", detail());
    let mut lock = op(FLOCK, 1, &[0, LOCK_EX]);
    lock.slot = slot;
    program.push(List::Build, lock, "sandbox: choose the id of", detail());
    let text = format!("{}\n", ipc.id);
    let at = program.data(text.as_bytes());
    let mut write = op(WRITE, 1, &[0, at, text.len() as u64]);
    write.slot = slot;
    program.push(List::Build, write, "sandbox: choose the id of", detail());
    let another = ipc.cuid != 0 || ipc.cgid != 0;
    let be = |program: &mut Program, nr: u16, id: u32| {
        let args = [KEEP, u64::from(id), KEEP];
        program.call(List::Build, nr, &args, "sandbox: be who made", detail());
    };
    if another {
        be(program, SETRESGID, ipc.cgid);
        be(program, SETRESUID, ipc.cuid);
    }
    let mut get = op(get, OP_EXPECT, args);
    get.expect = ipc.id as u64;
    program.push(List::Build, get, "sandbox: System V", detail());
    if another {
        be(program, SETRESUID, 0);
        be(program, SETRESGID, 0);
    }
    let mut close = op(CLOSE, 1, &[0]);
    close.slot = slot;
    program.push(List::Build, close, "sandbox: close", Detail::None);
}

/// `struct *id64_ds` as `IPC_SET` reads it: owner and permissions.
fn state(ipc: &IpcObject) -> [u64; STATE_WORDS] {
    let two = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
    let mut words = [0u64; STATE_WORDS];
    words[0] = two(ipc.key as u32, ipc.uid);
    words[1] = two(ipc.gid, ipc.cuid);
    words[2] = two(ipc.cgid, ipc.mode);
    words
}
