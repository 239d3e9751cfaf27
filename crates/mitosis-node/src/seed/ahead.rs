//! What the children of a seed will need, as far as anybody has shown: it goes along with the
//! descriptor, so that its pages come before they are touched.

use super::Seed;
use crate::error::NodeError;
use crate::kept::Kept;
use crate::trail::{BEGINNING, Trail};
use crate::working_set::Part;
use mitosis_transport::wire::WORKING_SET_FIRST;
use mitosis_transport::{SeedState, Want};
use std::sync::{Arc, MutexGuard, PoisonError};

/// Beginnings of a trail, each with its pages in a file in memory.
#[derive(Debug, Default)]
pub(crate) struct Images {
    first: Option<Arc<Part>>,
    whole: Option<Arc<Part>>,
    /// What is fetched along the trail.
    pub kept: Kept,
}

impl Images {
    pub fn pages(&self) -> usize {
        let parts = [&self.first, &self.whole].into_iter().flatten();
        parts.map(|part| part.pages.len()).sum::<usize>() + self.kept.pages()
    }
}

impl Seed {
    pub fn known(&self) -> MutexGuard<'_, Trail> {
        self.course.trail.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn trail_pages(&self) -> usize {
        self.known().pages().len()
    }

    /// What its children will need, in the order in which it became known.
    pub fn trail(&self) -> Vec<u64> {
        let mut trail = self.known();
        trail.look(&self.memory);
        trail.pages().to_vec()
    }

    /// The part of the working set that a node wants, ascending.
    pub fn working_set(&self, want: Want) -> Vec<u64> {
        want.part(self.trail())
    }

    pub fn images(&self) -> MutexGuard<'_, Images> {
        self.course.images.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The first pages of the working set in a file in memory, at most `most` of them, if there is
    /// such a file.
    pub fn image(&self, most: usize) -> Option<Arc<Part>> {
        // Of a long working set only the beginning is in a file.
        if most > BEGINNING && self.trail_pages() > BEGINNING {
            return None;
        }
        let images = self.images();
        let fits = |part: &&Arc<Part>| part.pages.len() <= most;
        let first = || images.first.as_ref().filter(|_| most <= WORKING_SET_FIRST);
        images.whole.as_ref().filter(fits).or_else(|| first().filter(fits)).cloned()
    }

    /// Makes these files, or larger ones, as far as `room` pages are enough: the beginning that the
    /// parent's writes or other seeds of its program suggest, and all that children have told. The
    /// seed's memory never changes, so the files stay right as long as the seed lives.
    ///
    /// # Errors
    /// No memory, or the seed has ended.
    pub fn make_images(&self, room: usize) -> Result<(), NodeError> {
        let have = |part: &Option<Arc<Part>>| part.as_ref().map_or(0, |part| part.pages.len());
        let (have_first, have_whole) = {
            let images = self.images();
            (have(&images.first), have(&images.whole))
        };
        let (first, whole) = {
            let mut trail = self.known();
            // Now, so that the next fork need not.
            trail.look(&self.memory);
            // Mostly nothing: this is looked at four times a second, for each seed.
            let more = |pages: &[u64], have: usize| {
                let wanted = pages.len() > have && pages.len() - have <= room;
                wanted.then(|| pages.to_vec())
            };
            let (first, whole) = (trail.pages(), trail.beginning());
            let first = first.get(..WORKING_SET_FIRST).unwrap_or(first);
            let whole = more(whole, have_whole).filter(|_| trail.told());
            (more(first, have_first), whole)
        };
        let make = |pages: Option<Vec<u64>>| {
            let made = pages.map(|mut pages| {
                pages.sort_unstable();
                Part::read(self, pages).map(Arc::new)
            });
            made.transpose()
        };
        let (first, whole) = (make(first)?, make(whole)?);
        let mut images = self.images();
        // A seed that has ended meanwhile keeps nothing.
        if matches!(self.state(), SeedState::Alive | SeedState::Expiring) {
            images.first = first.or(images.first.take());
            images.whole = whole.or(images.whole.take());
        }
        Ok(())
    }

    /// Puts what children have told into the memory that is sent along the trail, as far as `room`
    /// pages are enough; gives it up if it is not used, or if memory is `short`. One thread does this.
    ///
    /// # Errors
    /// As [`Seed::make_images`].
    pub fn keep_trail(&self, room: usize, short: bool) -> Result<(), NodeError> {
        let told = |trail: &Trail| if trail.told() { trail.pages().len() } else { 0 };
        // One lock after the other.
        let length = told(&self.known());
        {
            let kept = &mut self.images().kept;
            if short {
                *kept = Kept::default();
            }
            kept.sweep();
            if short || !kept.wants(length) {
                return Ok(());
            }
        }
        let trail = self.known().pages().to_vec();
        let Some(addition) = self.images().kept.lacks(&trail, room) else { return Ok(()) };
        let memory = addition.read(self)?;
        let mut images = self.images();
        if matches!(self.state(), SeedState::Alive | SeedState::Expiring) {
            images.kept.add(&addition, memory);
        }
        Ok(())
    }
}
