//! One template: a process with the memory of a seed's children, and how children are made of it.

use crate::error::NodeError;
use crate::memory::Shadow;
use crate::node::Node;
use crate::recipe::{Basis, Placed, Recipe};
use mitosis_descriptor::{Descriptor, MappedFile};
use mitosis_proto::{ForkRequest, Hooks, Net, Transport, Via};
use mitosis_restore::{Part, ProvenFiles, Time};
use mitosis_sandbox::Blank;
use mitosis_transport::wire::WORKING_SET_MAX;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Most ways to ask for children of one template that are remembered.
const RECIPES_MAX: usize = 16;
/// A template is made anew when the working set has grown by so many pages,
const GROWN: usize = 32;
/// and by this part of it,
const GROWN_PART: usize = 16;
/// or if the template is so old.
const GROWN_AGE: Duration = Duration::from_secs(2);

/// What tells recipes apart.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Options {
    new_pid: bool,
    hostname: Option<String>,
    own_net: bool,
    no_hooks: bool,
    transport: Transport,
}

impl Options {
    fn of(request: &ForkRequest) -> Options {
        Options {
            new_pid: request.new_pid,
            hostname: request.hostname.clone(),
            own_net: request.net == Net::Own,
            no_hooks: request.hooks == Hooks::None,
            transport: request.transport,
        }
    }
}

/// What was known of the parent's mapped files when a template mapped them: its children take for
/// missing what it took for missing, and nothing else.
pub(super) struct Files {
    pub known: Vec<(MappedFile, bool, bool)>,
}

impl Files {
    pub fn now(node: &Node, descriptor: &Descriptor) -> Files {
        let known = |file: &MappedFile| {
            (file.clone(), node.hashes.proven(file), node.hashes.is_elsewhere(file))
        };
        Files { known: descriptor.files.iter().map(known).collect() }
    }

    fn find(&self, file: &MappedFile) -> Option<&(MappedFile, bool, bool)> {
        self.known.iter().find(|(known, ..)| known == file)
    }

    /// Whether more of them are proven by now.
    pub fn outdated(&self, node: &Node) -> bool {
        self.known.iter().any(|(file, proven, _)| !proven && node.hashes.proven(file))
    }
}

impl ProvenFiles for Files {
    fn proven(&self, file: &MappedFile) -> bool {
        self.find(file).is_some_and(|(_, proven, _)| *proven)
    }

    fn is_elsewhere(&self, file: &MappedFile) -> bool {
        self.find(file).is_some_and(|(.., elsewhere)| *elsewhere)
    }
}

/// A process with the memory of a seed's children.
pub(crate) struct Template {
    /// Where it takes orders.
    pub orders: OwnedFd,
    /// How many pages are in place in it.
    pub held: u64,
    /// What its children are: copies of a template, or of the shadow.
    pub via: Via,
    /// Which pages those are, unless it is a shadow, which has all.
    pub(super) pages: Arc<[u64]>,
    /// Pages of the working set that were known.
    pub(super) known: usize,
    pub(super) made: Instant,
    pub(super) descriptor: Arc<Descriptor>,
    pub(super) files: Files,
    pub(super) clocks: (Time, Option<Arc<crate::time::Space>>),
    pub(super) recipes: Mutex<Vec<(Options, Arc<Recipe>)>>,
    pub(super) process: Process,
}

/// Whose memory it is.
pub(super) enum Process {
    /// Its own; it ends with this.
    Made(Blank),
    /// The shadow's, which is the seed's.
    Shadow(Arc<Shadow>),
}

impl Template {
    /// How its children are made.
    ///
    /// # Errors
    /// Such children cannot be had here.
    pub fn recipe(&self, node: &Node, request: &ForkRequest) -> Result<Arc<Recipe>, NodeError> {
        let options = Options::of(request);
        let lock = || self.recipes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, recipe)) = lock().iter().find(|(known, _)| *known == options) {
            return Ok(Arc::clone(recipe));
        }
        let descriptor = Arc::clone(&self.descriptor);
        let proven: &dyn ProvenFiles = &self.files;
        let placed = match self.process {
            Process::Made(_) => Placed::Pages(&self.pages),
            Process::Shadow(_) => Placed::All,
        };
        let basis = Basis { part: Part::Rest, working_set: &[], tree: None, placed, proven };
        let recipe = Recipe::new(node, request, descriptor, &basis, self.clocks.clone())?;
        let recipe = Arc::new(recipe);
        let mut recipes = lock();
        if recipes.len() == RECIPES_MAX {
            recipes.remove(0);
        }
        recipes.push((options, Arc::clone(&recipe)));
        Ok(recipe)
    }

    /// Whether so much more is known of the working set that it is worth another one: at once only if
    /// that is much of it, since children that go on tell more and more.
    pub fn outgrown(&self, now: usize) -> bool {
        let grown = now.min(WORKING_SET_MAX).saturating_sub(self.known);
        grown >= GROWN && (grown >= self.known / GROWN_PART || self.made.elapsed() >= GROWN_AGE)
    }

    /// Whether its process lives.
    pub fn alive(&self) -> bool {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let pidfd = match &self.process {
            Process::Made(blank) => &blank.pidfd,
            Process::Shadow(shadow) => &shadow.pidfd,
        };
        let mut fds = [PollFd::new(pidfd, PollFlags::IN)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        matches!(poll(&mut fds, Some(&now)), Ok(0) | Err(rustix::io::Errno::INTR))
    }
}
