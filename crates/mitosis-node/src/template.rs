//! Templates: the memory that children of a seed begin with, in a process of this node, to be copied.
//!
//! The first child of a seed on a node is built from nothing; the next ones are copies of a template,
//! which costs what fork(2) costs. A template is a cache: it is made in the background, made
//! anew when children have shown that they touch more, and is dropped when nobody uses it, when memory is short, or when its seed
//! ends. Then children are built from nothing again.
//!
//! Who has the capability of a seed may have copies of its template without a question to the seed's
//! node, as long as this node has a lease from there. A seed's node that revokes it waits until all
//! leases are over.

mod make;
mod one;
mod shadow;

pub(crate) use make::work;
pub(crate) use one::Template;

use crate::admission::Admission;
use crate::error::NodeError;
use crate::node::Node;
use crate::recipe::{Recipe, fetch, in_bulk};
use mitosis_descriptor::{Phase, Reference, Secret, SeedId};
use mitosis_proto::{ForkRequest, Transport, Via};
use mitosis_sandbox::GuardImage;
use mitosis_transport::{ForkError, Want};
use std::collections::HashMap;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long after one look at the seed's node the next is taken, in the background: for another lease,
/// and to see whether the template is up to date.
const RENEW: Duration = Duration::from_millis(200);
/// How long the seed's node may take to answer.
const LEASE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a template is kept that nobody uses.
const KEPT: Duration = Duration::from_secs(20);
/// How long none is tried after one could not be made.
const FAILED: Duration = Duration::from_secs(5);
/// Most templates on a node.
const TEMPLATES_MAX: usize = 64;
/// From so many children in one request on, a template is made for them.
const MANY: u32 = 4;
/// How long somebody waits for a template that another request makes.
const BUILD_TIMEOUT: Duration = Duration::from_secs(10);
/// Requests that wait for the thread that makes templates.
const QUEUE: usize = 16;

/// What a node knows of one seed's template.
struct Entry {
    secret: Secret,
    template: Option<Arc<Template>>,
    /// Somebody makes it, or the next one.
    building: bool,
    /// There could be none, when it was last tried.
    failed: bool,
    /// The thread has been told.
    queued: bool,
    /// Until when children may be made without asking.
    leased: Instant,
    /// When it was last looked at whether the template is up to date.
    renewed: Instant,
    used: Instant,
}

impl Entry {
    fn new(secret: Secret) -> Entry {
        let now = Instant::now();
        let (template, building, failed, queued) = (None, false, false, false);
        Entry { secret, template, building, failed, queued, leased: now, renewed: now, used: now }
    }
}

/// A seed, by its node and its id.
type Key = (String, SeedId);

fn key(reference: &Reference) -> Key {
    (reference.address.clone(), reference.seed)
}

/// A template, and how the children of one request are made of it.
pub(crate) type Copied = (Arc<Template>, Arc<Recipe>);

/// What [`work`] is to do: templates for children that were asked for so.
pub(crate) type Jobs = Receiver<(ForkRequest, Reference)>;

/// The templates of a node.
pub(crate) struct Templates {
    table: Mutex<HashMap<Key, Entry>>,
    changed: Condvar,
    shadows: shadow::Shadows,
    image: GuardImage,
    queue: SyncSender<(ForkRequest, Reference)>,
}

impl Templates {
    /// None yet, and the end of the queue of [`work`].
    ///
    /// # Errors
    /// No memory for the program that they run.
    pub fn new() -> Result<(Templates, Jobs), NodeError> {
        let (queue, jobs) = sync_channel(QUEUE);
        let (table, changed, image) = (Mutex::default(), Condvar::new(), GuardImage::new()?);
        let shadows = shadow::Shadows::default();
        Ok((Templates { table, changed, shadows, image, queue }, jobs))
    }

    /// The program that a template runs, and a process that only makes one child.
    pub fn image(&self) -> &GuardImage {
        &self.image
    }

