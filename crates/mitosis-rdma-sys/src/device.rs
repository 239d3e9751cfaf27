//! Devices, protection domains, completion queues.

use crate::RdmaError;
use crate::ffi::{Api, Channel, Context, Cq, DeviceAttr, PdRaw, PortAttr, Wc, value};
use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// Entries of a completion queue.
const ENTRIES: usize = 4096;
/// Most READs in flight that this side asks of one peer; also what it lets a peer have.
const READS_MAX: u8 = 16;

/// An open device with the port and address used. Clones share it.
#[derive(Clone)]
pub struct Device(pub(crate) Arc<Open>);

pub(crate) struct Open {
    pub api: Api,
    pub context: NonNull<Context>,
    name: String,
    pub port: u8,
    pub gid_index: u8,
    gid: [u8; 16],
    lid: u16,
    mtu: u8,
    pub reads: u8,
}

// SAFETY: verbs are thread-safe (ibv_open_device(3) and rdma-core's "thread safe by default").
unsafe impl Send for Open {}
// SAFETY: as above.
unsafe impl Sync for Open {}

impl Drop for Open {
    fn drop(&mut self) {
        // SAFETY: opened by us, and everything made of it holds an Arc of this.
        unsafe { (self.api.close_device)(self.context.as_ptr()) };
    }
}

/// What one side of a connection must know of the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndPoint {
    /// Number of the queue pair.
    pub qpn: u32,
    /// First packet sequence number, 24 bits.
    pub psn: u32,
    /// Address of the port.
    pub gid: [u8; 16],
    /// Local identifier (InfiniBand; 0 on Ethernet).
    pub lid: u16,
    /// Path MTU as `enum ibv_mtu` (1: 256 bytes, to 5: 4096).
    pub mtu: u8,
}

fn attribute(name: &str, port: u8, file: &str) -> String {
    let path = format!("/sys/class/infiniband/{name}/ports/{port}/{file}");
    std::fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

impl Device {
    /// Opens a device: `NAME[:PORT[:GID_INDEX]]`, or the first one with an active port. Without an
    /// index the first RoCE v2 address that maps an IPv4 one is used, else the first of all.
    ///
    /// # Errors
    /// [`RdmaError`]: no library, no device, no active port, or a verb that failed.
    pub fn open(wanted: Option<&str>) -> Result<Device, RdmaError> {
        let api = Api::load()?;
        let mut parts = wanted.unwrap_or_default().split(':');
        let name = parts.next().unwrap_or_default();
        let mut number = || parts.next().map(str::parse::<u8>).transpose();
        let bad = |_| RdmaError::NoDevice(format!(": {wanted:?} is not NAME[:PORT[:GID]]"));
        let (port, gid) = (number().map_err(bad)?.unwrap_or(1), number().map_err(bad)?);
        let (context, name) = open_by_name(&api, name)?;
        let mut open = Open {
            api,
            context,
            name,
            port,
            gid_index: 0,
            gid: [0; 16],
            lid: 0,
            mtu: 1,
            reads: READS_MAX,
        };
        open.query(gid)?;
        Ok(Device(Arc::new(open)))
    }

    /// Name, port and index of the address, for people.
    pub fn describe(&self) -> String {
        format!("{}:{}:{}", self.0.name, self.0.port, self.0.gid_index)
    }

    /// A new protection domain.
    ///
    /// # Errors
    /// [`RdmaError::Verb`].
    pub fn pd(&self) -> Result<Pd, RdmaError> {
        // SAFETY: an open context.
        let raw = unsafe { (self.0.api.alloc_pd)(self.0.context.as_ptr()) };
        let raw = NonNull::new(raw).ok_or_else(|| RdmaError::last("ibv_alloc_pd"))?;
        Ok(Pd(Arc::new(PdInner { raw, device: self.clone() })))
    }

    pub(crate) fn end_point(&self, qpn: u32, psn: u32) -> EndPoint {
        EndPoint { qpn, psn, gid: self.0.gid, lid: self.0.lid, mtu: self.0.mtu }
    }
}

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Device({})", self.describe())
    }
}

