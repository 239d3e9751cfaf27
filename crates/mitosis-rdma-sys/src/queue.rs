//! Queue pairs (reliable connection) for READs.

use crate::ffi::{Ah, Bind, Qp, QpAttr, QpInit, SendWr, Sge, value};
use crate::{Completions, Device, EndPoint, RdmaError, Slot};
use std::collections::HashMap;
use std::ptr::{NonNull, null_mut};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Requests that one queue pair takes at a time.
pub(crate) const DEPTH: usize = 256;
/// Local acknowledge timeout: 4.096 us * 2^16 = 268 ms; with the retries below a peer that is gone
/// is noticed after some two seconds.
const TIMEOUT: u8 = 16;
/// Times a packet is sent again; seven is for ever with `rdma_rxe`, which then waits for a peer that has
/// dropped the other side.
const RETRIES: u8 = 6;
/// The same of a peer that is not ready to receive, which READs do not ask.
const RETRIES_NOT_READY: u8 = 7;

/// A READ to post.
pub struct Read {
    /// Comes back with the completion.
    pub id: u64,
    /// Address at the peer.
    pub address: u64,
    /// Key of the peer's memory.
    pub rkey: u32,
    /// Bytes, at most those of the slot.
    pub len: u32,
    /// Where it lands.
    pub slot: Slot,
}

/// A queue pair.
pub struct Queue(pub(crate) Arc<Pair>);

/// Shared by a queue and the windows that are bound to it: it is destroyed after them.
pub(crate) struct Pair {
    raw: NonNull<Qp>,
    local: EndPoint,
    device: Device,
    completions: Completions,
    /// By request number: the caller's name of the READ, and where it lands.
    flying: Mutex<HashMap<u64, (u64, Slot)>>,
}

// SAFETY: verbs are thread-safe; what is mutable here is behind a lock.
unsafe impl Send for Pair {}
// SAFETY: as above.
unsafe impl Sync for Pair {}

impl Pair {
    fn flying(&self) -> MutexGuard<'_, HashMap<u64, (u64, Slot)>> {
        self.flying.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The device it is of.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Numbers for so many requests; the first.
    pub fn numbers(&self, count: usize) -> u64 {
        self.completions.0.last.fetch_add(count as u64, Ordering::Relaxed) + 1
    }

    /// Posts requests as one list, with one doorbell.
    ///
    /// # Errors
    /// [`RdmaError::Verb`]: some may have been posted.
    ///
    /// # Safety
    /// What they point to lives until the call returns, and memory that they let the device write is not
    /// given back before they have completed or this is gone.
    pub unsafe fn post(&self, mut list: Vec<SendWr>) -> Result<(), RdmaError> {
        for at in (1..list.len()).rev() {
            let next: *mut SendWr = &mut list[at];
            list[at - 1].next = next;
        }
        let Some(first) = list.first_mut() else { return Ok(()) };
        let mut bad = null_mut();
        // SAFETY: a connected queue pair of an open context; the list lives until the call returns; the
        // rest is the caller's.
        let code = unsafe {
            match self.device.0.context.as_ref().ops.post_send {
                Some(post) => post(self.raw.as_ptr(), first, &mut bad),
                None => libc::ENOSYS,
            }
        };
        if code != 0 { Err(RdmaError::code("ibv_post_send", code)) } else { Ok(()) }
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        // SAFETY: made by us. When it is gone the device writes to no slot of it any more.
        if unsafe { (self.device.0.api.destroy_qp)(self.raw.as_ptr()) } != 0 {
            std::mem::forget(std::mem::take(&mut *self.flying()));
        } else {
            self.completions.unreserve(DEPTH);
        }
    }
}

impl Queue {
    /// A queue pair that is not connected; `psn` is any number.
    ///
    /// # Errors
    /// [`RdmaError`] when the device, or the completion queue, has no room for another.
    pub fn new(device: &Device, completions: &Completions, psn: u32) -> Result<Queue, RdmaError> {
        if !completions.reserve(DEPTH) {
            let cause = "the completion queue serves as many queue pairs as it can".into();
            return Err(RdmaError::Verb { verb: "ibv_create_qp", cause });
        }
        let cq = completions.0.raw.as_ptr();
        let mut init = QpInit {
            qp_context: null_mut(),
            send_cq: cq,
            recv_cq: cq,
            srq: null_mut(),
            max_send_wr: DEPTH as u32,
            max_recv_wr: 1,
            max_send_sge: 1,
            max_recv_sge: 1,
            max_inline: 0,
            qp_type: value::QPT_RC,
            sq_sig_all: 0,
        };
        // SAFETY: domain and completion queue live as long as the result.
        let raw = unsafe { (device.0.api.create_qp)(device.pd(), &mut init) };
        let Some(raw) = NonNull::new(raw) else {
            completions.unreserve(DEPTH);
            return Err(RdmaError::last("ibv_create_qp"));
        };
        // SAFETY: a queue pair just made.
        let qpn = unsafe { raw.as_ref().qp_num };
        let queue = Queue(Arc::new(Pair {
            raw,
            local: device.end_point(qpn, psn & 0xff_ffff),
            device: device.clone(),
            completions: completions.clone(),
            flying: Mutex::default(),
        }));
        queue.init()?;
        Ok(queue)
    }

    /// What the other side must know.
    pub fn local(&self) -> EndPoint {
        self.0.local
    }

