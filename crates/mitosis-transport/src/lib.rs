//! One-sided reads of another node's pages.
//!
//! A child's missing pages live in the memory of a seed, usually on another machine. This crate
//! moves them: neither the parent nor its shadow executes anything for a read. [`PageSource`] is
//! what the pager sees — batched reads, completion-driven, so that RDMA can stand where TCP stands
//! today; [`SeedService`] is what a node offers to others. Between the two lies a small
//! length-framed protocol ([`wire`]) in which an error is a frame of its own and never data.

#![forbid(unsafe_code)]

mod client;
mod error;
mod fault;
mod local;
pub mod rdma;
mod server;
mod service;
mod session;
mod source;
mod stretches;
mod tcp;
pub mod wire;

pub use client::{ControlClient, Fetched, Incoming, Want};
pub use error::{ForkError, ReadError, Refused, SourceError};
pub use fault::{Fault, FaultySource};
pub use local::LocalSource;
pub use mitosis_rdma_sys::{Device, RdmaError};
pub use rdma::{FetchedBy, ReadBy};
pub use server::{ServerConfig, serve};
pub use service::{KeptPages, Lease, OpenSeed, SeedService, SeedState};
pub use source::{Handle, PageSource, ReadRequest, SourceEvent};
pub use tcp::TcpSource;
pub use wire::OwnerClocks;
