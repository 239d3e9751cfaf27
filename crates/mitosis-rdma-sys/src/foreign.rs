//! Registering memory of another process.
//!
//! `ibv_reg_mr` registers the caller's memory, and the kernel pins what is mapped in the process that
//! asks. So that process issues the call itself, on our context's descriptor and for our protection
//! domain: `RDMA_VERBS_IOCTL` with `UVERBS_METHOD_INVOKE_WRITE` (rdma/rdma_user_ioctl_cmds.h,
//! rdma/ib_user_verbs.h), which unlike `write(2)` does not ask who opened the device. What it has
//! registered is ours: windows can be opened on it, and it can be read through them, while the process
//! sleeps, and when it has ended, until this side deregisters.

use crate::ffi::{Mr, value};
use crate::{Device, RdmaError};
use std::os::fd::{AsFd, BorrowedFd};

/// `RDMA_VERBS_IOCTL`.
pub const REQUEST: u64 = 0xc018_1b01;
/// Bytes of its argument.
pub const CALL: usize = HEAD + 3 * ATTRIBUTE + IN + OUT;

/// `struct ib_uverbs_ioctl_hdr` without attributes.
const HEAD: usize = 24;
/// `struct ib_uverbs_attr`.
const ATTRIBUTE: usize = 16;
/// `struct ib_uverbs_reg_mr`.
const IN: usize = 40;
/// `struct ib_uverbs_reg_mr_resp`, with what fills its last word.
const OUT: usize = 16;
const OUT_USED: u16 = 12;
/// `IB_USER_VERBS_CMD_REG_MR` and `..._DEREG_MR`.
const REG_MR: u64 = 9;
const DEREG_MR: u64 = 13;
/// `UVERBS_ATTR_CORE_IN`, `..._CORE_OUT` and `..._WRITE_CMD`.
const CORE_IN: u16 = 0;
const CORE_OUT: u16 = 1;
const WRITE_CMD: u16 = 2;
/// More than there are of `enum rdma_driver_id`.
const DRIVERS: u32 = 64;
/// No registered memory has this handle.
const NONE: u32 = u32::MAX;

/// `struct ib_uverbs_attr`, mandatory.
fn attribute(id: u16, len: u16, data: u64) -> [u8; ATTRIBUTE] {
    const MANDATORY: u16 = 1;
    let mut out = [0; ATTRIBUTE];
    for (n, half) in [id, len, MANDATORY, 0].into_iter().enumerate() {
        out[2 * n..2 * n + 2].copy_from_slice(&half.to_ne_bytes());
    }
    out[8..].copy_from_slice(&data.to_ne_bytes());
    out
}

/// `struct ib_uverbs_ioctl_hdr` of `UVERBS_OBJECT_DEVICE`, `UVERBS_METHOD_INVOKE_WRITE`.
fn head(driver: u32, attributes: u16) -> [u8; HEAD] {
    let mut out = [0; HEAD];
    let length = HEAD as u16 + attributes * ATTRIBUTE as u16;
    out[..2].copy_from_slice(&length.to_ne_bytes());
    out[6..8].copy_from_slice(&attributes.to_ne_bytes());
    out[16..20].copy_from_slice(&driver.to_ne_bytes());
    out
}

/// `IB_USER_VERBS_CMD_DEREG_MR`; its input, a handle and nothing else, fits the attribute.
fn deregistering(driver: u32, handle: u32) -> Vec<u8> {
    let mut call = head(driver, 2).to_vec();
    call.extend(attribute(CORE_IN, 4, u64::from(handle)));
    call.extend(attribute(WRITE_CMD, 8, DEREG_MR));
    call
}

impl Device {
    fn deregister(&self, driver: u32, handle: u32) -> Result<(), std::io::Error> {
        let mut call = deregistering(driver, handle);
        // SAFETY: an ioctl of the open device, whose argument lives until it returns. What it
        // deregisters is no memory of this process.
        let done =
            unsafe { libc::ioctl(self.0.context.as_ref().cmd_fd, REQUEST as _, call.as_mut_ptr()) };
        if done < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
    }