fn open_by_name(api: &Api, wanted: &str) -> Result<(NonNull<Context>, String), RdmaError> {
    let mut count = 0;
    // SAFETY: a null list is an error, told by errno.
    let list = unsafe { (api.get_device_list)(&mut count) };
    if list.is_null() {
        return Err(RdmaError::last("ibv_get_device_list"));
    }
    let mut found = None;
    let mut names = Vec::new();
    for at in 0..usize::try_from(count).unwrap_or(0) {
        // SAFETY: the list has `count` devices, whose names live as long as the list.
        let (device, name) = unsafe {
            let device = *list.add(at);
            (device, CStr::from_ptr((api.get_device_name)(device)).to_string_lossy().into_owned())
        };
        let active = wanted.is_empty() && attribute(&name, 1, "state").contains("ACTIVE");
        names.push(name.clone());
        if active || name == wanted {
            // SAFETY: a device of the list.
            found = Some((unsafe { (api.open_device)(device) }, name));
            break;
        }
    }
    // SAFETY: from ibv_get_device_list; an open context does not need it.
    unsafe { (api.free_device_list)(list) };
    match found {
        Some((context, name)) => {
            let context = NonNull::new(context).ok_or_else(|| RdmaError::last("ibv_open_device"));
            context.map(|context| (context, name))
        }
        None if names.is_empty() => Err(RdmaError::NoDevice(String::new())),
        None if wanted.is_empty() => {
            Err(RdmaError::NoDevice(format!(" with an active port: {}", names.join(" "))))
        }
        None => Err(RdmaError::NoDevice(format!(" {wanted:?}; there are: {}", names.join(" ")))),
    }
}

impl Open {
    fn query(&mut self, gid: Option<u8>) -> Result<(), RdmaError> {
        let context = self.context.as_ptr();
        let mut port = MaybeUninit::<PortAttr>::zeroed();
        // SAFETY: an open context and room for the answer; all bytes are numbers.
        let (code, port) = unsafe {
            let code = (self.api.query_port)(context, self.port, port.as_mut_ptr());
            (code, port.assume_init())
        };
        if code != 0 {
            return Err(RdmaError::code("ibv_query_port", code));
        }
        if port.state != value::PORT_ACTIVE {
            let (name, number) = (&self.name, self.port);
            return Err(RdmaError::NoDevice(format!(": port {number} of {name} is not active")));
        }
        let mut device = MaybeUninit::<DeviceAttr>::zeroed();
        // SAFETY: an open context and more room than the answer takes; all bytes are numbers.
        let (code, device) = unsafe {
            let code = (self.api.query_device)(context, device.as_mut_ptr());
            (code, device.assume_init())
        };
        if code != 0 {
            return Err(RdmaError::code("ibv_query_device", code));
        }
        self.reads = u8::try_from(device.max_qp_rd_atom).unwrap_or(READS_MAX).clamp(1, READS_MAX);
        (self.lid, self.mtu) = (port.lid, port.active_mtu.clamp(1, 5) as u8);
        let table = u8::try_from(port.gid_tbl_len).unwrap_or(u8::MAX);
        self.gid_index = gid.unwrap_or_else(|| self.best_gid(table));
        let index = i32::from(self.gid_index);
        // SAFETY: an open context and room for the answer.
        let code = unsafe { (self.api.query_gid)(context, self.port, index, &mut self.gid) };
        if code != 0 { Err(RdmaError::code("ibv_query_gid", code)) } else { Ok(()) }
    }

    /// The first RoCE v2 address that maps an IPv4 one; else the first RoCE v2; else the first.
    fn best_gid(&self, table: u8) -> u8 {
        let v2 = |index: &u8| {
            attribute(&self.name, self.port, &format!("gid_attrs/types/{index}")) == "RoCE v2"
        };
        let v4 = |index: &u8| {
            let gid = attribute(&self.name, self.port, &format!("gids/{index}"));
            gid.starts_with("0000:0000:0000:0000:0000:ffff:")
        };
        let mut all = (0..table).filter(v2);
        all.clone().find(v4).or_else(|| all.next()).unwrap_or(0)
    }
}

/// A protection domain: memory of one is out of reach for queue pairs of another.
#[derive(Clone)]
pub struct Pd(pub(crate) Arc<PdInner>);

pub(crate) struct PdInner {
    pub raw: NonNull<PdRaw>,
    pub device: Device,
}

// SAFETY: verbs are thread-safe.
unsafe impl Send for PdInner {}
// SAFETY: as above.
unsafe impl Sync for PdInner {}

impl Drop for PdInner {
    fn drop(&mut self) {
        // SAFETY: made by us; memory and queue pairs of it hold an Arc of this.
        unsafe { (self.device.0.api.dealloc_pd)(self.raw.as_ptr()) };
    }
}

impl Pd {
    /// The device it is of.
    pub fn device(&self) -> &Device {
        &self.0.device
    }
}

impl std::fmt::Debug for Pd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Pd")
    }
}

/// The end of a posted READ.
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
    /// A queue of 4096 entries.
    ///
    /// # Errors
    /// [`RdmaError::Verb`].
    pub fn new(device: &Device) -> Result<Completions, RdmaError> {
        Completions::with(device, ENTRIES)
    }

    /// A queue of so many entries: 128 for each queue pair that it is to serve.
    ///
    /// # Errors
    /// [`RdmaError::Verb`].
    pub fn with(device: &Device, entries: usize) -> Result<Completions, RdmaError> {
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
