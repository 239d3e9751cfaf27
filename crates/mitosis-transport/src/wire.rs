//! Frames between nodes.
//!
//! Every frame is a header of 32 bytes, little endian, followed by `length` bytes of body:
//!
//! ```text
//!  0 length u32 | 4 kind u8 | 5 zero[3] | 8 tag u64 | 16 a u32 | 20 b u32 | 24 c u64
//! ```
//!
//! Reads and data use the header alone and raw pages; the rare control frames have a postcard
//! body. A decoder bounds every length by the kind before it reads or allocates anything.

use crate::{ReadError, SeedState};
use mitosis_descriptor::{Secret, SeedId};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// Protocol version spoken by this build.
pub const VERSION: u32 = 5;
/// Bytes of a frame's header.
pub const HEADER: usize = 32;
/// Bytes of a page.
pub const PAGE: usize = mitosis_descriptor::PAGE_SIZE as usize;
/// Pages of a trail that are asked for at a time. Whoever keeps a trail in such parts, each ascending,
/// finds most questions answered by one of them.
pub const GATHERED: usize = 128;
/// Most pages in one read.
pub const READ_PAGES_MAX: u32 = 512;
/// Most pages in one data frame.
pub const DATA_PAGES_MAX: u32 = 512;
/// Most bytes in the body of a request.
pub const REQUEST_BODY_MAX: usize = 256;
/// Most bytes in the body of a control answer other than a descriptor.
pub const ANSWER_BODY_MAX: usize = 64 << 10;
/// Most bytes of a [`Kind::Learn`].
pub const LEARN_BODY_MAX: usize = 16 << 10;
/// Most pages in a [`Kind::Learn`]: what fits the body, however far apart.
pub const LEARN_PAGES_MAX: usize = LEARN_BODY_MAX / PAGE_BYTES_MAX - 1;
/// Most bytes of a [`Kind::Trail`] or a [`Kind::WorkingSet`].
pub const PAGES_BODY_MAX: usize = 256 << 10;
/// Most pages of a trail, 128 MiB of memory: what fits the body, however far apart.
pub const TRAIL_PAGES_MAX: usize = 32 << 10;
/// Most pages of a [`Kind::WorkingSet`].
pub const WORKING_SET_MAX: usize = TRAIL_PAGES_MAX;
/// Most pages of a [`Kind::Gather`].
pub const GATHER_PAGES_MAX: usize = 512;
/// Most bytes that one page takes in a [`Pages`].
const PAGE_BYTES_MAX: usize = 8;
const _: () = assert!((TRAIL_PAGES_MAX - 1) * PAGE_BYTES_MAX < PAGES_BODY_MAX);
const _: () = assert!(GATHER_PAGES_MAX <= LEARN_PAGES_MAX);
/// How many of them a child waits for that is made from nothing; the others come while it runs.
pub const WORKING_SET_FIRST: usize = 192;
/// Most bytes of a descriptor.
pub const DESCRIPTOR_MAX: usize = 64 << 20;
/// A descriptor of no more bytes is not worth a READ where there is a choice: its queue pair has to be
/// made.
pub const DESCRIPTOR_INLINE: u32 = 256 << 10;
/// Most bytes of a descriptor that are registered.
pub const DESCRIPTOR_REGISTERED_MAX: usize = 16 << 20;
/// Most seeds one connection may have open.
pub const HANDLES_MAX: usize = 4096;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// First frame of each side: body [`Hello`].
    Hello = 1,
    /// Request of a descriptor: body [`ForkAsk`]; `tag`.
    Fork = 2,
    /// Answer: the descriptor's bytes; `tag`.
    Descriptor = 3,
    /// The one refusal: `tag` of a fork or a lease, or `a` = handle of an open (`b` = 1).
    Refused = 4,
    /// Opens a seed: `a` = handle, body [`Access`]. Answered only when refused.
    Open = 5,
    /// Closes a handle: `a`. Not answered.
    Close = 6,
    /// Reads pages: `tag`, `a` = handle, `b` = count, `c` = first page.
    Read = 7,
    /// Pages: `tag`, `a` = index of the first page within the read, `b` = count; raw pages.
    Data = 8,
    /// A failed read: `tag`, body [`ReadError`].
    Error = 9,
    /// Asks for [`Kind::Pong`].
    Ping = 10,
    /// Body [`Pong`].
    Pong = 11,
    /// Pages that a child touched, in order: `a` = handle, body [`Pages`]. Not answered.
    Learn = 12,
    /// What earlier children touched, or the parent has written, sent after an open: `a` = handle,
    /// `b` = 1 if a child has told, body [`Pages`].
    Trail = 13,
    /// Answer to [`Kind::Begin`]: which pages that are: `tag`, body [`Pages`], ascending. These pages
    /// follow in this order, as [`Kind::Data`] with the same `tag`, or [`Kind::Error`].
    WorkingSet = 15,
    /// Asks for the right to start children of a seed without further questions for a while: `tag`,
    /// body [`Access`].
    Lease = 16,
    /// Answer: `tag`, `a` = milliseconds from the question on, `b` = pages of the working set so far.
    Leased = 17,
    /// Asks for the image of the vdso of the seed's node: `tag`, body [`Access`]. Answered by
    /// [`Kind::VdsoImage`] or [`Kind::Refused`].
    Vdso = 18,
    /// The image; `tag`.
    VdsoImage = 19,
    /// Reads single pages: `tag`, `a` = handle, body [`Pages`], which are answered in this order as
    /// those of a [`Kind::Read`].
    Gather = 20,
    /// Asks for a part of the working set: `tag`, `a` = pages of it, in the order in which it grew, that
    /// the asking node has, `b` = up to how many it wants to have, body [`Access`]. Answered by
    /// [`Kind::WorkingSet`] or [`Kind::Refused`].
    Begin = 21,
    /// About RDMA: `a` = handle, body [`RdmaAsk`]. Answered by [`Kind::RdmaAnswer`].
    Rdma = 32,
    /// `a` = handle, body [`RdmaSaid`].
    RdmaAnswer = 33,
    /// Answer to a fork, instead of [`Kind::Descriptor`]: where the descriptor can be read; `tag`, clocks
    /// as there, body [`RdmaPlace`].
    DescriptorAt = 34,
}