    /// The number by which the kernel calls the driver, which each call must name; found by asking for
    /// something that cannot be done: only the right driver's answer is that there is no such thing.
    ///
    /// # Errors
    /// The kernel knows no such calls.
    pub fn driver(&self) -> Result<u32, RdmaError> {
        let known = |driver: &u32| {
            let said = self.deregister(*driver, NONE);
            said.is_err_and(|e| e.raw_os_error() == Some(libc::ENOENT))
        };
        (0..DRIVERS).find(known).ok_or_else(|| RdmaError::Verb {
            verb: "RDMA_VERBS_IOCTL",
            cause: "the kernel has no UVERBS_METHOD_INVOKE_WRITE, or the driver is not known"
                .into(),
        })
    }
}

/// Memory of another process on which windows can be opened. Dropping it deregisters it. The caller sees
/// to it that its owner does not change what is mapped there.
pub struct Foreign {
    start: u64,
    len: u64,
    handle: u32,
    lkey: u32,
    driver: u32,
    device: Device,
}

impl Foreign {
    /// Writes the argument of the call that registers `[start, start + len)` of the process that makes
    /// it, when the argument is at `address` in that process.
    pub fn order(
        device: &Device,
        driver: u32,
        (start, len): (u64, u64),
        address: u64,
        out: &mut [u8],
    ) {
        let body = address + (HEAD + 3 * ATTRIBUTE) as u64;
        let mut call = head(driver, 3).to_vec();
        call.extend(attribute(CORE_IN, IN as u16, body));
        call.extend(attribute(CORE_OUT, OUT_USED, body + IN as u64));
        call.extend(attribute(WRITE_CMD, 8, REG_MR));
        // Response (the attribute says where), start, length, address for peers.
        for word in [body + IN as u64, start, len, start] {
            call.extend(word.to_ne_bytes());
        }
        // SAFETY: the domain is allocated as long as `device` lives.
        let handle = unsafe { device.pd().as_ref() }.map_or(NONE, |pd| pd.handle);
        call.extend(handle.to_ne_bytes());
        // No key of its own opens it to anybody: only windows do.
        call.extend((value::ACCESS_MW_BIND as u32).to_ne_bytes());
        call.resize(CALL, 0);
        out[..CALL].copy_from_slice(&call);
    }

    /// What has been registered: `argument` as the call, which succeeded, left it.
    pub fn registered(
        device: &Device,
        driver: u32,
        (start, len): (u64, u64),
        argument: &[u8],
    ) -> Foreign {
        let word = |n: usize| {
            let at = HEAD + 3 * ATTRIBUTE + IN + 4 * n;
            let bytes = argument.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
            bytes.map_or(NONE, u32::from_ne_bytes)
        };
        Foreign { start, len, handle: word(0), lkey: word(1), driver, device: device.clone() }
    }

    /// What the library would have made of it, had it made the registration itself. Providers take what
    /// a window needs to know from here.
    pub(crate) fn region(&self) -> Mr {
        Mr {
            context: self.device.0.context.as_ptr(),
            pd: self.device.pd(),
            addr: self.start as *mut libc::c_void,
            length: self.len as usize,
            handle: self.handle,
            lkey: self.lkey,
            rkey: NONE,
        }
    }

    /// Where it is, in its process and for peers.
    pub(crate) fn place(&self) -> (u64, u64) {
        (self.start, self.len)
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        // Fails only when the device is gone, and the registration with it.
        let _ = self.device.deregister(self.driver, self.handle);
    }
}

/// The descriptor on which calls are made.
impl AsFd for Device {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: open as long as the context, which `self` holds.
        unsafe { BorrowedFd::borrow_raw(self.0.context.as_ref().cmd_fd) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_that_deregisters_has_the_layout_of_the_header_files() {
        let call = deregistering(14, 7);
        assert_eq!(call.len(), HEAD + 2 * ATTRIBUTE);
        // Length, object, method, number of attributes; the driver.
        assert_eq!(call[..8], [56, 0, 0, 0, 0, 0, 2, 0]);
        assert_eq!(call[16..20], [14, 0, 0, 0]);
        assert_eq!(call[24..40], [0, 0, 4, 0, 1, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(call[40..56], [2, 0, 8, 0, 1, 0, 0, 0, 13, 0, 0, 0, 0, 0, 0, 0]);
    }
}
