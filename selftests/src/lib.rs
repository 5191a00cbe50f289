// SPDX-License-Identifier: GPL-2.0
//! Tests of `test_hmm` and `test_hmm_rs`, the kernel's test drivers of
//! heterogeneous memory management, for private, coherent and generic device
//! memory.

// In layers: a module uses only what is above it here, or in its own layer without a ring.

// How tests fail, and what they are about: pages, their contents, the drivers' interface.
pub mod failure;
pub mod pages;
pub mod pattern;
pub mod uapi;

// What tests use of the system.
pub mod arena;
pub mod cgroup;
pub mod device;
pub mod fault_injection;
pub mod hugetlb;
pub mod iomem;
pub mod kernel_log;
pub mod memory;
pub mod module;
pub mod pagemap;
pub mod pins;
pub mod process;
pub mod rdma;
pub mod settings;
pub mod uring;
pub mod userfault;
pub mod vfio;

// What is to be expected.
pub mod model;

// The tests.
pub mod tests;

// How they are chosen, run and reported.
pub mod cli;
pub mod junit;
pub mod ktap;
pub mod results;
pub mod runner;
pub mod selection;

// What operations cost.
pub mod bench;
