//! What one child was sent, its siblings on this node need not be sent again: see [`crate::cache`].

use crate::child::Via;
use crate::early::missing;
use crate::map::Tag;
use crate::message::ChildId;
use crate::pager::{Pager, Purpose};
use crate::prefetch::Window;
use crate::space::{PAGE, Role};
use mitosis_descriptor::Owner;

/// Most pages of a read that are kept though no sibling lives: a child that reads a lot by itself would
/// only be slower.
const ALONE_PAGES: u32 = 16;
/// Most pages placed at one touch of a page that is here.
const AT_ONCE: u64 = 64;

impl Pager {
    /// Another node's seed of which a child lacks pages.
    pub(crate) fn remote(&self, child: ChildId, owner: u16) -> Option<&Owner> {
        let source = self.children.get(&child)?.sources.get(usize::from(owner))?;
        matches!(source.via, Some(Via::Peer(..))).then_some(&source.owner.owner)
    }

    /// Whether pages of a read of `count` are kept for siblings.
    pub(crate) fn shared(&self, child: ChildId, owner: u16, purpose: Purpose, count: u32) -> bool {
        let sources = self.children.get(&child).map(|child| &child.sources);
        match sources.and_then(|sources| sources.get(usize::from(owner))?.via) {
            Some(Via::Peer(peer, handle)) => {
                let open = self.peers.get(&peer).and_then(|peer| peer.handles.get(&handle));
                let siblings = open.is_some_and(|open| open.users.len() > 1);
                siblings || (purpose == Purpose::Touch && count <= ALONE_PAGES)
            }
            _ => false,
        }
    }

    /// Keeps pages that have come: those of `single`, or the ones from `source` on.
    pub(crate) fn keep(
        &mut self,
        child: ChildId,
        owner: u16,
        source: u64,
        single: Option<&[u64]>,
        bytes: &[u8],
    ) {
        let Some(owner) = self.remote(child, owner).cloned() else { return };
        for (at, page) in bytes.chunks_exact(PAGE as usize).enumerate() {
            let number = single.map_or(Some(source + at as u64), |pages| pages.get(at).copied());
            if let Some(number) = number {
                self.cache.put(&owner, number, page);
            }
        }
    }

    /// Keeps a page here that was fetched ahead, instead of placing it, to see whether it will be
    /// touched: nothing else tells how much of what is fetched ahead is used. Not one that somebody waits
    /// for, or that shall be there whether touched or not.
    pub(crate) fn hold_back(&mut self, id: u64, page: u64, owner: u16, bytes: &[u8], tag: Tag) {
        let Some(space) = self.spaces.get_mut(&id).filter(|space| space.role == Role::Main) else {
            return;
        };
        let held = space.map.is_claimed(page, tag) && !space.waiting.contains(&page);
        let Some(child) = self.children.get_mut(&space.child).filter(|c| held && !c.fill) else {
            return;
        };
        let Some(source) = child.sources.get(usize::from(owner)) else { return };
        self.cache.put(&source.owner.owner, page, bytes);
        space.map_mut().unmark(page, page + 1, tag);
        child.held.insert(page);
        child.counters.pages_held += 1;
    }

    /// Answers a touch of `page` with what is here of it and of its window; whether the page was.
    pub(crate) fn answer_cached(
        &mut self,
        id: u64,
        owner: u16,
        page: u64,
        window: &Window,
    ) -> bool {
        let Some(child) = self.spaces.get(&id).map(|space| space.child) else { return false };
        let Some(named) = self.remote(child, owner).filter(|named| self.cache.knows(named)) else {
            return false;
        };
        let named = named.clone();
        if !self.place_cached(id, owner, &named, page, true) {
            return false;
        }
        let pages: Vec<u64> = match *window {
            Window::To(end) => (page + 1..end.min(page + AT_ONCE)).collect(),
            Window::Every { first, step, count } => {
                let at = |n: u64| first.checked_add_signed(n as i64 * step);
                (0..count.min(AT_ONCE)).filter_map(at).collect()
            }
        };
        let Some(space) = self.spaces.get(&id) else { return true };
        for page in missing(&space.map, owner, &pages) {
            self.place_cached(id, owner, &named, page, false);
        }
        true
    }

    /// Places those of the missing `pages` that are here; the others.
    pub(crate) fn not_cached(&mut self, id: u64, owner: u16, pages: &[u64]) -> Vec<u64> {
        let child = self.spaces.get(&id).map(|space| space.child);
        let named = child.and_then(|child| self.remote(child, owner));
        match named.filter(|named| self.cache.knows(named)).cloned() {
            Some(named) => {
                let mut left = pages.to_vec();
                left.retain(|page| !self.place_cached(id, owner, &named, *page, false));
                left
            }
            None => pages.to_vec(),
        }
    }

    /// Places a page that is missing and unasked for, if it is here.
    fn place_cached(
        &mut self,
        id: u64,
        owner: u16,
        named: &Owner,
        page: u64,
        demanded: bool,
    ) -> bool {
        let Some(tag) = Tag::new(self.id()) else { return false };
        let Some(space) = self.spaces.get_mut(&id) else { return false };
        let run = space.map.find(page).filter(|run| run.tag.is_none() && run.owner == owner);
        let Some(source) = run.map(|run| run.source + (page - run.start)) else { return false };
        let Some(found) = self.cache.get(named, source) else { return false };
        let mut bytes = [0; PAGE as usize];
        bytes.copy_from_slice(found);
        space.map_mut().mark(page, page + 1, tag);
        if let Some(child) = self.children.get_mut(&space.child) {
            child.counters.pages_cached += 1;
        }
        self.place(id, page, &bytes, tag, demanded.then_some(page));
        true
    }
}