    fn modify(&self, mut attr: QpAttr, mask: i32) -> Result<(), RdmaError> {
        let api = &self.0.device.0.api;
        // SAFETY: our queue pair; the mask names fields of `attr` only.
        let code = unsafe { (api.modify_qp)(self.0.raw.as_ptr(), &mut attr, mask) };
        if code != 0 { Err(RdmaError::code("ibv_modify_qp", code)) } else { Ok(()) }
    }

    fn init(&self) -> Result<(), RdmaError> {
        let attr = QpAttr {
            qp_state: value::QPS_INIT,
            port_num: self.0.device.0.port,
            qp_access_flags: value::ACCESS_REMOTE_READ as u32,
            ..QpAttr::default()
        };
        let mask = value::ATTR_STATE | value::ATTR_PKEY | value::ATTR_PORT | value::ATTR_ACCESS;
        self.modify(attr, mask)
    }

    /// Connects to the other side's queue pair, which must be about to do the same.
    ///
    /// # Errors
    /// [`RdmaError::Verb`], for an address that does not resolve for example.
    pub fn connect(&self, peer: &EndPoint) -> Result<(), RdmaError> {
        let device = &self.0.device.0;
        let word = |from: usize| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&peer.gid[from..from + 8]);
            u64::from_ne_bytes(bytes)
        };
        let ah = Ah {
            dgid: [word(0), word(8)],
            sgid_index: device.gid_index,
            hop_limit: 64,
            dlid: peer.lid,
            is_global: 1,
            port_num: device.port,
            ..Ah::default()
        };
        let ready = QpAttr {
            qp_state: value::QPS_RTR,
            path_mtu: u32::from(peer.mtu.min(self.0.local.mtu).clamp(1, 5)),
            dest_qp_num: peer.qpn,
            rq_psn: peer.psn & 0xff_ffff,
            max_dest_rd_atomic: device.reads,
            min_rnr_timer: 12,
            ah,
            ..QpAttr::default()
        };
        let mask = value::ATTR_STATE | value::ATTR_AV | value::ATTR_MTU | value::ATTR_DEST_QPN;
        let mask = mask | value::ATTR_RQ_PSN | value::ATTR_DEST_RD_ATOMIC | value::ATTR_RNR_TIMER;
        self.modify(ready, mask)?;
        let send = QpAttr {
            qp_state: value::QPS_RTS,
            timeout: TIMEOUT,
            retry_cnt: RETRIES,
            rnr_retry: RETRIES_NOT_READY,
            sq_psn: self.0.local.psn,
            max_rd_atomic: device.reads,
            ..QpAttr::default()
        };
        let mask = value::ATTR_STATE | value::ATTR_TIMEOUT | value::ATTR_RETRY;
        let mask = mask | value::ATTR_RNR_RETRY | value::ATTR_SQ_PSN | value::ATTR_RD_ATOMIC;
        self.modify(send, mask)
    }

    /// How many READs it takes now.
    pub fn room(&self) -> usize {
        DEPTH - self.0.flying().len()
    }

    /// Posts READs as one list, with one doorbell. At most [`Queue::room`] of them.
    ///
    /// # Errors
    /// [`RdmaError::Verb`]: some may have been posted; drop the queue.
    pub fn post(&mut self, reads: Vec<Read>) -> Result<(), RdmaError> {
        if reads.len() > self.room() || reads.iter().any(|r| r.len as usize > r.slot.len()) {
            let cause = "too many READs".into();
            return Err(RdmaError::Verb { verb: "ibv_post_send", cause });
        }
        let place = |read: &Read| {
            let (addr, lkey) = read.slot.place();
            Sge { addr, length: read.len, lkey }
        };
        let mut parts: Vec<Sge> = reads.iter().map(place).collect();
        let first = self.0.numbers(reads.len());
        let requests = (first..).zip(reads.iter().zip(&mut parts));
        let list: Vec<SendWr> = requests.map(request).collect();
        self.0.flying().extend((first..).zip(reads.into_iter().map(|read| (read.id, read.slot))));
        // SAFETY: the parts live until the end of this function; the slots are owned by the pair until
        // they complete or it is gone.
        unsafe { self.0.post(list) }
    }

    /// Name and slot of the READ of this queue that has completed, well or not.
    pub fn complete(&mut self, done: &crate::Completion) -> Option<(u64, Slot)> {
        if done.qpn != self.0.local.qpn {
            return None;
        }
        self.0.flying().remove(&done.wr)
    }
}

fn request((wr_id, (read, part)): (u64, (&Read, &mut Sge))) -> SendWr {
    SendWr {
        sg_list: part,
        num_sge: 1,
        remote_addr: read.address,
        rkey: read.rkey,
        ..empty(wr_id, value::WR_RDMA_READ)
    }
}

/// A request that says nothing yet but what it is.
pub(crate) fn empty(wr_id: u64, opcode: u32) -> SendWr {
    SendWr {
        wr_id,
        next: null_mut(),
        sg_list: null_mut(),
        num_sge: 0,
        opcode,
        send_flags: value::SEND_SIGNALED,
        imm_data: 0,
        remote_addr: 0,
        rkey: 0,
        _other: [0; 3],
        bind: Bind { mw: null_mut(), rkey: 0, mr: null_mut(), addr: 0, length: 0, access: 0 },
    }
}
