//! Devices.

use crate::RdmaError;
use crate::ffi::{Api, Context, DeviceAttr, PdRaw, PortAttr, value};
use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::ptr::NonNull;
use std::sync::Arc;

/// Most READs in flight that this side asks of one peer; also what it lets a peer have.
const READS_MAX: u8 = 16;

/// An open device with the port and address used, and its one protection domain: what a peer may read is
/// decided by windows. Clones share it.
#[derive(Clone)]
pub struct Device(pub(crate) Arc<Open>);

pub(crate) struct Open {
    pub api: Api,
    pub context: NonNull<Context>,
    /// Made right after the device was opened; `None` until then.
    pd: Option<NonNull<PdRaw>>,
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
        // SAFETY: both made by us, and everything made of them holds an Arc of this.
        unsafe {
            if let Some(pd) = self.pd {
                (self.api.dealloc_pd)(pd.as_ptr());
            }
            (self.api.close_device)(self.context.as_ptr());
        }
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
            pd: None,
            name,
            port,
            gid_index: 0,
            gid: [0; 16],
            lid: 0,
            mtu: 1,
            reads: READS_MAX,
        };
        open.query(gid)?;
        // SAFETY: an open context.
        let pd = unsafe { (open.api.alloc_pd)(open.context.as_ptr()) };
        open.pd = Some(NonNull::new(pd).ok_or_else(|| RdmaError::last("ibv_alloc_pd"))?);
        Ok(Device(Arc::new(open)))
    }

    /// Name, port and index of the address, for people.
    pub fn describe(&self) -> String {
        format!("{}:{}:{}", self.0.name, self.0.port, self.0.gid_index)
    }

    /// The protection domain; null only before [`Device::open`] has made it.
    pub(crate) fn pd(&self) -> *mut PdRaw {
        self.0.pd.map_or(std::ptr::null_mut(), NonNull::as_ptr)
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
        if device.cap_flags & value::WINDOWS_TYPE_2 == 0 {
            let why = format!(" of use: {} has no memory windows of type 2", self.name);
            return Err(RdmaError::NoDevice(why));
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
