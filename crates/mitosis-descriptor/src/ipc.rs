//! System V objects (sysvipc(7)): what the process has of them beyond mappings.

use crate::validate::invalid;
use crate::{Backing, Descriptor, DescriptorError, Limits, PAGE_SIZE};
use serde::{Deserialize, Serialize};
use std::collections::HashSet;

/// `IPCMNI` of linux/ipc_namespace.h without `ipcmni_extend`.
const OBJECTS_MAX: usize = 32_768;
/// `SEMMSL` as far as anybody raises it.
const SEMAPHORES_MAX: usize = 65_536;
/// Bytes of all messages.
const MESSAGE_BYTES_MAX: usize = 16 << 20;

/// All that is carried.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Ipc {
    /// Shared memory that is attached.
    pub segments: Vec<Segment>,
    /// Sets of semaphores.
    pub semaphores: Vec<Semaphores>,
    /// Message queues.
    pub queues: Vec<MessageQueue>,
}

/// What each object has (`struct ipc_perm`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct IpcObject {
    /// Id.
    pub id: i32,
    /// Key; 0 (`IPC_PRIVATE`) for none.
    pub key: i32,
    /// Permissions: nine bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// Who made it.
    pub cuid: u32,
    /// Group of who made it.
    pub cgid: u32,
}

/// A segment of shared memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Segment {
    /// Its id and owner.
    pub ipc: IpcObject,
    /// Index into [`Descriptor::shared`].
    pub object: u32,
    /// Bytes, as the program asked for.
    pub size: u64,
    /// Removed (`IPC_RMID`): it goes with its last mapping.
    pub removed: bool,
    /// Locked in memory (`SHM_LOCK`).
    pub locked: bool,
}

/// A set of semaphores.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Semaphores {
    /// Its id and owner.
    pub ipc: IpcObject,
    /// The values.
    pub values: Vec<u16>,
}

/// A message queue.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct MessageQueue {
    /// Its id and owner.
    pub ipc: IpcObject,
    /// Bytes that it may hold.
    pub bytes_max: u64,
    /// Type and text of each message, the oldest first.
    pub messages: Vec<(i64, Vec<u8>)>,
}

impl Ipc {
    pub(crate) fn validate(
        &self,
        all: &Descriptor,
        limits: &Limits,
    ) -> Result<(), DescriptorError> {
        limits.check("System V segments", self.segments.len(), all.shared.len())?;
        limits.check("System V semaphores", self.semaphores.len(), OBJECTS_MAX)?;
        limits.check("System V message queues", self.queues.len(), OBJECTS_MAX)?;
        let mut objects = HashSet::new();
        for segment in &self.segments {
            segment.ipc.validate()?;
            if segment.object as usize >= all.shared.len() || !objects.insert(segment.object) {
                return invalid(format!("System V segment {}: no object", segment.ipc.id));
            }
            segment.validate(all)?;
        }
        for set in &self.semaphores {
            set.ipc.validate()?;
            limits.check("semaphores of a set", set.values.len(), SEMAPHORES_MAX)?;
        }
        for queue in &self.queues {
            queue.ipc.validate()?;
            let bytes: usize = queue.messages.iter().map(|(_, text)| text.len()).sum();
            limits.check("bytes of System V messages", bytes, MESSAGE_BYTES_MAX)?;
            if queue.messages.iter().any(|(kind, _)| *kind <= 0) {
                return invalid(format!("System V message queue {}: a type", queue.ipc.id));
            }
        }
        Ok(())
    }
}

impl IpcObject {
    fn validate(&self) -> Result<(), DescriptorError> {
        if self.id < 0 || self.mode > 0o777 {
            return invalid(format!("System V object {}, mode {:#o}", self.id, self.mode));
        }
        Ok(())
    }
}

impl Segment {
    /// Its mappings must lie within it: they are made by attaching it.
    fn validate(&self, all: &Descriptor) -> Result<(), DescriptorError> {
        let room = self.size.checked_next_multiple_of(PAGE_SIZE).unwrap_or(0);
        let within = |offset: u64, len: u64| offset.checked_add(len).is_some_and(|end| end <= room);
        for vma in &all.vmas {
            match vma.backing {
                Backing::Shared { object, offset }
                    if object == self.object && !within(offset, vma.end - vma.start) =>
                {
                    return invalid(format!("System V segment {}: too short", self.ipc.id));
                }
                _ => {}
            }
        }
        Ok(())
    }
}
