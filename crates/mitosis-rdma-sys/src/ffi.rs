//! The part of `infiniband/verbs.h` (rdma-core, ABI `IBVERBS_1.x`) that is used, loaded at run time.
//!
//! Layouts are those of x86-64; the offsets were printed by a C program from the header of rdma-core
//! 44 and are asserted below. The ABI of `libibverbs.so.1` has been stable since 2014.

use crate::RdmaError;
use libc::{c_char, c_int, c_void};
use std::ffi::CStr;
use std::mem::{offset_of, size_of};

/// `struct ibv_context`: the inline verbs go through its table.
#[repr(C)]
pub struct Context {
    pub device: *mut c_void,
    pub ops: ContextOps,
    pub cmd_fd: c_int,
    pub async_fd: c_int,
}

/// `struct ibv_context_ops`.
#[repr(C)]
pub struct ContextOps {
    _before: [*mut c_void; 7],
    pub alloc_mw: Option<unsafe extern "C" fn(*mut PdRaw, u32) -> *mut Mw>,
    _bind_mw: *mut c_void,
    pub dealloc_mw: Option<unsafe extern "C" fn(*mut Mw) -> c_int>,
    _create_cq: *mut c_void,
    pub poll_cq: Option<unsafe extern "C" fn(*mut Cq, c_int, *mut Wc) -> c_int>,
    pub req_notify_cq: Option<unsafe extern "C" fn(*mut Cq, c_int) -> c_int>,
    _between: [*mut c_void; 12],
    pub post_send: Option<unsafe extern "C" fn(*mut Qp, *mut SendWr, *mut *mut SendWr) -> c_int>,
    _after: [*mut c_void; 6],
}

/// `struct ibv_pd`.
#[repr(C)]
pub struct PdRaw {
    _context: *mut c_void,
    pub handle: u32,
}
/// Opaque: `struct ibv_cq`.
#[repr(C)]
pub struct Cq(c_void);

/// `struct ibv_mr`.
#[repr(C)]
pub struct Mr {
    pub context: *mut Context,
    pub pd: *mut PdRaw,
    pub addr: *mut c_void,
    pub length: usize,
    pub handle: u32,
    pub lkey: u32,
    pub rkey: u32,
}

/// `struct ibv_mw`.
#[repr(C)]
pub struct Mw {
    _context: *mut c_void,
    _pd: *mut c_void,
    pub rkey: u32,
    _handle: u32,
    _kind: u32,
}

/// `struct ibv_comp_channel`.
#[repr(C)]
pub struct Channel {
    _context: *mut c_void,
    pub fd: c_int,
    _refs: c_int,
}

/// The beginning of `struct ibv_qp`.
#[repr(C)]
pub struct Qp {
    _pointers: [*mut c_void; 6],
    _handle: u32,
    pub qp_num: u32,
}

/// `struct ibv_qp_init_attr`.
#[repr(C)]
pub struct QpInit {
    pub qp_context: *mut c_void,
    pub send_cq: *mut Cq,
    pub recv_cq: *mut Cq,
    pub srq: *mut c_void,
    pub max_send_wr: u32,
    pub max_recv_wr: u32,
    pub max_send_sge: u32,
    pub max_recv_sge: u32,
    pub max_inline: u32,
    pub qp_type: u32,
    pub sq_sig_all: c_int,
}

/// `struct ibv_ah_attr` with its `struct ibv_global_route`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct Ah {
    pub dgid: [u64; 2],
    pub flow_label: u32,
    pub sgid_index: u8,
    pub hop_limit: u8,
    pub traffic_class: u8,
    pub dlid: u16,
    pub sl: u8,
    pub src_path_bits: u8,
    pub static_rate: u8,
    pub is_global: u8,
    pub port_num: u8,
}

/// `struct ibv_qp_attr`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct QpAttr {
    pub qp_state: u32,
    pub cur_qp_state: u32,
    pub path_mtu: u32,
    pub path_mig_state: u32,
    pub qkey: u32,
    pub rq_psn: u32,
    pub sq_psn: u32,
    pub dest_qp_num: u32,
    pub qp_access_flags: u32,
    pub cap: [u32; 5],
    pub ah: Ah,
    pub alt_ah: Ah,
    pub pkey_index: u16,
    pub alt_pkey_index: u16,
    pub en_sqd_async_notify: u8,
    pub sq_draining: u8,
    pub max_rd_atomic: u8,
    pub max_dest_rd_atomic: u8,
    pub min_rnr_timer: u8,
    pub port_num: u8,
    pub timeout: u8,
    pub retry_cnt: u8,
    pub rnr_retry: u8,
    pub alt_port_num: u8,
    pub alt_timeout: u8,
    pub rate_limit: u32,
}