impl Kind {
    fn from_u8(value: u8) -> Option<Kind> {
        use Kind::*;
        let old = [Hello, Fork, Descriptor, Refused, Open, Close, Read, Data, Error, Ping, Pong];
        let all = old.into_iter().chain([Learn, Trail, WorkingSet, Lease, Leased]);
        let all = all.chain([Vdso, VdsoImage, Gather, Begin, Rdma, RdmaAnswer, DescriptorAt]);
        all.into_iter().find(|k| *k as u8 == value)
    }

    fn body_max(self) -> usize {
        match self {
            Kind::Hello | Kind::Fork | Kind::Open | Kind::Rdma => REQUEST_BODY_MAX,
            Kind::Lease | Kind::Vdso | Kind::Begin => REQUEST_BODY_MAX,
            Kind::Refused | Kind::Close | Kind::Read | Kind::Ping | Kind::Leased => 0,
            Kind::Descriptor => DESCRIPTOR_MAX,
            Kind::Data => DATA_PAGES_MAX as usize * PAGE,
            Kind::Learn | Kind::Gather => LEARN_BODY_MAX,
            Kind::Trail | Kind::WorkingSet => PAGES_BODY_MAX,
            Kind::Error | Kind::Pong | Kind::VdsoImage | Kind::RdmaAnswer => ANSWER_BODY_MAX,
            Kind::DescriptorAt => REQUEST_BODY_MAX,
        }
    }
}

/// Why bytes are not a frame.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// Unknown kind.
    #[error("unknown frame kind {0}")]
    Kind(u8),
    /// Longer than its kind allows.
    #[error("frame of {length} bytes, {kind:?} allows {limit}")]
    TooLong {
        /// Kind of the frame.
        kind: Kind,
        /// Announced length.
        length: usize,
        /// Limit of the kind.
        limit: usize,
    },
    /// A field contradicts another one.
    #[error("frame {0:?}: {1}")]
    Field(Kind, &'static str),
    /// The body does not decode.
    #[error("frame {0:?}: malformed body")]
    Body(Kind),
}

/// A decoded header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Bytes of body that follow.
    pub length: u32,
    /// What it is.
    pub kind: Kind,
    /// See [`Kind`].
    pub tag: u64,
    /// See [`Kind`].
    pub a: u32,
    /// See [`Kind`].
    pub b: u32,
    /// See [`Kind`].
    pub c: u64,
}