    fn table(&self) -> MutexGuard<'_, HashMap<Key, Entry>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the children of a request are to be copied from, if there is anything. Whoever has no right to the seed learns
    /// that from the seed's node.
    ///
    /// # Errors
    /// `--via template`, and there can be none.
    pub fn choose(
        &self,
        node: &Node,
        request: &ForkRequest,
        reference: &Reference,
    ) -> Result<Option<Copied>, NodeError> {
        // Whatever stands in its way: there are other ways.
        if request.via == Via::Auto
            && shadow::is_best(node, request, reference)
            && let Ok(Ok(copied)) = self.of_shadow(node, request, reference)
        {
            return Ok(Some(copied));
        }
        let usual =
            in_bulk(node, reference, request.transport) || reference.address == node.address;
        let now = match request.via {
            Via::Template => true,
            Via::Auto if usual => request.count >= MANY,
            _ => return Ok(None),
        };
        let known = {
            let table = self.table();
            let entry = table.get(&key(reference)).filter(|e| e.secret == reference.secret);
            entry.and_then(|e| Some((Arc::clone(e.template.as_ref()?), e.leased)))
        };
        let known = known.filter(|(template, _)| {
            let alive = template.alive();
            if !alive {
                self.forget(reference, template);
            }
            alive
        });
        let template = match known {
            Some((template, leased)) => {
                if leased <= Instant::now() {
                    self.lease(node, reference)?;
                }
                Ok(template)
            }
            None if now => self.build(node, request, reference),
            None => return Ok(None),
        };
        let both = template.and_then(|template| {
            let recipe = template.recipe(node, request)?;
            Ok(Some((template, recipe)))
        });
        match request.via {
            Via::Template => both,
            // Whatever the cause: if it stands in the way of a child too, that will say so.
            _ => Ok(both.unwrap_or(None)),
        }
    }

    /// The same for `--via shadow`, or why children cannot be copies of the shadow.
    ///
    /// # Errors
    /// The seed is another node's, or may not be forked.
    pub fn of_shadow(
        &self,
        node: &Node,
        request: &ForkRequest,
        reference: &Reference,
    ) -> Result<Result<Copied, String>, NodeError> {
        self.shadows.choose(node, request, reference)
    }

    /// Asks the seed's node for a lease; how many pages its working set has. A seed of this very node
    /// gives none: it is asked each time.
    fn lease(&self, node: &Node, reference: &Reference) -> Result<usize, NodeError> {
        let Reference { address, seed, secret } = reference;
        let asked = Instant::now();
        if *address == node.address {
            let refused = |_| ForkError::Refused { address: address.clone() };
            let seed = node.seeds.forkable(*seed, secret).map_err(refused)?;
            return Ok(seed.row().working_set as usize);
        }
        match node.nodes.lease(address, *seed, secret, LEASE_TIMEOUT) {
            Ok(lease) => {
                if let Some(entry) = self.table().get_mut(&key(reference)) {
                    entry.leased = asked + lease.time;
                }
                Ok(lease.working_set as usize)
            }
            Err(error) => {
                self.drop_seed(&key(reference));
                Err(error.into())
            }
        }
    }

    /// Children were made: the next ones shall find a template that is up to date.
    pub fn forked(&self, node: &Node, request: &ForkRequest, reference: &Reference) {
        if !matches!(request.via, Via::Auto | Via::Template)
            || (request.via == Via::Auto && self.shadows.serves(node, request, reference))
        {
            return;
        }
        let usual =
            in_bulk(node, reference, request.transport) || reference.address == node.address;
        let mut table = self.table();
        if !usual || (table.len() >= TEMPLATES_MAX && !table.contains_key(&key(reference))) {
            return;
        }
        let entry = table.entry(key(reference)).or_insert_with(|| Entry::new(reference.secret));
        entry.used = Instant::now();
        let pause = match (&entry.template, entry.failed) {
            (Some(_), _) => RENEW,
            (None, true) => FAILED,
            (None, false) => Duration::ZERO,
        };
        let due = entry.renewed.elapsed() >= pause;
        if due && !entry.queued && !entry.building {
            entry.queued = self.queue.try_send((request.clone(), reference.clone())).is_ok();
        }
    }

