//! A seed as one connection has it open: what its node may read and tell.

use crate::habits::Habits;
use crate::rdma::OfSeed;
use crate::seed::Seed;
use crate::trail::Room;
use mitosis_descriptor::Vpn;
use mitosis_transport::rdma::{Export, Exporter};
use mitosis_transport::{KeptPages, OpenSeed, ReadError, SeedState};
use std::fs::File;
use std::sync::Arc;

/// A seed opened by one connection.
pub(crate) struct Reader {
    seed: Arc<Seed>,
    rdma: Result<Arc<Exporter>, String>,
    habits: Arc<Habits>,
    room: Arc<Room>,
}

impl Reader {
    /// Opens it: until this is dropped, it counts as one that reads the seed.
    pub fn new(
        seed: Arc<Seed>,
        rdma: Result<Arc<Exporter>, String>,
        habits: Arc<Habits>,
        room: Arc<Room>,
    ) -> Reader {
        seed.opened();
        seed.images().kept.used();
        Reader { seed, rdma, habits, room }
    }
}

impl OpenSeed for Reader {
    fn read(&self, source: Vpn, count: u32, out: &mut [u8]) -> Result<(), ReadError> {
        if self.seed.revoked() {
            return Err(ReadError::Revoked);
        }
        self.seed.memory.read(source, count, out)
    }

    fn learn(&self, pages: &[u64]) {
        // Whoever tells of others would spoil every fork that follows. Pages of files are among them: a
        // node that has not the same file, or does not know it yet, needs them as any others.
        let pages: Vec<u64> =
            pages.iter().copied().filter(|page| self.seed.memory.has(*page)).collect();
        let known = {
            let mut trail = self.seed.known();
            let before = trail.beginning().len();
            trail.learn(&pages, &self.room);
            let known = trail.beginning();
            (known.len() > before).then(|| known.to_vec())
        };
        self.seed.images().kept.used();
        if let Some(known) = known {
            self.habits.learn(&self.seed.places, &known);
        }
    }

    fn trail(&self) -> Vec<u64> {
        self.seed.trail()
    }

    fn told(&self) -> bool {
        self.seed.known().told()
    }

    fn image(&self, most: usize) -> Option<(Arc<[u64]>, Arc<File>)> {
        self.seed.image(most).map(|image| (Arc::clone(&image.pages), Arc::clone(&image.file)))
    }

    fn kept(&self, pages: &[u64]) -> Option<Vec<KeptPages>> {
        self.seed.images().kept.find(pages)
    }

    fn rdma(&self) -> Result<Arc<Export>, String> {
        let exporter = self.rdma.as_ref().map_err(String::clone)?;
        let (owned, learned) = (self.seed.memory.owned(), self.seed.trail());
        let memory = Arc::new(OfSeed(Arc::clone(&self.seed)));
        Ok(exporter.export(self.seed.id, owned, &learned, memory))
    }

    fn state(&self) -> SeedState {
        self.seed.state()
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.seed.closed();
    }
}
