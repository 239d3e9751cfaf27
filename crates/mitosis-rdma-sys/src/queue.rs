//! Queue pairs (reliable connection) for READs.

use crate::ffi::{Ah, Qp, QpAttr, QpInit, SendWr, Sge, value};
use crate::{Completions, EndPoint, Pd, RdmaError, Slot};
use std::collections::HashMap;
use std::ptr::{NonNull, null_mut};
use std::sync::atomic::Ordering;

/// READs that one queue pair takes at a time.
const DEPTH: usize = 128;
/// Local acknowledge timeout: 4.096 us * 2^16 = 268 ms; with the retries below a peer that is gone
/// is noticed after some two seconds.
const TIMEOUT: u8 = 16;
/// Times a packet is sent again.
const RETRIES: u8 = 7;

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
pub struct Queue {
    raw: NonNull<Qp>,
    local: EndPoint,
    pd: Pd,
    completions: Completions,
    /// By request number: the caller's name of the READ, and where it lands.
    flying: Option<HashMap<u64, (u64, Slot)>>,
}

// SAFETY: verbs are thread-safe; what is mutable here needs `&mut self`.
unsafe impl Send for Queue {}
// SAFETY: as above.
unsafe impl Sync for Queue {}

impl Queue {
    /// A queue pair that is not connected; `psn` is any number.
    ///
    /// # Errors
    /// [`RdmaError`] when the device, or the completion queue, has no room for another.
    pub fn new(pd: &Pd, completions: &Completions, psn: u32) -> Result<Queue, RdmaError> {
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
        let device = &pd.0.device;
        // SAFETY: domain and completion queue live as long as the result.
        let raw = unsafe { (device.0.api.create_qp)(pd.0.raw.as_ptr(), &mut init) };
        let Some(raw) = NonNull::new(raw) else {
            completions.unreserve(DEPTH);
            return Err(RdmaError::last("ibv_create_qp"));
        };
        // SAFETY: a queue pair just made.
        let qpn = unsafe { raw.as_ref().qp_num };
        let queue = Queue {
            raw,
            local: device.end_point(qpn, psn & 0xff_ffff),
            pd: pd.clone(),
            completions: completions.clone(),
            flying: Some(HashMap::new()),
        };
        queue.init()?;
        Ok(queue)
    }

    /// What the other side must know.
    pub fn local(&self) -> EndPoint {
        self.local
    }

    fn modify(&self, mut attr: QpAttr, mask: i32) -> Result<(), RdmaError> {
        let api = &self.pd.0.device.0.api;
        // SAFETY: our queue pair; the mask names fields of `attr` only.
        let code = unsafe { (api.modify_qp)(self.raw.as_ptr(), &mut attr, mask) };
        if code != 0 { Err(RdmaError::code("ibv_modify_qp", code)) } else { Ok(()) }
    }

    fn init(&self) -> Result<(), RdmaError> {
        let attr = QpAttr {
            qp_state: value::QPS_INIT,
            port_num: self.pd.0.device.0.port,
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
        let device = &self.pd.0.device.0;
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
            path_mtu: u32::from(peer.mtu.min(self.local.mtu).clamp(1, 5)),
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
            rnr_retry: RETRIES,
            sq_psn: self.local.psn,
            max_rd_atomic: device.reads,
            ..QpAttr::default()
        };
        let mask = value::ATTR_STATE | value::ATTR_TIMEOUT | value::ATTR_RETRY;
        let mask = mask | value::ATTR_RNR_RETRY | value::ATTR_SQ_PSN | value::ATTR_RD_ATOMIC;
        self.modify(send, mask)
    }

    /// How many READs it takes now.
    pub fn room(&self) -> usize {
        DEPTH - self.flying.as_ref().map_or(DEPTH, HashMap::len)
    }

    /// Posts READs as one list, with one doorbell. At most [`Queue::room`] of them.
    ///
    /// # Errors
    /// [`RdmaError::Verb`]: some may have been posted; drop the queue.
    pub fn post(&mut self, reads: Vec<Read>) -> Result<(), RdmaError> {
        let full = || RdmaError::Verb { verb: "ibv_post_send", cause: "too many READs".into() };
        if reads.len() > self.room() || reads.iter().any(|r| r.len as usize > r.slot.len()) {
            return Err(full());
        }
        let place = |read: &Read| {
            let (addr, lkey) = read.slot.place();
            Sge { addr, length: read.len, lkey }
        };
        let mut parts: Vec<Sge> = reads.iter().map(place).collect();
        let count = reads.len() as u64;
        let first = self.completions.0.last.fetch_add(count, Ordering::Relaxed) + 1;
        let requests = (first..).zip(reads.iter().zip(&mut parts));
        let mut list: Vec<SendWr> = requests.map(request).collect();
        for at in (1..list.len()).rev() {
            let next: *mut SendWr = &mut list[at];
            list[at - 1].next = next;
        }
        let flying = self.flying.as_mut().ok_or_else(full)?;
        flying.extend((first..).zip(reads.into_iter().map(|read| (read.id, read.slot))));
        let Some(first) = list.first_mut() else { return Ok(()) };
        let mut bad = null_mut();
        // SAFETY: a connected queue pair of an open context; the list and what it points to live
        // until the call returns; the slots are owned by this queue until they complete.
        let code = unsafe {
            match self.pd.0.device.0.context.as_ref().ops.post_send {
                Some(post) => post(self.raw.as_ptr(), first, &mut bad),
                None => libc::ENOSYS,
            }
        };
        if code != 0 { Err(RdmaError::code("ibv_post_send", code)) } else { Ok(()) }
    }

    /// Name and slot of the READ of this queue that has completed, well or not.
    pub fn complete(&mut self, done: &crate::Completion) -> Option<(u64, Slot)> {
        if done.qpn != self.local.qpn {
            return None;
        }
        self.flying.as_mut()?.remove(&done.wr)
    }
}

fn request((wr_id, (read, part)): (u64, (&Read, &mut Sge))) -> SendWr {
    SendWr {
        wr_id,
        next: null_mut(),
        sg_list: part,
        num_sge: 1,
        opcode: value::WR_RDMA_READ,
        send_flags: value::SEND_SIGNALED,
        imm_data: 0,
        remote_addr: read.address,
        rkey: read.rkey,
        _rest: [0; 9],
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        let api = &self.pd.0.device.0.api;
        // SAFETY: made by us. When it is gone the device writes to no slot of it any more.
        if unsafe { (api.destroy_qp)(self.raw.as_ptr()) } != 0 {
            std::mem::forget(self.flying.take());
        } else {
            self.completions.unreserve(DEPTH);
        }
    }
}