impl Header {
    /// A header of a frame without body or numbers.
    pub fn new(kind: Kind) -> Header {
        Header { length: 0, kind, tag: 0, a: 0, b: 0, c: 0 }
    }

    /// The bytes on the wire.
    pub fn encode(&self) -> [u8; HEADER] {
        let mut out = [0; HEADER];
        out[0..4].copy_from_slice(&self.length.to_le_bytes());
        out[4] = self.kind as u8;
        out[8..16].copy_from_slice(&self.tag.to_le_bytes());
        out[16..20].copy_from_slice(&self.a.to_le_bytes());
        out[20..24].copy_from_slice(&self.b.to_le_bytes());
        out[24..32].copy_from_slice(&self.c.to_le_bytes());
        out
    }

    /// Decodes and checks a header.
    ///
    /// # Errors
    /// [`WireError`] for an unknown kind, a length over the kind's limit, or fields that
    /// contradict each other.
    pub fn decode(bytes: &[u8; HEADER]) -> Result<Header, WireError> {
        let u32_at = |at: usize| {
            u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        let u64_at = |at: usize| u64::from(u32_at(at)) | (u64::from(u32_at(at + 4)) << 32);
        let kind = Kind::from_u8(bytes[4]).ok_or(WireError::Kind(bytes[4]))?;
        let header = Header {
            length: u32_at(0),
            kind,
            tag: u64_at(8),
            a: u32_at(16),
            b: u32_at(20),
            c: u64_at(24),
        };
        if bytes[5..8] != [0; 3] {
            return Err(WireError::Field(kind, "reserved bytes are not zero"));
        }
        let (length, limit) = (header.length as usize, kind.body_max());
        if length > limit {
            return Err(WireError::TooLong { kind, length, limit });
        }
        if kind == Kind::Data && (header.b == 0 || length != header.b as usize * PAGE) {
            return Err(WireError::Field(kind, "length is not that of its pages"));
        }
        if kind == Kind::Read && !(1..=READ_PAGES_MAX).contains(&header.b) {
            return Err(WireError::Field(kind, "page count out of range"));
        }
        if kind == Kind::Read
            && header.c.checked_add(u64::from(header.b)).is_none_or(|e| e >> 52 != 0)
        {
            return Err(WireError::Field(kind, "page number out of range"));
        }
        Ok(header)
    }
}

/// What the owner's clocks show when it sends a descriptor, in nanoseconds: in the header of
/// [`Kind::Descriptor`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OwnerClocks {
    /// `CLOCK_MONOTONIC`, in `c`.
    pub monotonic: i64,
    /// `CLOCK_BOOTTIME`, in `a` (the low half) and `b`.
    pub boottime: i64,
}

impl OwnerClocks {
    /// This machine's, now.
    pub fn now() -> OwnerClocks {
        let read = |clock| {
            let now = rustix::time::clock_gettime(clock);
            now.tv_sec * 1_000_000_000 + now.tv_nsec
        };
        let monotonic = read(rustix::time::ClockId::Monotonic);
        OwnerClocks { monotonic, boottime: read(rustix::time::ClockId::Boottime) }
    }

    /// The header of a descriptor that says so.
    pub fn header(self) -> Header {
        let OwnerClocks { monotonic, boottime } = self;
        let (a, b) = (boottime as u32, (boottime >> 32) as u32);
        Header { a, b, c: monotonic as u64, ..Header::new(Kind::Descriptor) }
    }

    /// From the header of a descriptor.
    pub fn of(header: &Header) -> OwnerClocks {
        let boottime = u64::from(header.a) | u64::from(header.b) << 32;
        OwnerClocks { monotonic: header.c as i64, boottime: boottime as i64 }
    }
}

/// Body of [`Kind::Hello`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`VERSION`] of the sender.
    pub version: u32,
}

/// Body of [`Kind::Open`] and [`Kind::Vdso`]: a seed and the right to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Access {
    /// The seed.
    pub seed: SeedId,
    /// The capability.
    pub secret: Secret,
}

/// Body of [`Kind::Fork`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForkAsk {
    /// The seed and the right to it.
    pub access: Access,
    /// A descriptor of more bytes it would rather read by RDMA; `u32::MAX` for none.
    pub inline: u32,
}

/// Body of [`Kind::Pong`]: the handles whose seed is not alive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pong {
    /// Handle and state.
    pub changed: Vec<(u32, SeedState)>,
}