/// `struct ibv_sge`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct Sge {
    pub addr: u64,
    pub length: u32,
    pub lkey: u32,
}

/// `struct ibv_send_wr`, with `wr.rdma` and `bind_mw` of its unions.
#[repr(C)]
pub struct SendWr {
    pub wr_id: u64,
    pub next: *mut SendWr,
    pub sg_list: *mut Sge,
    pub num_sge: c_int,
    pub opcode: u32,
    pub send_flags: u32,
    pub imm_data: u32,
    pub remote_addr: u64,
    pub rkey: u32,
    pub _other: [u64; 3],
    pub bind: Bind,
}

/// `bind_mw` of `struct ibv_send_wr`, with its `struct ibv_mw_bind_info`.
#[repr(C)]
pub struct Bind {
    pub mw: *mut Mw,
    pub rkey: u32,
    pub mr: *mut Mr,
    pub addr: u64,
    pub length: u64,
    pub access: u32,
}

/// `struct ibv_wc`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct Wc {
    pub wr_id: u64,
    pub status: u32,
    pub opcode: u32,
    pub vendor_err: u32,
    pub byte_len: u32,
    pub imm_data: u32,
    pub qp_num: u32,
    pub src_qp: u32,
    pub wc_flags: u32,
    pub _rest: [u32; 2],
}

/// `struct ibv_port_attr`, of which some fields are used, with room for more.
#[repr(C)]
pub struct PortAttr {
    pub state: u32,
    pub max_mtu: u32,
    pub active_mtu: u32,
    pub gid_tbl_len: c_int,
    _words: [u32; 4],
    _keys: u16,
    pub lid: u16,
    _rest: [u8; 92],
}

/// `struct ibv_device_attr`, of which two fields are used.
#[repr(C)]
pub struct DeviceAttr {
    _before: [u8; 116],
    pub cap_flags: u32,
    _between: [u8; 24],
    pub max_qp_rd_atom: c_int,
    _after: [u8; 364],
}

const _: () = {
    assert!(offset_of!(ContextOps, poll_cq) == 88 && offset_of!(ContextOps, post_send) == 200);
    assert!(size_of::<ContextOps>() == 256 && offset_of!(Context, cmd_fd) == 264);
    assert!(offset_of!(Mr, lkey) == 36 && offset_of!(Qp, qp_num) == 52);
    assert!(size_of::<QpInit>() == 64 && offset_of!(QpInit, qp_type) == 52);
    assert!(size_of::<Ah>() == 32 && offset_of!(Ah, dlid) == 24 && offset_of!(Ah, port_num) == 30);
    assert!(size_of::<QpAttr>() == 144 && offset_of!(QpAttr, ah) == 56);
    assert!(offset_of!(QpAttr, max_rd_atomic) == 126 && offset_of!(QpAttr, rnr_retry) == 132);
    assert!(offset_of!(ContextOps, alloc_mw) == 56 && offset_of!(ContextOps, dealloc_mw) == 72);
    assert!(size_of::<SendWr>() == 128 && offset_of!(SendWr, rkey) == 48);
    assert!(offset_of!(SendWr, bind) == 80 && offset_of!(Bind, mr) == 16);
    assert!(offset_of!(Bind, access) == 40 && offset_of!(Mw, rkey) == 16);
    assert!(offset_of!(DeviceAttr, cap_flags) == 116 && size_of::<DeviceAttr>() == 512);
    assert!(size_of::<Wc>() == 48 && offset_of!(Wc, qp_num) == 28 && size_of::<Sge>() == 16);
    assert!(offset_of!(PortAttr, lid) == 34 && offset_of!(Channel, fd) == 8);
};

