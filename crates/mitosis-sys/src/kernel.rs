//! What kernels differ in that a process can hold.

use std::ffi::c_void;

/// Features that came with some version of Linux, or that a configuration lacks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Kernel {
    /// A process can choose the ids of its timers (`PR_TIMER_CREATE_RESTORE_IDS`, 6.15).
    pub timer_ids: bool,
    /// `mseal(2)` (6.10).
    pub seals: bool,
    /// `MAP_DROPPABLE` (6.11).
    pub droppable: bool,
    /// `MADV_GUARD_INSTALL` (6.13).
    pub guards: bool,
    /// `PR_SET_MDWE` (6.3).
    pub mdwe: bool,
    /// `PR_SET_MEMORY_MERGE` (6.4, with `CONFIG_KSM`).
    pub merge: bool,
    /// Bytes of the largest `rseq` area that can be registered; 32 before 6.3.
    pub rseq_bytes: u32,
}

impl Kernel {
    /// Of a kernel that has everything.
    pub const FULL: Kernel = Kernel {
        timer_ids: true,
        seals: true,
        droppable: true,
        guards: true,
        mdwe: true,
        merge: true,
        rseq_bytes: u32::MAX,
    };

    /// Asks the running one. Changes nothing that lasts.
    pub fn probe() -> Kernel {
        const PR_GET_MDWE: i32 = 66;
        const PR_GET_MEMORY_MERGE: i32 = 68;
        const PR_TIMER_CREATE_RESTORE_IDS: i32 = 77;
        const PR_TIMER_CREATE_RESTORE_IDS_GET: u64 = 2;
        const SYS_MSEAL: i64 = 462;
        const MADV_GUARD_INSTALL: i32 = 102;
        const MAP_DROPPABLE: i32 = 8;
        /// The size of the first `struct rseq`, which every kernel takes.
        const RSEQ_BYTES: u64 = 32;
        const AT_RSEQ_FEATURE_SIZE: u64 = 27;
        const NO_FLAGS: u64 = 0;
        // SAFETY: plain integers; these only ask.
        let asks = |what: i32, how: u64| unsafe { libc::prctl(what, how, 0u64, 0u64, 0u64) >= 0 };
        // SAFETY: seals nothing: the range is empty.
        let seals = unsafe { libc::syscall(SYS_MSEAL, 0u64, 0u64, NO_FLAGS) == 0 };
        // SAFETY: plain integers.
        let rseq = unsafe { libc::getauxval(AT_RSEQ_FEATURE_SIZE) };
        let page = |kind: i32, then: &dyn Fn(*mut c_void) -> bool| {
            let (prot, flags) = (libc::PROT_READ | libc::PROT_WRITE, kind | libc::MAP_ANONYMOUS);
            // SAFETY: a page of its own, which nothing else knows of, and which is unmapped again.
            unsafe {
                let at = libc::mmap(std::ptr::null_mut(), 4096, prot, flags, -1, 0);
                at != libc::MAP_FAILED && {
                    let good = then(at);
                    libc::munmap(at, 4096);
                    good
                }
            }
        };
        Kernel {
            timer_ids: asks(PR_TIMER_CREATE_RESTORE_IDS, PR_TIMER_CREATE_RESTORE_IDS_GET),
            seals,
            droppable: page(MAP_DROPPABLE, &|_| true),
            // SAFETY: the page is the probe's own.
            guards: page(libc::MAP_PRIVATE, &|at| unsafe {
                libc::madvise(at, 4096, MADV_GUARD_INSTALL) == 0
            }),
            mdwe: asks(PR_GET_MDWE, 0),
            merge: asks(PR_GET_MEMORY_MERGE, 0),
            rseq_bytes: rseq.max(RSEQ_BYTES).next_multiple_of(RSEQ_BYTES) as u32,
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_kernel_of_today_has_what_came_with_its_version() {
        let uname = rustix::system::uname();
        let release = uname.release().to_string_lossy().into_owned();
        let mut numbers = release.split('.').map(|n| n.parse::<u32>().unwrap_or(0));
        let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
        let kernel = super::Kernel::probe();
        assert_eq!(kernel.seals, version >= (6, 10), "{kernel:?}");
        assert_eq!(kernel.droppable, version >= (6, 11), "{kernel:?}");
        assert_eq!(kernel.guards, version >= (6, 13), "{kernel:?}");
        assert_eq!(kernel.mdwe, version >= (6, 3), "{kernel:?}");
        assert!(kernel.rseq_bytes >= 32, "{kernel:?}");
    }
}
