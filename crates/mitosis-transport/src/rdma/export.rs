//! What of one seed is registered, and who has windows on it.
//!
//! A window is opened on the queue pair of one peer, who has shown the seed's capability, and closed before
//! the memory behind it is given back. Before they are closed at the seed's end their peers are told, over
//! TCP, and get a moment to let what they have on the way land: an error would end a queue pair that other
//! seeds' reads share.

use super::bell::Bell;
use super::memory::{Part, SeedMemory};
use super::owner::Exporter;
use crate::wire::{DESCRIPTOR_HANDLE, DESCRIPTOR_REGISTERED_MAX, PAGE, RdmaRegion};
use mitosis_rdma_sys::{Device, Exported, Exposed, Opener, RdmaError, Window};
use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

/// Pages of mapped files are registered with those around them: 4 MiB.
const MISSED: u64 = 1024;
/// A seed that was unpinned for others is not pinned again before this has passed, so that seeds for
/// which there is no room together do not take turns.
const REST: Duration = Duration::from_secs(10);
/// How long peers have to let land what is on its way, before the windows of a seed that ends are closed
/// whatever they say.
const GRACE: Duration = Duration::from_millis(500);
/// How long the device may take to open a part of the windows.
const OPEN_TIMEOUT: Duration = Duration::from_secs(2);

/// What of a seed is registered.
pub(super) enum Life {
    /// Being registered, or all that will be is.
    Live { complete: bool },
    /// Nothing, because of this. For good.
    Over(String),
    /// Nothing since then: others needed the room.
    Unpinned(Instant),
}

impl Life {
    /// Why nothing is registered, if so.
    fn ended(&self) -> Option<String> {
        match self {
            Life::Live { .. } => None,
            Life::Over(why) => Some(why.clone()),
            Life::Unpinned(_) => Some("unpinned: others needed the room".into()),
        }
    }
}

/// What of a seed is registered, in figures.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pinned {
    /// Pages registered now.
    pub pages: u64,
    /// Those of them that are where they were, in the shadow.
    pub in_place: u64,
    /// Registrations that hold them.
    pub registrations: u64,
    /// Bytes that were copied for it, by this process or by the kernel.
    pub copied: u64,
    /// What registering took.
    pub took: Duration,
    /// Why pages that could have been registered in the shadow were copied, or not registered.
    pub note: Option<String>,
}

/// Who has windows: a connection, which can be told something, and its handle of the seed.
#[derive(Clone)]
pub(super) struct Who {
    pub bell: Arc<Bell>,
    pub handle: u32,
}

impl Who {
    fn is(&self, other: &Who) -> bool {
        Arc::ptr_eq(&self.bell, &other.bell) && self.handle == other.handle
    }

    /// Whether it is told before its windows are closed. Who reads a descriptor has nothing else on its
    /// queue pair, and is done in a moment.
    fn is_told(&self) -> bool {
        self.handle != DESCRIPTOR_HANDLE
    }
}

/// The windows of one peer, by the number of the memory that they are on.
struct Opened {
    who: Who,
    windows: BTreeMap<usize, Window>,
}

struct State {
    life: Life,
    memories: Vec<Arc<Exposed>>,
    /// What is where, with the number of the memory, in the order of registration.
    parts: Vec<(usize, Part)>,
    /// With its length.
    descriptor: Option<(Arc<Exposed>, usize)>,
    opened: Vec<Opened>,
    figures: Pinned,
    /// Registrations under way that somebody has missed.
    pending: u32,
    /// Until the end: a connection may keep the rest of this for long.
    memory: Option<Arc<dyn SeedMemory>>,
}

/// Why windows were not opened.
pub(super) enum Shut {
    /// The seed has ended, or is unpinned.
    Seed(String),
    /// The queue pair is of no more use.
    Link(String),
}

/// A seed's registered memory.
pub struct Export {
    device: Device,
    state: Mutex<State>,
    /// Windows were closed.
    closed: Condvar,
    pub(super) used: AtomicU64,
    exporter: Weak<Exporter>,
    /// Parts of the address space of which pages of mapped files were asked for.
    missed: Mutex<HashSet<u64>>,
}

