//! Completion queues.

use crate::ffi::{Channel, Cq, Wc};
use crate::queue::DEPTH;
use crate::{Device, RdmaError};
use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// The end of a posted request.
#[derive(Debug)]
pub struct Completion {
    pub(crate) wr: u64,
    pub(crate) qpn: u32,
    /// `None`: it succeeded. Else what the device says, with the number of the status.
    pub failed: Option<String>,
}

/// A completion queue with a descriptor that becomes readable when something has completed.
#[derive(Clone)]
pub struct Completions(pub(crate) Arc<CqInner>);

pub(crate) struct CqInner {
    pub raw: NonNull<Cq>,
    channel: NonNull<Channel>,
    pub device: Device,
    entries: usize,
    reserved: AtomicUsize,
    /// Last request number given: none is used twice, so that no completion is taken for another.
    pub last: AtomicU64,
}

// SAFETY: verbs are thread-safe.
unsafe impl Send for CqInner {}
// SAFETY: as above.
unsafe impl Sync for CqInner {}

impl Drop for CqInner {
    fn drop(&mut self) {
        // SAFETY: made by us; queue pairs hold an Arc of this, and all events were acknowledged.
        unsafe {
            (self.device.0.api.destroy_cq)(self.raw.as_ptr());
            (self.device.0.api.destroy_comp_channel)(self.channel.as_ptr());
        }
    }
}

impl Completions {
    /// A queue with room for so many queue pairs at a time.
    ///
    /// # Errors
    /// [`RdmaError::Verb`].
    pub fn new(device: &Device, queues: usize) -> Result<Completions, RdmaError> {
        let entries = queues * DEPTH;
        let (api, context) = (&device.0.api, device.0.context.as_ptr());
        // SAFETY: an open context.
        let channel = unsafe { (api.create_comp_channel)(context) };
        let channel =
            NonNull::new(channel).ok_or_else(|| RdmaError::last("ibv_create_comp_channel"))?;
        // SAFETY: an open context and channel; no user context.
        let raw = unsafe {
            let flags = libc::fcntl(channel.as_ref().fd, libc::F_GETFL);
            libc::fcntl(channel.as_ref().fd, libc::F_SETFL, flags | libc::O_NONBLOCK);
            (api.create_cq)(context, entries as i32, std::ptr::null_mut(), channel.as_ptr(), 0)
        };
        let Some(raw) = NonNull::new(raw) else {
            let error = RdmaError::last("ibv_create_cq");
            // SAFETY: made above, used by nothing.
            unsafe { (api.destroy_comp_channel)(channel.as_ptr()) };
            return Err(error);
        };
        let (reserved, last) = (AtomicUsize::new(0), AtomicU64::new(0));
        let device = device.clone();
        let queue =
            Completions(Arc::new(CqInner { raw, channel, device, entries, reserved, last }));
        queue.arm()?;
        Ok(queue)
    }

    /// Sets room aside for a queue pair; `false`: there is none.
    pub(crate) fn reserve(&self, entries: usize) -> bool {
        let taken = self.0.reserved.fetch_add(entries, Ordering::AcqRel) + entries;
        if taken > self.0.entries {
            self.0.reserved.fetch_sub(entries, Ordering::AcqRel);
        }
        taken <= self.0.entries
    }

    pub(crate) fn unreserve(&self, entries: usize) {
        self.0.reserved.fetch_sub(entries, Ordering::AcqRel);
    }

    /// Asks for an event at the next completion.
    fn arm(&self) -> Result<(), RdmaError> {
        let raw = self.0.raw.as_ptr();
        // SAFETY: the context is open, and its provider has set the table.
        let code = unsafe {
            match self.0.device.0.context.as_ref().ops.req_notify_cq {
                Some(notify) => notify(raw, 0),
                None => libc::ENOSYS,
            }
        };
        if code != 0 { Err(RdmaError::code("ibv_req_notify_cq", code)) } else { Ok(()) }
    }

    /// Takes the events that made the descriptor readable, asks for the next one, and then takes
    /// all completions: none can fall between.
    ///
    /// # Errors
    /// [`RdmaError::Verb`]; the device is of no more use.
    pub fn poll(&self, out: &mut Vec<Completion>) -> Result<(), RdmaError> {
        let api = &self.0.device.0.api;
        let (mut cq, mut context) = (std::ptr::null_mut(), std::ptr::null_mut());
        let mut events = 0;
        // SAFETY: our channel, which does not block, and room for the answers.
        while unsafe { (api.get_cq_event)(self.0.channel.as_ptr(), &mut cq, &mut context) } == 0 {
            events += 1;
        }
        if events > 0 {
            // SAFETY: so many events of this queue were taken.
            unsafe { (api.ack_cq_events)(self.0.raw.as_ptr(), events) };
            self.arm()?;
        }
        self.take(out)
    }

    fn take(&self, out: &mut Vec<Completion>) -> Result<(), RdmaError> {
        loop {
            let mut batch = [Wc::default(); 32];
            let (raw, room) = (self.0.raw.as_ptr(), batch.len() as i32);
            // SAFETY: the context is open and has its table; `batch` has `room` entries.
            let got = unsafe {
                match self.0.device.0.context.as_ref().ops.poll_cq {
                    Some(poll) => poll(raw, room, batch.as_mut_ptr()),
                    None => -1,
                }
            };
            let got = usize::try_from(got).map_err(|_| RdmaError::last("ibv_poll_cq"))?;
            for wc in &batch[..got.min(batch.len())] {
                let failed = (wc.status != 0).then(|| self.status(wc));
                out.push(Completion { wr: wc.wr_id, qpn: wc.qp_num, failed });
            }
            if got < batch.len() {
                return Ok(());
            }
        }
    }

    fn status(&self, wc: &Wc) -> String {
        // SAFETY: returns a static string for every number.
        let text = unsafe { CStr::from_ptr((self.0.device.0.api.wc_status_str)(wc.status)) };
        format!("{} (status {}, vendor {:#x})", text.to_string_lossy(), wc.status, wc.vendor_err)
    }
}

impl AsFd for Completions {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the channel and its descriptor live as long as `self`.
        unsafe { BorrowedFd::borrow_raw(self.0.channel.as_ref().fd) }
    }
}
