// SPDX-License-Identifier: GPL-2.0
//! The system's pool of pages for hugetlbfs.

use std::fs;

use crate::ensure_eq;
use crate::failure::{Context, Result};

const NR_HUGEPAGES: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages";

/// Some more pages of 2 MB in the pool until it is dropped.
#[derive(Debug)]
pub struct MoreHugetlbPages {
    before: usize,
}

impl MoreHugetlbPages {
    /// Adds pages; fails if there is not enough free memory in one piece.
    pub fn add(count: usize) -> Result<Self> {
        let before = read()?;
        let more = Self { before };
        fs::write(NR_HUGEPAGES, (before + count).to_string()).context(NR_HUGEPAGES)?;
        ensure_eq!(read()?, before + count);
        Ok(more)
    }
}

impl Drop for MoreHugetlbPages {
    fn drop(&mut self) {
        fs::write(NR_HUGEPAGES, self.before.to_string()).expect("as it was before");
    }
}

fn read() -> Result<usize> {
    let text = fs::read_to_string(NR_HUGEPAGES).context(NR_HUGEPAGES)?;
    Ok(text.trim().parse()?)
}