impl Export {
    /// One of which nothing is registered yet.
    pub(super) fn new(exporter: &Arc<Exporter>, memory: Arc<dyn SeedMemory>, used: u64) -> Export {
        let state = State {
            life: Life::Live { complete: false },
            memories: Vec::new(),
            parts: Vec::new(),
            descriptor: None,
            opened: Vec::new(),
            figures: Pinned::default(),
            pending: 0,
            memory: Some(memory),
        };
        Export {
            device: exporter.device().clone(),
            state: Mutex::new(state),
            closed: Condvar::new(),
            used: AtomicU64::new(used),
            exporter: Arc::downgrade(exporter),
            missed: Mutex::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The device that it is registered with.
    pub(super) fn device(&self) -> &Device {
        &self.device
    }

    /// Tells the peers, closes all windows and deregisters everything: from now on every READ of it
    /// fails. The first reason stands.
    pub(super) fn end(&self, life: Life) {
        let mut state = self.state();
        let first = state.life.ended().is_none();
        if first {
            state.life = life;
            // No window is opened from now on.
            state.memory = None;
            for opened in state.opened.iter().filter(|opened| opened.who.is_told()) {
                opened.who.bell.ring();
            }
        }
        // Whoever comes second waits for the first: when this returns nothing is open.
        let waits = |state: &mut State| {
            let mut told = state.opened.iter().filter(|opened| opened.who.is_told());
            told.any(|opened| !opened.who.bell.is_silent())
        };
        let waited = self.closed.wait_timeout_while(state, GRACE, waits);
        state = waited.unwrap_or_else(PoisonError::into_inner).0;
        for late in state.opened.iter().filter(|opened| opened.who.is_told()) {
            late.who.bell.was_silent();
        }
        // Windows first: the memory behind an open one stays.
        state.opened.clear();
        state.memories.clear();
        state.parts.clear();
        state.descriptor = None;
        let Pinned { copied, took, note, .. } = std::mem::take(&mut state.figures);
        state.figures = Pinned { copied, took, note, ..Pinned::default() };
        drop(state);
        self.closed.notify_all();
    }

    /// Why it has ended, if it has.
    pub(super) fn ended(&self) -> Option<String> {
        self.state().life.ended()
    }

    /// Closes the windows of a peer.
    pub(super) fn close(&self, who: &Who) {
        let mut state = self.state();
        state.opened.retain(|opened| !opened.who.is(who));
        drop(state);
        self.closed.notify_all();
    }

    /// The memory to register from.
    pub(super) fn memory(&self) -> Result<Arc<dyn SeedMemory>, String> {
        let state = self.state();
        let ended = || state.life.ended().unwrap_or_default();
        state.memory.clone().ok_or_else(ended)
    }

    /// What `opener`'s peer may read, with windows on it for `who`: regions from the `from`-th on, at most
    /// `most`, and whether these are the last.
    ///
    /// # Errors
    /// [`Shut`].
    pub(super) fn regions(
        &self,
        (who, opener): (&Who, &mut Opener),
        from: usize,
        most: usize,
    ) -> Result<(Vec<RdmaRegion>, bool), Shut> {
        let parts: Vec<(usize, Part)>;
        let mut missing: BTreeMap<usize, Arc<Exposed>> = BTreeMap::new();
        let last;
        {
            let state = self.state();
            let Life::Live { complete } = state.life else {
                return Err(Shut::Seed(state.life.ended().unwrap_or_default()));
            };
            parts = state.parts.iter().skip(from).take(most).copied().collect();
            let all = from + parts.len() >= state.parts.len();
            last = complete && state.pending == 0 && all;
            let has = state.opened.iter().find(|opened| opened.who.is(who));
            for (number, _) in &parts {
                if !has.is_some_and(|opened| opened.windows.contains_key(number)) {
                    missing.insert(*number, Arc::clone(&state.memories[*number]));
                }
            }
        }
        let keys = self.open(who, opener, missing)?;
        let region = |(number, part): (usize, Part)| Some(part.region(*keys.get(&number)?));
        Ok((parts.into_iter().filter_map(region).collect(), last))
    }

    /// Opens windows, without the lock: that waits for the device. All keys that `who` has then.
    fn open(
        &self,
        who: &Who,
        opener: &mut Opener,
        missing: BTreeMap<usize, Arc<Exposed>>,
    ) -> Result<BTreeMap<usize, u32>, Shut> {
        let memories: Vec<Arc<Exposed>> = missing.values().cloned().collect();
        let windows = opener.open(&memories, OPEN_TIMEOUT);
        drop(memories);
        let windows = windows.map_err(|e| match e {
            // The device has no more of them; the queue pair was not touched.
            RdmaError::Verb { verb: "ibv_alloc_mw", .. } => Shut::Seed(e.to_string()),
            _ => Shut::Link(e.to_string()),
        })?;
        let mut state = self.state();
        if let Some(why) = state.life.ended() {
            // Nobody was told their keys; they are closed here.
            return Err(Shut::Seed(why));
        }
        let at = match state.opened.iter().position(|opened| opened.who.is(who)) {
            Some(at) => at,
            None => {
                state.opened.push(Opened { who: who.clone(), windows: BTreeMap::new() });
                state.opened.len() - 1
            }
        };
        let mine = &mut state.opened[at].windows;
        mine.extend(missing.into_keys().zip(windows));
        Ok(mine.iter().map(|(number, window)| (*number, window.key())).collect())
    }

    /// Pages registered now, those of the descriptor included.
    pub(super) fn pages(&self) -> u64 {
        let state = self.state();
        let descriptor = state.descriptor.as_ref().map_or(0, |(_, bytes)| bytes.div_ceil(PAGE));
        state.figures.pages + descriptor as u64
    }

    /// What is registered, in figures.
    pub(super) fn figures(&self) -> Pinned {
        self.state().figures.clone()
    }

    /// A node that reads this asked for pages over TCP. Those of mapped files are registered then, with
    /// what is around them: that node does not have the file.
    pub(super) fn missed(self: &Arc<Export>, page: u64, count: u32) {
        let blocks = page / MISSED..=(page + u64::from(count.max(1)) - 1) / MISSED;
        let mut missed = self.missed.lock().unwrap_or_else(PoisonError::into_inner);
        for block in blocks {
            if !missed.insert(block) {
                continue;
            }
            let Ok(memory) = self.memory() else { return };
            let mapped = memory.mapped(block * MISSED, (block + 1) * MISSED);
            if mapped.is_empty() {
                continue;
            }
            self.state().pending += 1;
            let mine = Arc::clone(self);
            let work = move || {
                let done = mine.exporter.upgrade().map(|exporter| exporter.copies(&mine, &mapped));
                // A file that cannot be read any more: its readers are told, over TCP.
                if let Some(Err(why)) = done {
                    mine.note(why);
                }
                mine.state().pending -= 1;
            };
            // Where no thread is to be had, its pages go on coming over TCP.
            if std::thread::Builder::new().name("rdma-pin".into()).spawn(work).is_err() {
                self.state().pending -= 1;
            }
        }
    }

    /// Registers the seed's descriptor when it is first asked for; its length.
    ///
    /// # Errors
    /// Why it cannot be read.
    pub(super) fn descriptor(&self, bytes: &[u8]) -> Result<u32, String> {
        if bytes.is_empty() || bytes.len() > DESCRIPTOR_REGISTERED_MAX {
            return Err(format!("{} bytes are too many to be registered", bytes.len()));
        }
        let mut state = self.state();
        if let Some(why) = state.life.ended() {
            return Err(why);
        }
        if state.descriptor.is_none() {
            let room = bytes.len().next_multiple_of(PAGE);
            let made = Exported::new(&self.device, room, |out| {
                out[..bytes.len()].copy_from_slice(bytes);
                Ok::<(), RdmaError>(())
            });
            let made = Exposed::Own(made.map_err(|e| e.to_string())?);
            state.descriptor = Some((Arc::new(made), bytes.len()));
        }
        Ok(bytes.len() as u32)
    }

    /// Address and key of the descriptor, with a window on it for `who`.
    ///
    /// # Errors
    /// [`Shut`].
    pub(super) fn open_descriptor(
        &self,
        (who, opener): (&Who, &mut Opener),
    ) -> Result<(u64, u32), Shut> {
        let known = self.state().descriptor.as_ref().map(|(memory, _)| Arc::clone(memory));
        let memory = known.ok_or_else(|| Shut::Seed(self.ended().unwrap_or_default()))?;
        let address = memory.place().0;
        let keys = self.open(who, opener, BTreeMap::from([(0, memory)]))?;
        let key = keys.get(&0).ok_or_else(|| Shut::Seed("no window".into()))?;
        Ok((address, *key))
    }

    /// Adds registered memory, with what is where in it.
    ///
    /// # Errors
    /// Why nothing is registered any more.
    pub(super) fn add(
        &self,
        memories: Vec<(Exposed, Vec<Part>)>,
        since: Instant,
        copied: u64,
    ) -> Result<(), String> {
        let mut state = self.state();
        if let Some(why) = state.life.ended() {
            return Err(why);
        }
        state.figures.took += since.elapsed();
        state.figures.copied += copied * PAGE as u64;
        for (memory, parts) in memories {
            let pages: u64 = parts.iter().map(|part| u64::from(part.pages)).sum();
            state.figures.pages += pages;
            state.figures.registrations += 1;
            if !memory.is_own() {
                state.figures.in_place += pages;
            }
            let number = state.memories.len();
            state.memories.push(Arc::new(memory));
            state.parts.extend(parts.into_iter().map(|part| (number, part)));
        }
        Ok(())
    }

    /// What will be registered is; `all` of it, or there was no room.
    pub(super) fn complete(&self, all: bool) {
        let mut state = self.state();
        if !all && state.figures.note.is_none() {
            state.figures.note = Some("there is no room for more".into());
        }
        if let Life::Live { complete } = &mut state.life {
            *complete = true;
        }
    }

    pub(super) fn note(&self, why: String) {
        self.state().figures.note = Some(why);
    }

    /// Unpinned so long ago that it may be pinned again.
    pub(super) fn rested(&self) -> bool {
        matches!(self.state().life, Life::Unpinned(since) if since.elapsed() >= REST)
    }
}
