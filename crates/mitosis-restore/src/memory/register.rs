//! The userfaultfd, from its making until the pager and the guard have it.

use super::Memory;
use crate::plan::{Area, Part};
use mitosis_state::{Detail, List, Program, op};
use mitosis_stub::abi::{FD_GUARD_QUEUE, FD_PAGER, FD_UFFD, guard_message};

const WRITE: u16 = 1;
const IOCTL: u16 = 16;
const SENDMSG: u16 = 46;
const CLOSE: u16 = 3;
const DUP3: u16 = 292;
const USERFAULTFD: u16 = 323;
const O_CLOEXEC_NONBLOCK: u64 = 0o2_000_000 | 0o4000;
const UFFDIO_API: u64 = 0xc018_aa3f;
const UFFDIO_REGISTER: u64 = 0xc020_aa00;
const UFFD_API: u64 = 0xaa;
const UFFDIO_REGISTER_MODE_MISSING: u64 = 1;
/// EVENT_FORK | EVENT_REMAP | EVENT_REMOVE | EVENT_UNMAP
const UFFD_EVENTS: u64 = 1 << 1 | 1 << 2 | 1 << 3 | 1 << 6;
/// Slot of the fresh userfaultfd's number.
pub(super) const SLOT_UFFD: u8 = 1;

impl Memory<'_> {
    /// The userfaultfd: made, registered, given to the pager and to the guard, closed. A template has
    /// one for its node alone, which puts its pages in place.
    pub(super) fn register(&self, program: &mut Program, part: Part) {
        // To the guard that becomes its parent, of which it has the node's end until it goes on: that would
        // else have to be told before there is a child, and be waited for.
        let mine = |kind: u32| (u128::from(self.pid as u32) << 32 | u128::from(kind)).to_le_bytes();
        if self.areas.is_empty() {
            if self.adopted {
                let told = program.data(&mine(guard_message::ADOPT));
                let args = [u64::from(self.fd_base) + FD_GUARD_QUEUE as u64, told, 16];
                let what = "sandbox: tell the guard";
                program.call_expect(List::Build, WRITE, &args, 16, what, Detail::None);
            }
            return;
        }
        let uffd = u64::from(self.fd_base) + FD_UFFD as u64;
        let mut make = op(USERFAULTFD, 0, &[O_CLOEXEC_NONBLOCK]);
        make.save = SLOT_UFFD;
        program.push(List::Build, make, "register: userfaultfd", Detail::None);
        let mut dup = op(DUP3, 1, &[0, uffd, 0]);
        dup.slot = SLOT_UFFD;
        program.push(List::Build, dup, "register: dup3", Detail::None);
        let mut close = op(CLOSE, 1, &[0]);
        close.slot = SLOT_UFFD;
        program.push(List::Build, close, "register: close", Detail::None);
        let api = program.words(&[UFFD_API, UFFD_EVENTS, 0]);
        let what = "register: UFFDIO_API";
        program.call(List::Build, IOCTL, &[uffd, UFFDIO_API, api], what, Detail::None);
        // One call for areas without a gap between them, of however many mappings they are.
        let touch =
            |a: &Area, b: &Area| a.start.0 + a.count == b.start.0 && !a.grows_down && !b.grows_down;
        for areas in self.areas.chunk_by(touch) {
            let (start, pages) = (areas[0].start.addr(), areas.iter().map(|area| area.count));
            let len = pages.sum::<u64>() << 12;
            let range = program.words(&[start, len, UFFDIO_REGISTER_MODE_MISSING, 0]);
            let detail = Detail::Range(start, start + len);
            let args = [uffd, UFFDIO_REGISTER, range];
            program.call(List::Build, IOCTL, &args, "register: UFFDIO_REGISTER", detail);
        }
        // A guard that has made its child holds what waits in a socket that it never reads; one that has
        // adopted it takes the descriptor, which is less: no socket, and no message for life.
        let hold = mine(guard_message::HOLD_MAIN);
        let to_guard: &[u8] = if self.adopted { &hold } else { b"u" };
        let receivers = [
            (FD_GUARD_QUEUE, to_guard, "register: give the userfaultfd to the guard"),
            (FD_PAGER, &b"u"[..], "register: give the userfaultfd to the pager"),
        ];
        let skipped = usize::from(part == Part::Memory);
        for (to, bytes, what) in receivers.into_iter().skip(skipped) {
            let message = program.message(bytes, &[uffd as u32]);
            let (to, len) = (u64::from(self.fd_base) + to as u64, bytes.len() as u64);
            program.call_expect(List::Build, SENDMSG, &[to, message, 0], len, what, Detail::None);
        }
        program.call(List::Build, CLOSE, &[uffd], "register: close", Detail::None);
    }
}