/// Values of `enum ibv_qp_state`, `ibv_qp_type`, `ibv_wr_opcode` and flags.
pub mod value {
    pub const QPS_INIT: u32 = 1;
    pub const QPS_RTR: u32 = 2;
    pub const QPS_RTS: u32 = 3;
    pub const QPT_RC: u32 = 2;
    pub const ACCESS_LOCAL_WRITE: i32 = 1;
    pub const ACCESS_REMOTE_READ: i32 = 4;
    pub const ACCESS_MW_BIND: i32 = 16;
    pub const WR_RDMA_READ: u32 = 4;
    pub const WR_BIND_MW: u32 = 8;
    pub const MW_TYPE_2: u32 = 2;
    /// `IBV_DEVICE_MEM_WINDOW_TYPE_2A` and `..._2B`.
    pub const WINDOWS_TYPE_2: u32 = 3 << 23;
    pub const SEND_SIGNALED: u32 = 2;
    pub const PORT_ACTIVE: u32 = 4;
    pub const ATTR_STATE: i32 = 1;
    pub const ATTR_ACCESS: i32 = 8;
    pub const ATTR_PKEY: i32 = 16;
    pub const ATTR_PORT: i32 = 32;
    pub const ATTR_AV: i32 = 128;
    pub const ATTR_MTU: i32 = 256;
    pub const ATTR_TIMEOUT: i32 = 512;
    pub const ATTR_RETRY: i32 = 1024;
    pub const ATTR_RNR_RETRY: i32 = 2048;
    pub const ATTR_RQ_PSN: i32 = 4096;
    pub const ATTR_RD_ATOMIC: i32 = 8192;
    pub const ATTR_RNR_TIMER: i32 = 32768;
    pub const ATTR_SQ_PSN: i32 = 65536;
    pub const ATTR_DEST_RD_ATOMIC: i32 = 131_072;
    pub const ATTR_DEST_QPN: i32 = 1_048_576;
}

macro_rules! api {
    ($($name:ident: fn($($arg:ty),*) $(-> $ret:ty)?;)*) => {
        /// The functions of `libibverbs.so.1`; loaded for as long as the program runs.
        pub struct Api {
            $(pub $name: unsafe extern "C" fn($($arg),*) $(-> $ret)?,)*
        }

        impl Api {
            /// Loads the library.
            pub fn load() -> Result<Api, RdmaError> {
                let lib = open()?;
                Ok(Api {
                    $($name: {
                        let found = symbol(lib, concat!("ibv_", stringify!($name), "\0"))?;
                        // SAFETY: the symbol of this name has this signature in verbs.h, and a
                        // function pointer has the size of a data pointer.
                        unsafe {
                            std::mem::transmute::<
                                *mut c_void,
                                unsafe extern "C" fn($($arg),*) $(-> $ret)?,
                            >(found)
                        }
                    },)*
                })
            }
        }
    };
}

api! {
    get_device_list: fn(*mut c_int) -> *mut *mut c_void;
    free_device_list: fn(*mut *mut c_void);
    get_device_name: fn(*mut c_void) -> *const c_char;
    open_device: fn(*mut c_void) -> *mut Context;
    close_device: fn(*mut Context) -> c_int;
    query_device: fn(*mut Context, *mut DeviceAttr) -> c_int;
    query_port: fn(*mut Context, u8, *mut PortAttr) -> c_int;
    query_gid: fn(*mut Context, u8, c_int, *mut [u8; 16]) -> c_int;
    alloc_pd: fn(*mut Context) -> *mut PdRaw;
    dealloc_pd: fn(*mut PdRaw) -> c_int;
    reg_mr: fn(*mut PdRaw, *mut c_void, usize, c_int) -> *mut Mr;
    dereg_mr: fn(*mut Mr) -> c_int;
    create_comp_channel: fn(*mut Context) -> *mut Channel;
    destroy_comp_channel: fn(*mut Channel) -> c_int;
    create_cq: fn(*mut Context, c_int, *mut c_void, *mut Channel, c_int) -> *mut Cq;
    destroy_cq: fn(*mut Cq) -> c_int;
    get_cq_event: fn(*mut Channel, *mut *mut Cq, *mut *mut c_void) -> c_int;
    ack_cq_events: fn(*mut Cq, u32);
    create_qp: fn(*mut PdRaw, *mut QpInit) -> *mut Qp;
    modify_qp: fn(*mut Qp, *mut QpAttr, c_int) -> c_int;
    destroy_qp: fn(*mut Qp) -> c_int;
    wc_status_str: fn(u32) -> *const c_char;
}

fn said() -> String {
    // SAFETY: dlerror returns null or a string that lives until the next call of this thread.
    let text = unsafe { libc::dlerror() };
    if text.is_null() {
        return "unknown error".into();
    }
    // SAFETY: not null, so a string; see above.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

fn open() -> Result<*mut c_void, RdmaError> {
    let name = c"libibverbs.so.1";
    // SAFETY: the name is a string; the library's constructors are those of rdma-core.
    let lib = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
    if lib.is_null() { Err(RdmaError::Library(said())) } else { Ok(lib) }
}

fn symbol(lib: *mut c_void, name: &str) -> Result<*mut c_void, RdmaError> {
    // SAFETY: `lib` came from dlopen and is never closed; `name` ends with a zero byte.
    let found = unsafe { libc::dlsym(lib, name.as_ptr().cast()) };
    if found.is_null() { Err(RdmaError::Library(said())) } else { Ok(found) }
}
