// SPDX-License-Identifier: GPL-2.0
//! Tests of `test_hmm` and `test_hmm_rs`, the kernel's test drivers of
//! heterogeneous memory management, for private, coherent and generic device
//! memory.

pub mod bench;
pub mod cgroup;
pub mod cli;
pub mod device;
pub mod failure;
pub mod hugetlb;
pub mod junit;
pub mod kernel_log;
pub mod ktap;
pub mod memory;
pub mod model;
pub mod pagemap;
pub mod pattern;
pub mod pins;
pub mod process;
pub mod results;
pub mod runner;
pub mod selection;
pub mod settings;
pub mod tests;
pub mod uapi;
pub mod userfault;
pub mod vfio;
