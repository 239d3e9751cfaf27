//! Contexts of asynchronous I/O (`io_setup(2)`): the id of one is the address of its ring, and the
//! kernel follows a ring that is moved.

use mitosis_descriptor::Descriptor;
use mitosis_state::{Detail, List, Program, op};
use mitosis_stub::abi::{OP_EXPECT, OP_LOAD};

const MREMAP: u16 = 25;
const IO_SETUP: u16 = 206;
const MREMAP_MAYMOVE_FIXED: u64 = 3;

/// Makes them, when all else is mapped. The kernel makes room for twice as many events as it is asked
/// for, and two (fs/aio.c, `ioctx_alloc` and `aio_setup_ring`), but never less than for its CPUs.
pub(crate) fn make(program: &mut Program, descriptor: &Descriptor, slot: u8) {
    for (number, ring) in descriptor.rare.rings.iter().enumerate() {
        let detail = || Detail::Range(ring.start, ring.end);
        let cell = program.words(&[0]);
        let asked = u64::from(ring.events.saturating_sub(2) / 2);
        let args = [asked, cell];
        program.call(List::Build, IO_SETUP, &args, "register: io_setup", detail());
        let mut load = op(0, OP_LOAD, &[cell]);
        load.save = slot;
        program.push(List::Build, load, "register: the new ring for", detail());
        // Its number, and its length: with more CPUs it could be another.
        let mut same = op(0, OP_LOAD | OP_EXPECT | 1, &[0]);
        (same.slot, same.expect) = (slot, number as u64 | u64::from(ring.events) << 32);
        program.push(List::Build, same, "register: the length of", detail());
        let len = ring.end - ring.start;
        let mut put = op(MREMAP, OP_EXPECT | 1, &[0, len, len, MREMAP_MAYMOVE_FIXED, ring.start]);
        (put.slot, put.expect) = (slot, ring.start);
        program.push(List::Build, put, "register: mremap to", detail());
    }
}