pub use crate::stretches::Pages;

/// One side of a queue pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RdmaEnd {
    /// Number of the queue pair.
    pub qpn: u32,
    /// First packet sequence number, 24 bits.
    pub psn: u32,
    /// Address of the port.
    pub gid: [u8; 16],
    /// Local identifier (InfiniBand).
    pub lid: u16,
    /// Path MTU as `enum ibv_mtu`.
    pub mtu: u8,
}

/// The handle of the seed of the last [`Kind::DescriptorAt`].
pub const DESCRIPTOR_HANDLE: u32 = u32::MAX;

/// Body of [`Kind::DescriptorAt`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RdmaPlace {
    /// Where a READ finds the descriptor.
    pub address: u64,
    /// The key that the READ needs.
    pub rkey: u32,
    /// Bytes of it.
    pub length: u32,
    /// Whether this connection has a queue pair. Without one there is no key: first it is to be made, and
    /// then [`RdmaAsk::Descriptor`] tells.
    pub linked: bool,
}

/// Consecutive registered pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RdmaRegion {
    /// First page, in the seed's address space.
    pub page: u64,
    /// Number of pages.
    pub pages: u32,
    /// Where a READ finds them.
    pub address: u64,
    /// The key that the READ needs.
    pub rkey: u32,
}

/// Body of [`Kind::Rdma`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RdmaAsk {
    /// Whether this node lets others read by RDMA. The handle means nothing.
    Offer,
    /// The queue pair of this connection, instead of one that it has; the handle is one of an open seed,
    /// or [`DESCRIPTOR_HANDLE`].
    Connect(RdmaEnd),
    /// What of the seed is registered, without the first `from` regions; windows are opened on it.
    Regions {
        /// Regions known already.
        from: u32,
    },
    /// Where the descriptor is that [`Kind::DescriptorAt`] spoke of.
    Descriptor,
    /// Nothing of the seed is read any more by RDMA: its windows may be closed. Not answered.
    Ended,
}

/// Body of [`Kind::RdmaAnswer`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RdmaSaid {
    /// It does, over this device.
    Offer(String),
    /// The owner's side of the queue pair.
    Connected(RdmaEnd),
    /// Further regions.
    Regions {
        /// In the order of their registration.
        regions: Vec<RdmaRegion>,
        /// Whether there will be no more.
        complete: bool,
    },
    /// Where the descriptor is.
    Place(RdmaPlace),
    /// This seed cannot be read, because of this.
    No(String),
    /// There is no queue pair, or none any more, because of this: nothing can be read.
    Unlinked(String),
    /// Not an answer: the windows of this seed will be closed at once, because of this. Answered by
    /// [`RdmaAsk::Ended`] when no READ of it is on its way any more.
    Ending(String),
}

/// A frame with a postcard body.
pub fn control<T: Serialize>(mut header: Header, body: &T) -> Result<Vec<u8>, WireError> {
    let body = postcard::to_stdvec(body).map_err(|_| WireError::Body(header.kind))?;
    if body.len() > header.kind.body_max() {
        let (kind, limit) = (header.kind, header.kind.body_max());
        return Err(WireError::TooLong { kind, length: body.len(), limit });
    }
    header.length = body.len() as u32;
    let mut out = header.encode().to_vec();
    out.extend_from_slice(&body);
    Ok(out)
}

/// Decodes the postcard body of a control frame; every byte must be used.
///
/// # Errors
/// [`WireError::Body`].
pub fn body<T: DeserializeOwned>(kind: Kind, bytes: &[u8]) -> Result<T, WireError> {
    match postcard::take_from_bytes(bytes) {
        Ok((value, [])) => Ok(value),
        _ => Err(WireError::Body(kind)),
    }
}

/// Error frame of a read; a message too long for a frame is cut.
pub fn error_frame(tag: u64, error: &ReadError) -> Result<Vec<u8>, WireError> {
    let cut = |text: &String| text.chars().take(1000).collect::<String>();
    let error = match error {
        ReadError::Lost(text) => ReadError::Lost(cut(text)),
        ReadError::NotOwned(text) => ReadError::NotOwned(cut(text)),
        ReadError::Failed(text) => ReadError::Failed(cut(text)),
        other => other.clone(),
    };
    control(Header { tag, ..Header::new(Kind::Error) }, &error)
}