    /// Makes a template, or waits for the one that is being made.
    fn build(
        &self,
        node: &Node,
        request: &ForkRequest,
        reference: &Reference,
    ) -> Result<Arc<Template>, NodeError> {
        let deadline = Instant::now() + BUILD_TIMEOUT;
        let mut table = self.table();
        loop {
            let entry = table.entry(key(reference)).or_insert_with(|| Entry::new(reference.secret));
            if entry.secret != reference.secret {
                // One of both is wrong: the seed's node says which.
                drop(table);
                fetch(node, reference, Want::default(), Transport::Tcp)?;
                self.drop_seed(&key(reference));
                table = self.table();
                continue;
            }
            match &entry.template {
                Some(template) => return Ok(Arc::clone(template)),
                None if !entry.building => break entry.building = true,
                None => {}
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(NodeError::step(Phase::Sandbox, "template", "not made in 10 s"));
            }
            let waited = self.changed.wait_timeout(table, left);
            table = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        drop(table);
        let made = make::make(&self.image, node, request, reference).map(Arc::new);
        self.made(reference, made.as_ref().ok().cloned());
        made
    }

    /// Somebody is done with making one.
    fn made(&self, reference: &Reference, template: Option<Arc<Template>>) {
        let mut table = self.table();
        let before = match (table.get_mut(&key(reference)), template) {
            (Some(entry), Some(template)) => {
                entry.building = false;
                entry.used = Instant::now();
                entry.template.replace(template)
            }
            (Some(entry), None) => {
                entry.building = false;
                None
            }
            (None, _) => None,
        };
        drop(table);
        self.changed.notify_all();
        drop(before);
    }

    /// Asks the seed's node for another lease, and makes the template anew if the working set has grown
    /// by much. The first time, makes it.
    fn renew(&self, node: &Node, request: &ForkRequest, reference: &Reference) {
        let known = {
            let mut table = self.table();
            let Some(entry) = table.get_mut(&key(reference)) else { return };
            entry.queued = false;
            if entry.building {
                return;
            }
            (entry.building, entry.renewed) = (true, Instant::now());
            entry.template.clone()
        };
        let made = self.lease(node, reference).and_then(|now| match known {
            Some(known) if !known.outgrown(now) && !known.files.outdated(node) => Ok(None),
            _ => make::make(&self.image, node, request, reference).map(Some),
        });
        match made {
            Ok(template) => self.made(reference, template.map(Arc::new)),
            Err(error) => {
                node.log.debug(format_args!("template of seed {}: {error}", reference.seed));
                if let Some(entry) = self.table().get_mut(&key(reference)) {
                    entry.failed = true;
                }
                self.made(reference, None);
            }
        }
    }

    fn is_new(&self, reference: &Reference) -> bool {
        self.table().get(&key(reference)).is_some_and(|entry| entry.template.is_none())
    }

    /// Forgets a template that has ended.
    pub fn forget(&self, reference: &Reference, dead: &Arc<Template>) {
        let mut table = self.table();
        let entry = table.get_mut(&key(reference));
        let entry = entry.filter(|e| e.template.as_ref().is_some_and(|t| Arc::ptr_eq(t, dead)));
        let gone = entry.and_then(|entry| entry.template.take());
        drop(table);
        drop(gone);
    }

    /// Drops the template of a seed that has ended.
    pub fn drop_seed(&self, key: &Key) {
        let gone = self.table().remove(key);
        drop(gone);
        self.shadows.drop_seed(key.1);
    }

    /// Drops what is not used, or all if memory is short.
    pub fn sweep(&self, admission: &Admission) {
        if self.table().is_empty() {
            return;
        }
        let short = admission.is_short();
        let mut gone = Vec::new();
        let mut table = self.table();
        table.retain(|_, entry| {
            let keep = entry.building || (!short && entry.used.elapsed() < KEPT);
            if !keep {
                gone.extend(entry.template.take());
            }
            keep
        });
        drop(table);
        drop(gone);
    }

    /// Drops all.
    pub fn clear(&self) {
        let all = std::mem::take(&mut *self.table());
        drop(all);
    }
}
